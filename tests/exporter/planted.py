"""Values to plant: one or more of each kind that redaction knows, made from a fixed seed.

None is written out in this file, so that no scanner of secrets takes the repository for a leak.
"""

from __future__ import annotations

import base64
import json
import random
import re._constants as constants
import re._parser as parser
from typing import Any, NamedTuple

from spanloop_exporter.redaction.credentials import VENDORS
from spanloop_exporter.redaction.tokens import TOKENS

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_BODY = _ALPHABET + "+/"


class Planted(NamedTuple):
    """A value and the text around it.

    Args:
        kind: what it is.
        secret: what must be nowhere.
        text: where it stands; the secret is in it once.
    """

    kind: str
    secret: str
    text: str


def from_pattern(pattern: str, chance: random.Random) -> str:
    """A text that matches a regular expression (of those that the table of tokens uses)."""
    return "".join(_piece(item, chance) for item in parser.parse(pattern))


def _piece(item: Any, chance: random.Random) -> str:
    operation, value = item
    if operation is constants.LITERAL:
        return chr(value)
    if operation is constants.IN:
        allowed = [chr(code) for part in value for code in _codes(part)]
        return chance.choice(allowed)
    if operation is constants.BRANCH:
        # The first alternative is the plain one; the others are how JSON and URLs write it.
        return "".join(_piece(inner, chance) for inner in value[1][0])
    if operation is constants.SUBPATTERN:
        return "".join(_piece(inner, chance) for inner in value[3])
    if operation in (constants.MAX_REPEAT, constants.MIN_REPEAT):
        least, most, inner = value
        count = chance.randint(least, min(most, least + 4))
        if len(inner) == 1 and inner[0] == (constants.LITERAL, ord("\\")):
            count = 0
        return "".join(_piece(one, chance) for _ in range(count) for one in inner)
    if operation in (constants.ASSERT_NOT, constants.AT):
        return ""
    raise AssertionError(f"the generator does not know {operation}")


def _codes(part: Any) -> list[int]:
    operation, value = part
    if operation is constants.LITERAL:
        return [value]
    low, high = value
    return list(range(low, high + 1))


def tokens(seed: int = 7) -> list[Planted]:
    """One of each token of the table."""
    chance = random.Random(seed)
    found = []
    for token in TOKENS:
        value = from_pattern(token.exact, chance)
        while not any(character.isdigit() for character in value[4:]):
            value = from_pattern(token.exact, chance)
        around = "https{}" if token.name == "sentry_dsn" else "it says {}"
        found.append(Planted(token.name, value, around.format(value)))
    return found


def _random(chance: random.Random, count: int, alphabet: str = _ALPHABET) -> str:
    # A digit and both cases are always there: what has none is a word to the checks.
    return "a7Q" + "".join(chance.choices(alphabet, k=count - 3))


def _key(chance: random.Random, name: str) -> Planted:
    lines = ["".join(chance.choices(_BODY, k=64)) for _ in range(4)]
    body = "\n".join(lines)
    return Planted("private_key", lines[2], f"-----BEGIN {name}-----\n{body}\n-----END {name}-----\n")


def _card(chance: random.Random, start: str, length: int) -> str:
    digits = start + "".join(chance.choices("0123456789", k=length - len(start) - 1))
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 - place % 2)
        total += value - 9 * (value > 9)
    return digits + str(-total % 10)


def _iban(chance: random.Random, country: str, length: int) -> str:
    body = "".join(chance.choices("0123456789", k=length - 4))
    number = int("".join(str(int(character, 36)) for character in body + country + "00"))
    return f"{country}{98 - number % 97:02d}{body}"


