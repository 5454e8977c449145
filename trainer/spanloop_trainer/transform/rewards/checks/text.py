"""Answers that are a text or a number."""

from __future__ import annotations

import re
from fractions import Fraction

from spanloop_trainer.transform.rewards.episode import Episode

# 1,234.5   -3e-4   .5   3/4   (a minus sign may be U+2212)
_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)\.?|\.(?=\d))\d*(?:[eE][-+]?\d{1,3}(?!\w))?(?:/[1-9]\d*)?(?![\d])"
)
_BOX = "\\boxed{"
_FRACTION = re.compile(r"(?<!\d)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
# A longer run of digits is no number that anybody meant.
_MAX_DIGITS = 400


def exact_match(episode: Episode, *, ignore_case: bool = False) -> float | None:
    """1 where the answer is `expected`, without the space around both; else 0.

    None: the task has no `expected`, or the last call failed.
    """
    if episode.expected is None or episode.status != "ok":
        return None
    answer, expected = (episode.answer or "").strip(), episode.expected.strip()
    if ignore_case:
        answer, expected = answer.casefold(), expected.casefold()
    return float(answer == expected)


def numeric_match(episode: Episode, *, tolerance: float = 1e-6) -> float | None:
    """1 where the last number of the answer, or of its last `\\boxed{…}`, is that of `expected`; else 0, an answer without one too.

    Args:
        tolerance: relative to `expected`; 0: equal.

    Raises:
        ValueError: `expected` holds no number.
    """
    if episode.expected is None or episode.status != "ok":
        return None
    expected, answer = last_number(episode.expected), last_number(episode.answer or "")
    if expected is None:
        raise ValueError(f"expected is no number: {episode.expected[:80]!r}")
    if answer is None:
        return 0.0
    return float(abs(answer - expected) <= Fraction(tolerance) * abs(expected))


def last_number(text: str) -> Fraction | None:
    """The last number in a text, exactly, of its last `\\boxed{…}` if it has one; None: there is none."""
    text = _FRACTION.sub(r"\1/\2", _boxed(text))
    found = [match for match in _NUMBER.findall(text) if any(digit.isdigit() for digit in match)]
    if not found or len(found[-1]) > _MAX_DIGITS:
        return None
    number, _, divisor = found[-1].replace(",", "").replace("\u2212", "-").rstrip(".").partition("/")
    return Fraction(number.rstrip(".")) / (int(divisor) if divisor else 1)


def _boxed(text: str) -> str:
    _, box, inside = text.rpartition(_BOX)
    depth = 1
    for place, mark in enumerate(inside if box else ""):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if not depth:
            return inside[:place]
    return inside
