"""Data of persons: e-mail, phone, card, IBAN, IP. Each a pattern that finds the place, and a check that it is what it looks like."""

from __future__ import annotations

import itertools
import re
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from spanloop_exporter.redaction.escapes import (
    DASH,
    GAP,
    PLUS,
    SPACE,
    Found,
    Lazy,
    free_on_the_left,
    unescaped,
)
from spanloop_exporter.redaction.pseudonyms import inside_pseudonym

# --- e-mail (RFC 5321, without quoted local parts; letters beyond ASCII as RFC 6531 has them)

_AT: Final = r"(?:@|%(?:25){0,3}40|\\+u0040)"
# Letters of Latin, Greek and Cyrillic beyond ASCII, as bytes or escaped. Not those of scripts that write words without spaces:
# the words before an address would be taken for a part of it.
_LETTER: Final = r"[\xc3-\xd4][\x80-\xbf]|\\+u0(?:0[c-fC-F]|[1-5][0-9a-fA-F])[0-9a-fA-F]"
_LABEL: Final = rf"(?:[A-Za-z0-9]|{_LETTER})(?:[A-Za-z0-9-]|{_LETTER}){{0,62}}"
_DOMAIN: Final = rf"(?:{_LABEL}\.){{1,8}}(?:[A-Za-z]{{2,24}}|xn--[a-z0-9-]{{2,40}})"
EMAIL_CORE: Final = rf"[A-Za-z0-9_%+\x80-\xbf-]{_AT}(?:[A-Za-z0-9\x80-\xff-]|\\+u0[0-5][0-9a-fA-F]{{2}})+\.[A-Za-z0-9\x80-\xff\\]"
_EMAIL_REST: Final = Lazy(rf"{_AT}({_DOMAIN})")
_LOCAL: Final = Lazy(
    r"(?:\\+(?:u00[0-7][0-9a-fA-F]|u[23fF][0-9a-fA-F]{3}|[abfnrtv0\"'/]))?"
    rf"((?:[A-Za-z0-9.!#$&*_%+-]|{_LETTER}|\\+u002[bB])+)\Z"
)
_PLAIN: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.!#$&*_%+-"
_SCALE: Final = Lazy(r"[1-9]x")
_LOCAL_MOST: Final = 64 + 16  # octets (RFC 5321, 4.5.3.1.1), and room for an escape
_NO_LOCAL: Final = frozenset({b"git", b"hg", b"svn"})  # git@host:path, the name that every clone has
# What a dot, a word and a bracket follow in code (q@k.T[0], a@b.sum(…)) is hardly one of these.
_DOMAINS: Final = frozenset(
    b"com org net edu gov mil int info biz dev app io ai co me eu uk us de fr nl be ch at it es pt pl se no dk fi ie cz ru"
    b" ua br mx ar cl jp cn kr in au nz za example".split()
)


def email(text: bytes, start: int) -> Found | None:
    """`start` is the last character of the local part."""
    rest = _EMAIL_REST.match(text, start + 1)
    if rest is None:
        return None
    window = text[max(0, start + 1 - _LOCAL_MOST) : start + 1]
    before = window.rstrip(_PLAIN)
    if before[-1:] == b"\\" or before[-1:] > b"\x7f":  # an escape, or a letter beyond ASCII
        local = _LOCAL.search(window)
        if local is None:
            return None
        name: bytes = local.group(1)
    else:
        name = window[len(before) :]
    first = start + 1 - len(name)
    # What an address cannot begin with: a dot, and what quotes it or stands before it in prose.
    stripped = name.lstrip(b".!#$&*%")
    if len(name) - len(stripped) and re.match(rb"[0-9A-Fa-f]{2}", stripped) and name[:1] == b"%":
        stripped = stripped[2:] or stripped  # %22john@…: the end of an escape
    first += len(name) - len(stripped)
    if not stripped or stripped in _NO_LOCAL or b".." in stripped or inside_pseudonym(text, first, start + 1):
        return None
    end = rest.end()
    following = text[end : end + 1]
    name, _, last = rest.group(1).lower().rpartition(b".")
    if (following in (b"(", b"_", b"[") or following.isdigit()) and last not in _DOMAINS:
        return None  # code: q@k.transpose(…)
    if _SCALE.fullmatch(name):
        return None  # icon@2x.png
    return Found(first, end, "email", "email")