def persons(seed: int = 11) -> list[Planted]:
    """E-mail, phone, card, IBAN and IP in the forms that people write them in."""
    chance = random.Random(seed)
    values = [
        ("email", "jane.doe+news@mail.example.org"),
        ("email", "j_d-4@sub.firm.co.uk"),
        ("email", "müller@bücher.example.de"),
        ("phone", "+49 171 2345 678"),
        ("phone", "+1 (415) 555-2671"),
        ("phone", "+442079460958"),
        ("phone", "+33 6 12 34 56 78"),
        ("phone", "+1\u2011415\u2011555\u20112671"),
        ("phone", "0049 171 2345678"),
        ("phone", "(415) 555-2671"),
        ("phone", "415-555-2671"),
        ("phone", "415.555.2671"),
        ("phone", "020 7946 0958"),
        ("phone", "0171/2345678"),
        ("phone", "01 42 68 53 00"),
        ("ipv4", "203.0.113.77"),
        ("ipv4", "10.20.30.40"),
        ("ipv6", "2001:db8:85a3::8a2e:370:7334"),
        ("ipv6", "fe80::1ff:fe23:4567:890a"),
        ("ipv6", "2001:0db8:0000:0000:0000:ff00:0042:8329"),
    ]
    values += [
        ("card", _card(chance, start, length))
        for start, length in (
            ("4", 16),
            ("55", 16),
            ("2223", 16),
            ("37", 15),
            ("36", 14),
            ("6011", 16),
            ("3530", 16),
            ("62", 16),
        )
    ]
    card = _card(chance, "41", 16)
    values.append(("card", " ".join(card[at : at + 4] for at in range(0, 16, 4))))
    values.append(("card", "-".join(card[at : at + 4] for at in range(0, 16, 4))))
    for country, length in (("DE", 22), ("GB", 22), ("NL", 18), ("FR", 27), ("NO", 15), ("MT", 31)):
        iban = _iban(chance, country, length)
        if country in ("GB", "NL", "MT", "FR"):  # real ones have letters; digits are valid all the same
            values.append(("iban", iban))
        else:
            values.append(("iban", " ".join(iban[at : at + 4] for at in range(0, length, 4))))
    found = [Planted(kind, value, f"they wrote {value} in it") for kind, value in values]
    found += [
        Planted("phone", "4155552671", "phone: 4155552671"),
        Planted("phone", "015112345678", "Tel. 015112345678"),
        Planted("phone", "5550123", '{"mobile_number": "5550123"}'),
    ]
    return found


def credentials(seed: int = 13, *, every_vendor: bool = False) -> list[Planted]:
    """Passwords and keys that their surroundings give away; of vendors that only a name gives away, a sixth will do."""
    chance = random.Random(seed)
    found = []

    def add(kind: str, form: str, value: str) -> None:
        found.append(Planted(kind, value, form.format(value)))

    for form in (
        "password={}",
        "PASSWORD: {}",
        "db_password = '{}'",
        "my password is {} ok",
        'mysql --user=root --password {} -e "select 1"',
        "Server=db;User Id=sa;Password={};Encrypt=true",
        "Pwd={}; Database=x",
        "passphrase: {}",
        "curl -u bob:{} https://example.com",
        "postgres" + "://bob:{}@db.example.com:5432/app",
        "redis" + "://:{}@cache:6379/0",
        "amqps" + "://svc:{}@mq.example.com/v",
        "https" + "://bob:{}@example.com/repo.git",
    ):
        add("password", form, "h" + _random(chance, 11))
    found.append(
        Planted("password", 'pa"ss\\w0rd{x}', json.dumps({"user": "bob", "password": 'pa"ss\\w0rd{x}'}))
    )
    found.append(Planted("password", "swordfish", json.dumps({"password": "swordfish"})))
    for form in (
        "api_key={}",
        '{{"apiKey": "{}"}}',
        "X-Api-Key: {}",
        "client_secret: {}",
        "SECRET_KEY_BASE={}",
        "aws_secret_access_key = {}",
        "auth_token={}",
        "AccountName=x;AccountKey={};EndpointSuffix=y",
        "Endpoint=sb://x;SharedAccessKey={}",
        "private_key: {}",
        "Authorization: Bearer {}",
    ):
        add("secret", form, _random(chance, 40))
    basic = base64.b64encode(b"bob:" + _random(chance, 9).encode()).decode()
    add("basic_authorization", "Authorization: Basic {}", basic)
    add("signed_url", "https://x.blob.core.windows.net/c/b?sv=2024&sig={}&se=1", _random(chance, 44))
    add(
        "signed_url",
        "https://b.s3.amazonaws.com/k?X-Amz-Signature={}",
        "".join(chance.choices("0123456789abcdef", k=64)),
    )
    for vendor in VENDORS[:: 1 if every_vendor else 6]:
        add(f"{vendor}_key", vendor.upper() + "_API_KEY={}", _random(chance, 32, "0123456789abcdef"))
    for name in (
        "PRIVATE KEY",
        "RSA PRIVATE KEY",
        "EC PRIVATE KEY",
        "OPENSSH PRIVATE KEY",
        "ENCRYPTED PRIVATE KEY",
        "PGP PRIVATE KEY BLOCK",
    ):
        found.append(_key(chance, name))
    return found


def everything(*, every_vendor: bool = False) -> list[Planted]:
    """All of them."""
    return [*tokens(), *persons(), *credentials(every_vendor=every_vendor)]
