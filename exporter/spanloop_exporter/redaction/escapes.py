"""What a text may look like around and inside a secret: JSON escapes of any depth, percent signs, colours of a terminal."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple


class Found(NamedTuple):
    """A place in a text.

    Args:
        start: in bytes.
        end: in bytes, exclusive.
        kind: what it is, for counts and settings.
        group: the kinds that it is one of, and what its pseudonym is labelled with.
    """

    start: int
    end: int
    kind: str
    group: str


class Lazy:
    """A regular expression over bytes that is compiled when it is first used: all of ours take 20 ms, an agent needs few.

    Args:
        pattern: its characters are bytes (ISO 8859-1).
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def __getattr__(self, name: str) -> Any:
        # Only what is not there yet comes here: after the first use, the methods are the expression's own.
        compiled = re.compile(self._pattern.encode("latin-1"))
        for method in ("match", "search", "fullmatch", "sub", "split", "findall", "finditer"):
            setattr(self, method, getattr(compiled, method))
        return getattr(compiled, name)


# Pieces of patterns. Bytes above 0x7f are those of UTF-8: no-break and narrow spaces, hyphens and dashes of typography.
SPACE: Final = r"(?: |\xc2\xa0|\xe2\x80[\x89\xaf]|%20|\\+u00[aA]0|\\+u20(?:09|2[fF]))"
DASH: Final = r"(?:-|\xe2\x80[\x90-\x95]|\\+u201[0-5])"
PLUS: Final = r"(?:\+|\\+u002[bB]|%2[bB])"
# The same where one of them, or none, may separate digits.
GAP: Final = rf"(?:{SPACE}|{DASH})?"

_LEFT: Final = re.compile(
    rb"(?:[^A-Za-z0-9]|\\[abfnrtv0]|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|%[0-9a-fA-F]{2}|\[[0-9;]{0,5}m)\Z"
)
_LOOK_BACK: Final = 8
_ESCAPE: Final = re.compile(rb"\\+(?:u([0-9a-fA-F]{4})|([nrtbf])|([\"'/]))|\\+")
_CONTROL: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}


def free_on_the_left(text: bytes, start: int) -> bool:
    """Whether no letter or digit stands before `start`, but for those of an escape sequence."""
    return start == 0 or _LEFT.search(text, max(0, start - _LOOK_BACK), start) is not None


def unescaped(data: bytes) -> bytes:
    """What was meant, however often it was put into a JSON string: equal values stay equal at all depths."""
    if b"\\" not in data:
        return data
    return _ESCAPE.sub(_meant, data)


def _meant(match: re.Match[bytes]) -> bytes:
    code, control, itself = match.groups()
    if code:
        return chr(int(code, 16)).encode("utf-8", "replace")
    if control:
        return _CONTROL[control]
    return itself or b"\\"
