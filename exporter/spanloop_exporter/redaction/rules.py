"""What is looked for: the rules, of which the fast engine gets one expression and each place gets its exact checks."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from spanloop_exporter.redaction import credentials, personal
from spanloop_exporter.redaction.escapes import Found, Lazy, free_on_the_left
from spanloop_exporter.redaction.tokens import TOKENS, Token

# What stands before a number that is one: no letter or digit, or the end of an escape, or a length or tag of protobuf, which
# may be a letter or digit itself.
_ESCAPED: Final = r"\\+[abfnrtv]|\\+u[0-9a-fA-F]{4}|%[0-9a-fA-F]{2}|\[[0-9;]{0,5}m"
_BEFORE: Final = rf"(?:[^0-9A-Za-z._]|{_ESCAPED}|[\x01\x0a\x12\x1a\x22\x2a\x3ab\x80-\xff][0-9A-Za-z._])"
BEFORE_ESCAPED: Final = Lazy(_ESCAPED)

Check = Callable[[bytes, int], Found | None]


class Rule(NamedTuple):
    """A family of kinds that one check decides on.

    Args:
        group: how settings name it.
        core: what the fast engine looks for; matches wherever the check would say yes.
        check: what stands at a place; None: nothing.
        first: the bytes that a match of `core` can begin with.
        number: whether only what is no part of a word or longer number can be one; `core` then begins behind what stands
            before it.
    """

    group: str
    core: str
    check: Check
    first: Iterable[int]
    number: bool = False


_TOKEN_HEADS: Final = [token for token in TOKENS if not token.back]
_TOKEN_MIDDLES: Final = [token for token in TOKENS if token.back]
_DIGIT: Final = Lazy(r"[0-9]")
_LOWER: Final = Lazy(r"[a-z]")
_UPPER: Final = Lazy(r"[A-Z]")
_NEEDS_DIGIT: Final = frozenset({"mollie_key", "lob_key", "notion_secret", "sk_key"})


class _Tokens:
    """The check of tokens. An expression is compiled when it is first needed: all of them would take 11 ms."""

    def __init__(self) -> None:
        self._heads = self._by_first(_TOKEN_HEADS)
        self._middles = self._by_first(_TOKEN_MIDDLES)

    @staticmethod
    def _by_first(tokens: Iterable[Token]) -> list[list[Token]]:
        table: list[list[Token]] = [[] for _ in range(256)]
        for token in tokens:
            for byte in _first_bytes(token.head):
                table[byte].append(token)
        return table

    def heads(self, text: bytes, start: int) -> Found | None:
        # First of all: in base64, where heads abound, it says no at once.
        if text[start : start + 1].isalnum() and not free_on_the_left(text, start):
            return None
        for token in self._heads[text[start]]:
            match = _exact(token).match(text, start)
            if match is None:
                continue
            data = match.group()
            if not _DIGIT.search(data, 4) and (
                token.name in _NEEDS_DIGIT or not (_LOWER.search(data) and _UPPER.search(data))
            ):
                continue
            return Found(start, match.end(), token.name, "key")
        return None

    def middles(self, text: bytes, start: int) -> Found | None:
        for token in self._middles[text[start]]:
            exact = _exact(token)
            for back in range(token.back, token.back - token.varies - 1, -1):
                first = start - back
                if first < 0 or (match := exact.match(text, first)) is None:
                    continue
                if match.end() > start and free_on_the_left(text, first):
                    return Found(first, match.end(), token.name, "key")
        return None


@functools.cache
def _exact(token: Token) -> re.Pattern[bytes]:
    return re.compile(token.exact.encode("latin-1"))


def _first_bytes(head: str) -> Iterable[int]:
    """What a match of a head can begin with."""
    if head.startswith("["):
        return [byte for byte in range(128) if re.match(head[: head.index("]") + 1], chr(byte))]
    if head.startswith("(?:"):
        alternatives, _, rest = head[3:].partition(")")
        return {ord(one[0]) for one in (*alternatives.split("|"), rest.removeprefix("?")) if one}
    return [ord(head.removeprefix("\\")[0])]


def rules() -> list[Rule]:
    """All of them, in the order in which their checks are tried."""
    tokens = _Tokens()
    heads = "|".join(token.core for token in _TOKEN_HEADS)
    middles = "|".join(token.core for token in _TOKEN_MIDDLES)
    digits, letters = b"0123456789", b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [
        Rule("card", personal.CARD_CORE, personal.card, b"23456", number=True),
        Rule("iban", personal.IBAN_CORE, personal.iban, letters[26:], number=True),
        Rule("ip", personal.IPV4_CORE, personal.ipv4, digits[1:], number=True),
        Rule("ip", personal.IPV6_CORE, personal.ipv6, b"23fF", number=True),
        Rule("phone", personal.NANP_CORE, personal.nanp, b"(23456789", number=True),
        Rule("phone", personal.PAIRS_CORE, personal.pairs, b"0", number=True),
        Rule("phone", personal.TRUNK_CORE, personal.trunk, b"(0", number=True),
        Rule("phone", personal.EXIT_CODE_CORE, personal.exit_code, b"0", number=True),
        Rule("phone", personal.INTERNATIONAL_CORE, personal.international, b"+\\%"),
        Rule("phone", personal.NAMED_CORE, personal.named, b"pmwtfcPMWTFC"),
        Rule("private_key", credentials.KEY_CORE, credentials.private_key, b"-P"),
        Rule("key", heads, tokens.heads, range(256)),
        Rule("key", middles, tokens.middles, range(256)),
        Rule("password", credentials.URL_CORE, credentials.url, b":"),
        Rule("key", credentials.AUTHORIZATION_CORE, credentials.authorization, b"bB"),
        Rule("key", credentials.SIGNED_CORE, credentials.signed, b"?&;u"),
        Rule("password", credentials.FLAG_CORE, credentials.flag, b"-"),
        Rule("password", credentials.USER_CORE, credentials.user, b"-"),
        Rule("password", credentials.ASSIGN_CORE, credentials.assignment, letters),
        Rule("email", personal.EMAIL_CORE, personal.email, range(256)),
    ]


def union(rules: Sequence[Rule]) -> str:
    """One expression for all of them."""
    numbers = "|".join(f"(?:{rule.core})" for rule in rules if rule.number)
    others = "|".join(f"(?:{rule.core})" for rule in rules if not rule.number)
    return "|".join(part for part in (f"(?:^|{_BEFORE})(?:{numbers})" if numbers else "", others) if part)


def kinds() -> frozenset[str]:
    """What settings may name: kinds, and groups of kinds."""
    return frozenset(
        {token.name for token in TOKENS}
        | {f"{vendor}_key" for vendor in credentials.VENDORS}
        | {"email", "phone", "card", "iban", "ip", "ipv4", "ipv6", "key", "password", "private_key", "secret"}
        | {"url_password", "signed_url", "bearer_token", "basic_authorization"}
    )
