"""Secrets that only their surroundings give away: assignments, authorization headers, URLs, signed links, private keys."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from spanloop_exporter.redaction.escapes import Found, Lazy, free_on_the_left, unescaped
from spanloop_exporter.redaction.pseudonyms import is_pseudonym

# --- name = value

_STRONG: Final = r"pass(?:word|wd|phrase|code|wort)|pwd|kennwort|senha|wachtwoord|contrase(?:n|\xc3\xb1|\\+u00[fF]1)a|mot de passe"
_WEAK: Final = (
    r"secret(?:[_ .-]?(?:access[_ .-]?)?key)?|token|credential|authorization"
    r"|(?:api|access|account|auth|private|sign(?:ing)?|encryption|master|license|service|storage|admin|app|session"
    r"|subscription)[_ .-]?key"
)
_QUOTES: Final = r"(?:\\*[\"'`]|\\+u002[27]|%2[27])"
# Assigned, in a tag of XML, in an object of name and value, in bold.
_IS: Final = (
    r"(?:\*\*)?(?::=|=(?:>|\\+u003[eE])|=|:|>|\\+u003[dDeE]|%3[aAdD]| is:?"
    rf"|, {{0,2}}{_QUOTES}value{_QUOTES} ?:)(?:\*\*)?"
)
_BLANK: Final = r"(?:[ \t]|\\+t){0,4}"
# What a value may begin with, and go on with.
_ANY: Final = r"[^\x00-\x20\"'`\\]"
_FIRST: Final = r"[^\x00-\x20\"'`\\<>{}()\[\],;|~\x80-\xff]"
_FIRST_OF_KEY: Final = r"[A-Za-z0-9+/=_.%!@#^&*-]"  # no dollar: $NAME is a variable
_NEXT: Final = r"[^\x00-\x20\"'`]"
_SET: Final = rf"{_QUOTES}?{_BLANK}{_IS}{_BLANK}(?:{_QUOTES}|[rbuf]\"|\*\*)?"
_SCHEME: Final = r"(?i:token|bearer|basic|apikey|api-key|bot|key) "  # of an Authorization header
# `tokens` are counted in every span.
_SUFFIX: Final = r"(?:[A-RT-Za-rt-z0-9_][A-Za-z0-9_]{0,9})?"
# In quotes, a space will do: PASSWORD 'hunter2'.
ASSIGN_CORE: Final = (
    rf"(?i:{_STRONG})[A-Za-z0-9_]{{0,10}}(?:{_SET}{_FIRST}{_NEXT}{{5}}|{_QUOTES}?{_BLANK}(?:{_IS}{_BLANK}| ){_QUOTES}{_ANY})"
    rf"|(?i:pass){_SET}{_FIRST}{_NEXT}{{5}}"
    rf"|(?i:{_WEAK}){_SUFFIX}(?:{_SET}| {_QUOTES})(?:{_SCHEME})?{_FIRST_OF_KEY}{_NEXT}{{15}}"
)
_LEAST_STRONG, _LEAST_WEAK = 6, 16
_ASSIGN: Final = Lazy(
    rf"((?i:{_STRONG}|pass)|(?i:{_WEAK}))([A-Za-z0-9_]{{0,10}})"
    rf"(?:({_QUOTES}?){_BLANK}({_IS}){_BLANK}({_QUOTES}|\*\*|)| ({_QUOTES}))"
)
FLAG_CORE: Final = rf"--[a-z-]{{0,16}}(?:{_STRONG}|pass|token|secret|api-key)[ ]{_FIRST}{_NEXT}{{4}}"
_FLAG: Final = Lazy(rf"--[a-z-]{{0,16}}((?:{_STRONG}|pass)|token|secret|api-key) ({_FIRST}{_NEXT}{{5,511}})")
USER_CORE: Final = r"(?:-u|--user)[ =]\\*[\"']?[A-Za-z0-9._@%+-]+:[^\x00-\x20\"'\\]{4}"
_USER: Final = Lazy(r"(?:-u|--user)[ =]\\*[\"']?[A-Za-z0-9._@%+-]+:([^\x00-\x20\"'\\]{4,256})")
_BARE: Final = Lazy(r"[^\x00-\x20\"'`\\<>{}()\[\],;|&]{4,512}")
_MOST_VALUE: Final = 512
_NAME_BEFORE: Final = Lazy(r"[A-Za-z0-9_.-]{1,40}\Z")
# Names that end so mean something about a secret, and hold none.
_NO_SECRET: Final = Lazy(
    r"(?i)(?:tokens|token_?(?:ids?|type|types|count|counts|limit|usage|budget|url|uri|endpoint|name|path|file|index|length|"
    r"class|kind|str|text|probs?|logprobs?)|tokeni[sz]\w*|pass(?:word|wd)_?(?:field|policy|length|url|file|path|hint|reset|"
    r"input|type|label)|secret_?(?:name|id|arn|path|file|ref|type)|key_?(?:id|ids|name|path|file|size|length|type|arn|ref|"
    r"version|vault|error|func|fn)|credentials?_?(?:type|id|path|file|name)|(?:next|page|continuation|sync|cursor|pad|eos|"
    r"bos|unk|sep|cls|mask|stop|start|first|last|new|max|special|csrf_?param)_?token)\Z"
)
# Values that stand for one.
_STANDS_FOR: Final = Lazy(
    r"(?i)(?:<|\$(?:[{(]|[a-z_]+\Z|env:)|%[sdr(]|\{|\*|\.\.|x{4,}|#{3,}|-{3,}|_{3,}"
    r"|(?:your|my)[a-z_-]*(?:pass|pw|key|token|secret|here|credential)|(?:some|insert|enter|replace)[_-]|replace_?me|change_?me"
    r"|example|test_?(?:key|token|pass)|dummy|fake|sample|placeholder|redacted|hidden|masked"
    # Words, and no more than words: Password123! is a password.
    r"|(?:required|optional|none|null|nil|true|false|undefined|string|str|bytes|int|secret_?key|api_?key|access_?token"
    r"|password|passwd|secret|token)(?![\w.-]*[0-9!@#$%^&*+?])"
    r"|(?:self|os|env|process|config|settings|input)[.\[(]|get_?env|https?:|file:|(?-i:/(?:[A-Z]?[a-z0-9._-]+/|[a-z._-]+\Z))|\./|\.\\)"
)
_LETTER: Final = Lazy(r"[A-Za-z]")
_DIGIT: Final = Lazy(r"[0-9]")
_SIGN: Final = Lazy(r"[!@#$%^&*+?=]")
_DOTTED: Final = Lazy(r"[A-Za-z_]\w*(?:(?:\.|::|->)[A-Za-z_]\w*)+")
_IDENTIFIER: Final = Lazy(
    r"[a-z]+[0-9]?(?:_[a-z]+[0-9]?)+|[A-Z]+(?:_[A-Z0-9]+)+|[a-z]+(?:[A-Z][a-z]+)+[0-9]?"
)
_WORDS: Final = Lazy(r"[a-z0-9]{1,6}(?:[-_.][a-z]+)+")
_LEAST_DISTINCT: Final = 8  # characters of a key; fewer are rows of x or counting
_VENDOR_NAMES: Final = (
    "adafruit airbyte algolia amplitude anyscale assemblyai auth0 aws azure baseten bitly clickup cloudflare cloudinary"
    " cohere coinbase confluent datadog deepgram deepseek elastic exa fastly freshdesk gemini giphy gladia heroku hubspot"
    " intercom jenkins kaggle kraken kucoin linkedin mailjet messagebird mistral mixpanel moonshot ngrok okta openai"
    " opsgenie pagerduty plivo portkey postmark pusher qdrant railway rollbar sauce scale serper shodan sonar spotify"
    " stability stytch sumologic telnyx together travis trello twilio twitch unsplash vercel vonage weaviate zendesk zapier"
)
VENDORS: Final = tuple(_VENDOR_NAMES.split())
_VENDOR: Final = Lazy(f"(?i){'|'.join(VENDORS)}")


def assignment(text: bytes, start: int) -> Found | None:
    """`password: hunter2`, `"api_key": "…"`, `SECRET=…`, `my password is …`; only where the value can hardly be anything else."""
    match = _ASSIGN.match(text, start)
    if match is None:
        return None
    name = match.group(1) + match.group(2)
    before = _NAME_BEFORE.search(text, max(0, start - 40), start)
    whole = (before.group() if before else b"") + name
    if _NO_SECRET.search(whole):
        return None
    strong = _STRONG_NAME.match(match.group(1)) is not None
    said = (match.group(4) or b"").startswith(b" is")
    quote = match.group(5) or match.group(6) or b""
    if match.group(1).lower() == b"pass" and (
        match.group(2)
        or not match.group(4)
        or not (before or quote)
        or (before and before.group()[-1:].isalnum())
    ):
        return None  # it passed, a bypass
    first = match.end()
    if name.lower() == b"authorization" and (scheme := _SCHEME_OF.match(text, first)):
        first = scheme.end()
    if quote:
        last = _closing(text, first, quote)
    else:
        bare = _BARE.match(text, first)
        if bare is None:
            return None
        last = first + len(bare.group().rstrip(b".,:!?"))
        if text[bare.end() : bare.end() + 1] in (b"(", b"["):
            return None  # a call
    value = unescaped(text[first:last])
    if is_pseudonym(text[first:last]) or not _plausible(
        value,
        strong=strong,
        quoted=bool(quote),
        named=bool(match.group(3)) and name.lower() in _EXACT,
        said=said,
    ):
        return None
    vendor = _VENDOR.search(whole)
    kind = f"{vendor.group().decode().lower()}_key" if vendor else "password" if strong else "secret"
    return Found(first, last, kind, "password" if strong else "key")


_SCHEME_OF: Final = Lazy(_SCHEME)
_STRONG_NAME: Final = Lazy(f"(?i){_STRONG}|pass")
_EXACT: Final = frozenset({b"password", b"passwd", b"pwd", b"passphrase"})


def _closing(text: bytes, first: int, quote: bytes) -> int:
    """Where the quote's other half stands: with as many backslashes, and not one more; else the end of the value's line."""
    sign = re.escape(quote[-1:]) if not quote[-1:].isdigit() else re.escape(quote.lstrip(b"\\"))
    depth = len(quote) - len(quote.lstrip(b"\\"))
    found = re.compile(rb"(?<!\\)\\{%d}%s" % (depth, sign)).search(text, first, first + _MOST_VALUE)
    if found is not None:
        return found.start()
    rest = _BARE.match(text, first)
    return rest.end() if rest is not None else first


def _plausible(value: bytes, *, strong: bool, quoted: bool, named: bool, said: bool) -> bool:
    least = _LEAST_STRONG if strong else _LEAST_WEAK
    if len(value) < least or any(byte <= 0x20 for byte in value) or len(set(value)) < 3:
        return False
    if _STANDS_FOR.match(value) or is_pseudonym(value):
        return False
    letter, digit = _LETTER.search(value), _DIGIT.search(value)
    if strong:
        if named and quoted:
            return True
        if not quoted and (_DOTTED.fullmatch(value) or _IDENTIFIER.fullmatch(value)):
            return False
        if said or not quoted:
            return letter is not None and digit is not None
        return letter is not None and (digit is not None or _SIGN.search(value) is not None)
    if letter is None or digit is None or len(set(value)) < _LEAST_DISTINCT:
        return False
    words = _DOTTED.fullmatch(value) or _IDENTIFIER.fullmatch(value) or _WORDS.fullmatch(value)
    return not (words or b"://" in value)


def flag(text: bytes, start: int) -> Found | None:
    """`--password hunter2` of a command line."""
    match = _FLAG.match(text, start)
    if match is None or not _plausible(
        match.group(2),
        strong=_STRONG_NAME.match(match.group(1)) is not None,
        quoted=False,
        named=False,
        said=False,
    ):
        return None
    return Found(match.start(2), match.end(2), "password", "password")


def user(text: bytes, start: int) -> Found | None:
    """`curl -u name:password`."""
    match = _USER.match(text, start)
    if match is None or is_pseudonym(match.group(1)) or _STANDS_FOR.match(match.group(1)):
        return None
    return Found(match.start(1), match.end(1), "password", "password")


# --- Authorization: Basic … | Bearer … (RFC 7617, RFC 6750)

AUTHORIZATION_CORE: Final = r"(?i:bearer|basic)(?: |%20|\+|\\+u0020){1,2}[A-Za-z0-9+/=._~-]{12}"
_AUTHORIZATION: Final = Lazy(
    r"((?i:bearer|basic))(?: |%20|\+|\\+u0020){1,2}((?:[A-Za-z0-9+=._~-]|\\*/|\\+u00(?:3[dD]|2[bBfF])){12,4000})"
)


def authorization(text: bytes, start: int) -> Found | None:
    """Credentials of Basic, which decode to `name:password`, and tokens of Bearer, which are no words."""
    match = _AUTHORIZATION.match(text, start)
    if match is None or not free_on_the_left(text, start):
        return None
    data = match.group(2).rstrip(b".")
    value = unescaped(data)
    if is_pseudonym(data):
        return None
    if match.group(1).lower() == b"basic":
        try:
            plain = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
        except (binascii.Error, ValueError):
            return None
        if b":" not in plain or not plain.isascii() or any(byte < 0x20 for byte in plain):
            return None
        return Found(match.start(2), match.start(2) + len(data), "basic_authorization", "key")
    if (
        not (_LETTER.search(value) and _DIGIT.search(value))
        or len(value) < _LEAST_WEAK
        or _STANDS_FOR.match(value)
    ):
        return None
    return Found(match.start(2), match.start(2) + len(data), "bearer_token", "key")


# --- scheme://name:password@host, and links that are signed

URL_CORE: Final = r":(?:\\*/){2}[A-Za-z0-9._%+~-]*:[^\x00-\x20/\"'<>\\@]+@"
_URL: Final = Lazy(r":(?:\\*/){2}[A-Za-z0-9._%+~-]*:([^\x00-\x20/\"'<>\\]+)@[A-Za-z0-9\[_{$-]")
_NO_PASSWORD: Final = Lazy(r"(?i)pass(?:word|wd)?|pwd|secret|token|key|x+|\*+|\.+|[$<{%].*")
SIGNED_CORE: Final = (
    r"(?:[?&;]|u0026)(?i:sig|key|X-Amz-Signature|X-Goog-Signature|X-Amz-Security-Token)=[A-Za-z0-9%+/=_-]{8}"
)
_SIGNED: Final = Lazy(
    r"(?:[?&;]|u0026)(?i:sig|key|X-Amz-Signature|X-Goog-Signature|X-Amz-Security-Token)=((?:[A-Za-z0-9%+=_-]|\\*/){32,2000})"
)


def url(text: bytes, start: int) -> Found | None:
    """The password of a URL or a connection string in its form."""
    match = _URL.match(text, start)
    if match is None or is_pseudonym(match.group(1)) or _NO_PASSWORD.fullmatch(match.group(1)):
        return None
    return Found(match.start(1), match.end(1), "url_password", "password")


def signed(text: bytes, start: int) -> Found | None:
    """The signature of a link, which is as good as a password until the link expires."""
    match = _SIGNED.match(text, start)
    if match is None or is_pseudonym(match.group(1)):
        return None
    return Found(match.start(1), match.end(1), "signed_url", "key")


# --- private keys (RFC 7468, RFC 4716, OpenPGP's armour, PuTTY's file)

KEY_CORE: Final = r"(?:-----?-? ?BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY|Private-Lines: [0-9])"
_KEY_HEAD: Final = Lazy(
    r"(?:-----?-? ?BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)? ?-----?|Private-Lines: [0-9]{1,3})"
)
_KEY_END: Final = Lazy(r"-----?-? ?END |Private-MAC")
_LINE_END: Final = r"\\+(?:[nrt]|u000[aAdD9])|%0[AaDd]|[\s\"',;&|]"
# Without an end (a text that was cut): what is still base64.
_KEY_RUN: Final = Lazy(
    r"(?:\\+(?:[nrt]|u000[aAdD9])|%0[AaDd]|\s|[A-Za-z0-9+=:,.()-]|\\*/|\\+u00(?:3[dD]|2[bBfF]))*"
)
KEY_PIECE: Final = Lazy(rf"(?:{_LINE_END}|\\+[\"'])+")
_LEAST_KEY: Final = 40  # characters of the body; a shorter one is a picture of a key
_MOST_KEY: Final = 32768


def private_key(text: bytes, start: int) -> Found | None:
    """The body of a private key, its lines' ends as they are; also one whose end is missing."""
    head = _KEY_HEAD.match(text, start)
    if head is None:
        return None
    first = head.end()
    found = _KEY_END.search(text, first, first + _MOST_KEY)
    last = found.start() if found is not None else -1
    if last < 0 or re.search(rb"[{}<>]", text[first:last]):
        run = _KEY_RUN.match(text, first, first + _MOST_KEY)
        assert run is not None  # it matches the empty text
        last = run.end()
    body = KEY_PIECE.sub(b"", text[first:last])
    if len(body) < _LEAST_KEY or is_pseudonym(body):
        return None
    return Found(first, last, "private_key", "private_key")