# --- phone numbers (E.164 international; national only in forms that nothing else has)

_BETWEEN: Final = rf"(?:{SPACE}|{DASH}|[./()])"
INTERNATIONAL_CORE: Final = rf"{PLUS}\(?[1-9](?:{_BETWEEN}{{0,3}}[0-9]){{6}}"
_INTERNATIONAL: Final = Lazy(rf"{PLUS}\(?([1-9](?:{_BETWEEN}{{0,3}}[0-9]){{6,14}})")
EXIT_CODE_CORE: Final = rf"00[1-9][0-9]{{1,2}}(?:{SPACE}|{DASH}|/)(?:{_BETWEEN}{{0,3}}[0-9]){{6}}"
_EXIT_CODE: Final = Lazy(rf"00([1-9][0-9]{{1,2}}(?:{SPACE}|{DASH}|/)(?:{_BETWEEN}{{0,3}}[0-9]){{6,12}})")
# North American Numbering Plan: area and exchange begin with 2 to 9.
NANP_CORE: Final = (
    rf"\(?[2-9][0-9]{{2}}(?:\){SPACE}?|{SPACE}|{DASH}|\.)[2-9][0-9]{{2}}(?:{DASH}|\.)[0-9]{{4}}"
)
_NANP: Final = Lazy(NANP_CORE)
# A trunk 0 and groups, as in most of Europe; in pairs, as in France.
TRUNK_CORE: Final = (
    rf"\(?0[1-9][0-9]{{1,4}}\)?(?:{SPACE}|{DASH}|/){{1,3}}[0-9](?:(?:{SPACE}|{DASH}|/){{0,3}}[0-9]){{4}}"
)
_TRUNK: Final = Lazy(rf"\(?0[1-9][0-9]{{1,4}}\)?(?:(?:{SPACE}|{DASH}|/){{1,3}}[0-9]{{2,8}}){{1,4}}")
PAIRS_CORE: Final = rf"0[1-9](?:(?:{SPACE}|[.])[0-9]{{2}}){{4}}"
_PAIRS: Final = Lazy(PAIRS_CORE)
# In any form, where the text says that it is one.
NAMED_CORE: Final = (
    r"(?i:phone|mobile|whatsapp|tel|fax|cell)[A-Za-z_.]{0,14}\\*[\"']?[ :=#.]{1,6}\\*[\"']?"
    rf"\(?[0-9](?:{_BETWEEN}{{0,3}}[0-9]){{6}}"
)
_NAMED: Final = Lazy(
    r"(?i:phone|mobile|whatsapp|tel|fax|cell)[A-Za-z_.]{0,14}\\*[\"']?[ :=#.]{1,6}\\*[\"']?"
    rf"(\(?[0-9](?:{_BETWEEN}{{0,3}}[0-9]){{6,14}})"
)
_NOT_DIGITS: Final = Lazy(r"\\+u[0-9a-fA-F]{4}|%20|%|[^0-9%]+")
# A digit (or letter, of an IBAN), or an escape, whose digits do not count.
_PIECE: Final = Lazy(r"\\+u[0-9a-fA-F]{4}|%20|[0-9A-Z]")
_MORE_DIGITS: Final = Lazy(rf"(?:{SPACE}|{DASH}|[./:])?[0-9]|[A-Za-z_]")
_DATE: Final = Lazy(r"[12][0-9]{3}[-/. ][01]?[0-9][-/. ][0-3]?[0-9]")
# Assigned codes (ITU-T E.164 list), by their length.
_CODES_1: Final = frozenset("17")
_ASSIGNED_2: Final = (
    "20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86 90"
    " 91 92 93 94 95 98"
)
_ASSIGNED_3: Final = (
    "211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 238 239 240 241 242 243"
    " 244 245 246 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 266 267 268 269 290 291 297 298 299"
    " 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378 380 381 382 383 385 386 387 389 420 421"
    " 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 595 596 597 598 599 670 672 673 674 675 676 677 678"
    " 679 680 681 682 683 685 686 687 688 689 690 691 692 800 808 850 852 853 855 856 870 878 880 881 882 883 886 888 960"
    " 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 979 992 993 994 995 996 998"
)
_CODES_2: Final = frozenset(_ASSIGNED_2.split())
_CODES_3: Final = frozenset(_ASSIGNED_3.split())
_E164_LEAST, _E164_MOST = 8, 15


