"""How many examples hypothesis makes where each one costs a tenth of a second or more."""

from __future__ import annotations

from hypothesis import settings


def few(percent: int) -> int:
    """This share of the examples that the profile asks for: of 100, or of `nightly`'s 1000 (see tests/conftest.py)."""
    return settings().max_examples * percent // 100
