"""A text that a stream cut into pieces: looked at as a whole, so that nothing passes in two halves."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from spanloop_exporter.redaction.redactor import Redactor

_LITERAL: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_NUMBERS: Final = re.compile(rb"[0-9.eE+-]+")
_Place = tuple[int, int, int]  # number of the piece, start and end in it


def redact_stream(pieces: Sequence[bytes], redactor: Redactor) -> list[bytes] | None:
    """The pieces, redacted as one text and cut where they were; None: nothing changed.

    Plain pieces are put together; of pieces that are JSON of one form, the strings in the same place of it.
    """
    changed: list[bytearray] | None = None
    for places in _texts(pieces):
        current = [bytes((changed or pieces)[number][start:end]) for number, start, end in places]
        # Numbers of their own (an index, a time) would add up to anything.
        if len(current) < 2 or all(_NUMBERS.fullmatch(text.strip()) for text in current):
            continue
        text = b"".join(current)
        redacted = redactor.redact(text)
        if redacted is text:
            continue
        changed = changed or [bytearray(piece) for piece in pieces]
        position = 0
        for number, start, end in places:
            changed[number][start:end] = redacted[position : position + end - start]
            position += end - start
    return None if changed is None else [bytes(piece) for piece in changed]


def _texts(pieces: Sequence[bytes]) -> Iterator[list[_Place]]:
    """The places that belong together, in order."""
    if not all(piece[:1] in (b"{", b"[") for piece in pieces):
        yield [(number, 0, len(piece)) for number, piece in enumerate(pieces)]
        return
    forms: defaultdict[bytes, list[list[_Place]]] = defaultdict(list)
    for number, piece in enumerate(pieces):
        literals = [(number, *match.span(1)) for match in _LITERAL.finditer(piece)]
        forms[_NUMBERS.sub(b"0", _LITERAL.sub(b'"', piece))].append(literals)
    for form in forms.values():
        yield from (list(row) for row in zip(*form, strict=True))