def international(text: bytes, start: int) -> Found | None:
    """A plus, a calling code that is assigned, and 8 to 15 digits in all."""
    match = _INTERNATIONAL.match(text, start)
    if match is None or not free_on_the_left(text, start) or not _calls(match.group(1)):
        return None
    return _phone(text, start, match.end())


def exit_code(text: bytes, start: int) -> Found | None:
    """The same with 00 for the plus."""
    match = _EXIT_CODE.match(text, start)
    if match is None or not _apart(text, start) or not _calls(match.group(1)):
        return None
    return _phone(text, start, match.end())


def nanp(text: bytes, start: int) -> Found | None:
    """(415) 555-2671 and its like; `1-` before it is part of it."""
    match = _NANP.match(text, start)
    if match is None or not _apart(text, start):
        return None
    groups = re.findall(rb"[0-9]+", _NOT_DIGITS.sub(b" ", match.group()))
    if groups[0][1:] == b"11" or groups[1][1:] == b"11" or match.group().count(b".") == 1:
        return None  # 911, 411; a clause of a law: 252.227-7013
    return _phone(text, start, match.end())


def trunk(text: bytes, start: int) -> Found | None:
    """0171 2345678, 020 7946 0958, (089) 123456."""
    match = _TRUNK.match(text, start)
    if match is None or not _apart(text, start) or not 9 <= len(_digits(match.group())) <= 12:
        return None
    return _phone(text, start, match.end())


def pairs(text: bytes, start: int) -> Found | None:
    """01 23 45 67 89; not a list of numbers in order."""
    match = _PAIRS.match(text, start)
    if match is None or not _apart(text, start):
        return None
    digits = _digits(match.group())
    numbers = [int(digits[index : index + 2]) for index in range(0, 10, 2)]
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    counting = len(steps) == 1 and abs(steps.pop()) <= 10
    return None if counting else _phone(text, start, match.end())


def named(text: bytes, start: int) -> Found | None:
    """Digits in any grouping after the word phone, mobile, tel or fax."""
    match = _NAMED.match(text, start)
    if match is None or (not free_on_the_left(text, start) and text[start - 1 : start].islower()):
        return None
    number = match.group(1)
    if _DATE.match(number) or not 7 <= len(_digits(number)) <= _E164_MOST:
        return None
    return _phone(text, match.start(1), match.end())


def _calls(number: bytes) -> bool:
    digits = _digits(number)
    if digits.startswith("1"):
        return len(digits) == 11 and digits[1] in "23456789" and digits[4] in "23456789"
    assigned = digits[0] in _CODES_1 or digits[:2] in _CODES_2 or digits[:3] in _CODES_3
    return assigned and _E164_LEAST <= len(digits) <= _E164_MOST


def _digits(number: bytes) -> str:
    digits: bytes = _NOT_DIGITS.sub(b"", number)
    return digits.decode()


def _apart(text: bytes, start: int) -> bool:
    """Whether no digit, dot or hyphen ties it to what stands before it."""
    before = text[max(0, start - 2) : start]
    if before in (b"1-", b"1 "):
        return True
    tied = before[-1:] in (b".", b"-", b"_") and before[:1].isalnum()
    return (
        free_on_the_left(text, start)
        and not tied
        and not (before[-1:] in (b":", b"/") and before[:1].isdigit())
    )


def _phone(text: bytes, start: int, end: int) -> Found | None:
    if _MORE_DIGITS.match(text, end):
        return None
    return Found(start, end, "phone", "phone")


# --- payment cards (ISO/IEC 7812)

