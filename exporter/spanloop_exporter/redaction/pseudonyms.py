"""Pseudonyms: as long in bytes as what they stand for, the same for the same value under one salt, and known again as such."""

from __future__ import annotations

import hmac
import re
from typing import Final

# Consonants: no digit that a check of numbers could take, no word, and nothing that JSON, a URL or a shell would escape.
_LETTERS: Final = b"bcdfghjklmnpqrstvwxz"
_PAIRS: Final = [bytes((low, high)) for high in _LETTERS for low in _LETTERS]
_LEAST_LETTERS: Final = 6  # 64 million values; below that, the label is left out in their favour
_MOST_LETTERS: Final = 24  # 2^103 values; what is longer is filled up, and costs a model few tokens
_MARK: Final = b"~"
_PSEUDONYM: Final = re.compile(rb"~(?:[a-z]{2,10}~)?[bcdfghjklmnpqrstvwxz]*~*")
# Numbers in the place of a number: 99, digits of the hash, and three digits that are computed from the others.
_LEAD: Final = b"99"
_CHECK_DIGITS: Final = 3
_CHECK_MODULUS: Final = 997
_LEAST_NUMBER: Final = 8
_MAX_KNOWN: Final = 8192


class Pseudonyms:
    """Makes them. Threads may share one.

    Args:
        salt: whoever has it can test guesses of a value; without it, a pseudonym says nothing but "equal" or "different".
    """

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._known: dict[tuple[bytes, bytes], bytes] = {}

    def text(self, label: bytes, value: bytes, size: int) -> bytes:
        """A pseudonym of letters.

        Args:
            label: what kind of thing it was, as it is shown; lower-case letters.
            value: what it stands for, without the escapes of the text that it was found in.
            size: bytes, 1 or more.
        """
        head = _MARK + label + _MARK
        if size < len(head) + _LEAST_LETTERS:
            head = _MARK
        letters = self._known.get((label, value))
        if letters is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            letters = self._known[label, value] = _letters(self._number(label, value))
        return (head + letters[: size - len(head)]).ljust(size, _MARK)

    def number(self, label: bytes, value: bytes, size: int) -> bytes:
        """A pseudonym of digits, for the place of a number in JSON, where letters would break the document.

        Shorter than 8 digits it is all nines: there is no room for a hash and a check.
        """
        if size < _LEAST_NUMBER:
            return b"9" * size
        digits = size - len(_LEAD) - _CHECK_DIGITS
        body = _LEAD + b"%0*d" % (digits, self._number(label, value) % 10**digits)
        return body + _check(body)

    def _number(self, label: bytes, value: bytes) -> int:
        return int.from_bytes(hmac.digest(self._salt, label + b"\0" + value, "sha256"), "big")


def _letters(number: int) -> bytes:
    """The lowest digits of a number to the base of the alphabet; two at a time, as divisions are what it takes."""
    pairs = []
    for _ in range(_MOST_LETTERS // 2):
        number, index = divmod(number, len(_PAIRS))
        pairs.append(_PAIRS[index])
    return b"".join(pairs)


def is_pseudonym(data: bytes) -> bool:
    """Whether all of it is one, of any salt."""
    if data.isdigit():
        if len(data) < _LEAST_NUMBER:
            return data == b"9" * len(data)
        return data.startswith(_LEAD) and data.endswith(_check(data[:-_CHECK_DIGITS]))
    return _PSEUDONYM.fullmatch(data) is not None


def inside_pseudonym(text: bytes, start: int, end: int) -> bool:
    """Whether text[start:end] lies within one."""
    first = text.rfind(_MARK, max(0, start - 64), start + 1)
    while first >= 0:
        found = _PSEUDONYM.match(text, first)
        if found is not None and found.end() >= end and found.end() > found.start() + 1:
            return True
        first = text.rfind(_MARK, max(0, start - 64), first)
    return is_pseudonym(text[start:end])


def _check(body: bytes) -> bytes:
    return b"%0*d" % (_CHECK_DIGITS, int(body) % _CHECK_MODULUS)
