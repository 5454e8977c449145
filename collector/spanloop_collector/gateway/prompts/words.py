"""Text as words, the unit in which prompts are compared; a date, a time, an id or an address is one word."""

from __future__ import annotations

import re
import time
from typing import Final, NamedTuple

_MONTH: Final = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?"
    r"|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
)
_DAY: Final = r"(?:Mon|Tue(?:s)?|Wed(?:nes)?|Thu(?:rs)?|Fri|Sat(?:ur)?|Sun)(?:day)?"
_NTH: Final = r"\d{1,2}(?:st|nd|rd|th)?"
_CLOCK: Final = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?: ?[AaPp](?:[Mm]\b|\.[Mm]\.))?(?: ?(?:UTC|GMT|Z)\b| ?[+-]\d{2}:?\d{2}\b)?"
# What changes by itself: dates and times, ids, addresses, long numbers.
_VALUES: Final = (
    r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b",
    r"\b[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+\b",
    rf"\b\d{{4}}-\d{{2}}-\d{{2}}(?:[T ]{_CLOCK})?",
    r"\b\d{1,4}[/.]\d{1,2}[/.]\d{1,4}\b",
    r"\d{2,4}年\d{1,2}月\d{1,2}日",
    rf"\b(?:{_DAY},? )?{_MONTH}\.? {_NTH}(?:,? \d{{4}})?\b",
    rf"\b(?:{_DAY},? )?{_NTH}\.? {_MONTH}\.?(?:,? \d{{4}})?\b",
    rf"\b{_MONTH},? \d{{4}}\b",
    rf"\b{_DAY}\b",
    rf"\b{_CLOCK}",
    r"\b(?=[0-9a-fA-F]*\d)(?=[0-9a-fA-F]*[a-fA-F])[0-9a-fA-F]{8,}\b",
    r"\b[A-Za-z_-]{0,64}\d{4,}[\w-]*\b",
    r"~(?:[a-z]{2,10}~)?[bcdfghjklmnpqrstvwxz]{2,24}~*(?![\w~])",  # what redaction puts in the place of secrets
)
_WORD: Final = re.compile(
    # One look ahead keeps the long alternatives away from most words.
    rf"(?=[^\s\d@]{{0,64}}[\d@]|~|{_MONTH}\b|{_DAY}\b)(?P<value>{'|'.join(_VALUES)})"
    r"|(?P<number>\d+(?:[.,]\d+)*%?)"
    r"|(?P<sign>[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])"
    r"|(?P<word>[^\W\d]\w*(?:['’]\w+)*)"
    r"|(?P<space>\s+)"
    r"|(?P<mark>[^\w\s])",
)
# After so many words a long text lets other threads run: the gateway answers calls in one of them.
_BREATH: Final = 250
_BREATH_S: Final = 0.0001


class Place(NamedTuple):
    """A template's place among words; equal to no word."""

    name: str


Token = str | Place


def split(text: str) -> list[Token]:
    """The words, blanks and marks of a text; joined they are the text."""
    found: list[Token] = []
    for match in _WORD.finditer(text):
        found.append(match[0])
        if not len(found) % _BREATH:
            breathe()
    return found


def breathe() -> None:
    """Let the thread that answers calls run."""
    time.sleep(_BREATH_S)


def is_word(token: Token) -> bool:
    """Whether it counts as a word: no place, blank or mark."""
    return isinstance(token, str) and (
        token[0].isalnum() or token[0] == "_" or (token[0] == "~" and len(token) > 1)
    )


def kind_of(token: str) -> str:
    """`value`, `number`, `word` or `sign`."""
    match = _WORD.fullmatch(token)
    return (match.lastgroup if match else None) or "word"