CARD_CORE: Final = rf"[2-6][0-9]{{3}}(?:{GAP}[0-9]){{9}}"
_CARD: Final = Lazy(rf"[2-6][0-9]{{3}}(?:{GAP}[0-9]){{9,15}}")
# Not a slash, colon or bar: the date of expiry follows them.
_MORE_OF_A_CARD: Final = Lazy(r"\.?[0-9]|[A-Za-z_]")
_GROUPINGS: Final = frozenset({(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3)})
_BRANDS: Final = (
    # digits of the card, lowest and highest first digits
    ((16, 19), "4", "4"),
    ((16,), "51", "55"),
    ((16,), "2221", "2720"),
    ((15,), "34", "34"),
    ((15,), "37", "37"),
    ((14,), "300", "305"),
    ((14,), "36", "36"),
    ((14,), "38", "38"),
    ((16, 19), "6011", "6011"),
    ((16, 19), "644", "659"),
    ((16,), "3528", "3589"),
    ((16, 17, 18, 19), "62", "62"),
    ((16,), "2200", "2204"),
    ((16,), "5018", "5038"),
    ((16,), "5893", "5893"),
    ((16,), "6759", "6763"),
)
_BRANDS_BY_LENGTH: Final = {
    length: [(low.ljust(4, "0"), high.ljust(4, "9")) for lengths, low, high in _BRANDS if length in lengths]
    for length in range(14, 20)
}


def card(text: bytes, start: int) -> Found | None:
    """Brand, length, grouping and Luhn's checksum must all hold."""
    match = _CARD.match(text, start)
    if match is None or not _apart(text, start):
        return None
    digits = _digits(match.group())
    # These first: they are cheap, and most rows of numbers fail them.
    lengths = [length for length in range(min(19, len(digits)), 13, -1) if _is_card(digits[:length])]
    ends = [one.end() for one in _PIECE.finditer(match.group()) if len(one.group()) == 1] if lengths else []
    for length in lengths:
        end = ends[length - 1]
        if end == ends[-1] and _MORE_OF_A_CARD.match(text, start + end):
            continue
        if text[start + end : start + end + 1].isalnum() or not _grouped(match.group()[:end]):
            continue
        return Found(start, start + end, "card", "card")
    return None


def _grouped(number: bytes) -> bool:
    groups = tuple(len(group) for group in _NOT_DIGITS.sub(b" ", number).split())
    return len(groups) == 1 or groups in _GROUPINGS


def _is_card(digits: str) -> bool:
    brands = _BRANDS_BY_LENGTH[len(digits)]
    return any(low <= digits[:4] <= high for low, high in brands) and len(set(digits)) > 1 and luhn(digits)


_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # sums of the digits of twice a digit


def luhn(digits: str) -> bool:
    """Luhn's checksum (ISO/IEC 7812-1, annex B)."""
    return (
        sum(map(int, digits[-1::-2])) + sum(map(_DOUBLED.__getitem__, map(int, digits[-2::-2])))
    ) % 10 == 0


# --- IBAN (ISO 13616: length by country, remainder 1 by 97)

IBAN_CORE: Final = rf"[A-Z]{{2}}[0-9]{{2}}(?:{GAP}[A-Z0-9]){{11}}"
_IBAN: Final = Lazy(rf"[A-Z]{{2}}[0-9]{{2}}(?:{GAP}[A-Z0-9]){{11,30}}")
_COUNTRIES: Final = (
    "15:NO 16:BE 18:DK,FK,FI,FO,GL,NL,SD 19:MK,SI 20:AT,BA,EE,KZ,LT,LU,MN,XK 21:CH,HR,LI,LV 22:BG,BH,CR,DE,GB,GE,"
    "IE,ME,RS,VA 23:AE,GI,IL,IQ,OM,SO,TL 24:AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG 25:LY,PT,ST 26:IS,TR 27:BI,DJ,FR,GR,"
    "IT,MC,MR,SM 28:AL,AZ,BY,CY,DO,GT,HN,HU,LB,NI,PL,SV 29:BR,EG,PS,QA,UA 30:JO,KW,MU,YE 31:MT,SC 32:LC 33:RU"
)
_IBAN_LENGTHS: Final = {
    code: int(length)
    for length, _, codes in (entry.partition(":") for entry in _COUNTRIES.split())
    for code in codes.split(",")
}


def iban(text: bytes, start: int) -> Found | None:
    """Its country's length, and its check digits."""
    match = _IBAN.match(text, start)
    if match is None or not free_on_the_left(text, start):
        return None
    wanted = _IBAN_LENGTHS.get(match.group()[:2].decode())
    plain, end = [], None
    for piece in _PIECE.finditer(match.group()):
        if len(piece.group()) == 1:
            plain.append(piece.group().decode())
            if len(plain) == wanted:
                end = start + piece.end()
                break
    if end is None or text[end : end + 1].isalnum():
        return None
    code = "".join(plain)
    if int("".join(str(int(character, 36)) for character in code[4:] + code[:4])) % 97 != 1:
        return None
    return Found(start, end, "iban", "iban")


