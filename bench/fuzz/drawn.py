"""Cases of a hypothesis strategy, as many as asked for and the same for one seed, each given to a check."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

_Case = TypeVar("_Case")


def check_drawn(cases: st.SearchStrategy[_Case], check: Callable[[_Case], None], n: int, number: int) -> None:
    """Gives n drawn cases to a check, and raises what that raises. Nothing is shrunk, replayed or timed.

    Args:
        cases: where they come from.
        check: what is done with each.
        n: how many.
        number: of the run; one number draws the same cases again.
    """

    @seed(number)
    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def one(case: _Case) -> None:
        check(case)

    one()