# --- IP addresses

# Not 127, and not 0: those are in every request to a server on the same machine.
IPV4_CORE: Final = r"(?:[1-9][0-9]?|1(?:[013-9][0-9]|2[0-689])|2[0-9]{2})\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"
_IPV4: Final = Lazy(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})(?![0-9A-Za-z_])(?!\.[0-9])")
# What a version follows: a word or sign that says so, or the name of a program and a slash. No single `=` or `>`: addresses
# follow those in logs (SRC=…) and in XML; nor an @, which stands before a host.
_VERSION_BEFORE: Final = Lazy(
    r"(?:(?i:version|ver|release|build|revision|rev|section|chapter|sec|table|figure|fig|oid|rfc)[\"'\\:.= v]{1,8}"
    r"|(?:[=<>~!]=|[~^]) ?|[A-Za-z0-9]/)\Z"
)
_BEFORE_ADDRESS: Final = 96  # bytes; quotes five levels down are thirty each
_ADDRESS_BEFORE: Final = Lazy(
    r"(?i)(?:ip|host|addr|address|server|client|peer)(?:v4)?(?:\\*[\"']|\\+u002[27])?(?: ?[=:] ?| is |@)(?:\\*[\"']|\\+u002[27])?\Z"
)
_ADDRESS_AFTER: Final = Lazy(r":[0-9]{2,5}|/[0-9]{1,2}\b|-(?:[0-9]{1,3}\.){3}[0-9]")
_VERSION_AFTER: Final = Lazy(r"[-+](?:alpha|beta|rc|dev|post|pre|b[0-9]|a[0-9]|[0-9A-Za-z]*\.)")
IPV6_CORE: Final = r"[23fF][0-9a-fA-F]{3}:(?:[0-9a-fA-F]{1,4}:|:)"
_IPV6: Final = Lazy(r"[0-9a-fA-F:]{6,45}(?:\.[0-9]{1,3}){0,3}")


def ipv4(text: bytes, start: int) -> Found | None:
    """Four numbers up to 255; no version, no section, not the addresses that every machine has."""
    match = _IPV4.match(text, start)
    if match is None or not _apart_from_name(text, start):
        return None
    parts = match.groups()
    if any(int(part) > 255 or (part[:1] == b"0" and part != b"0") for part in parts):
        return None
    if parts[0] in (b"0", b"127", b"255"):
        return None
    end = match.end()
    before = text[max(0, start - _BEFORE_ADDRESS) : start]
    if not (
        before.endswith((b"//", b"/\\/", b"://"))
        or _ADDRESS_AFTER.match(text, end)
        or _ADDRESS_BEFORE.search(before)
    ):
        if _VERSION_BEFORE.search(before):
            return None
        if _VERSION_AFTER.match(text, end):
            return None
        if all(len(part) == 1 for part in parts) and len(set(parts)) > 1:
            return None  # 1.2.3.4: more often a section or a version
    return Found(start, end, "ipv4", "ip")


def _apart_from_name(text: bytes, start: int) -> bool:
    before = text[max(0, start - 1) : start]
    return before not in (b".", b"_") and free_on_the_left(text, start)


def ipv6(text: bytes, start: int) -> Found | None:
    """Global, unique local and link-local ones that the standard library takes."""
    match = _IPV6.match(text, start)
    if match is None or not free_on_the_left(text, start) or text[max(0, start - 1) : start] in (b":", b"_"):
        return None
    data = match.group().rstrip(b":") if not match.group().endswith(b"::") else match.group()
    end = start + len(data)
    groups = [group for group in data.split(b":") if group]
    if text[end : end + 1].isalnum() or len(groups) < 2:
        return None
    if len(groups) == 2 and data.replace(b":", b"").isdigit():
        return None  # a slice: rows[2000::10]
    try:
        IPv6Address(unescaped(data).decode())
    except (AddressValueError, UnicodeDecodeError):
        return None
    return Found(start, end, "ipv6", "ip")
