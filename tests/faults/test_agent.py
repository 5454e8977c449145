"""Agents that die with spans on their hands: what had ended is in `otel_traces`, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.faults.agent import agents_die
from tests.helpers.stores import laid


@pytest.mark.parametrize(
    ("fault", "away"),
    [("SIGKILL", True), ("fork", False)],
    ids=["sigkill-collector-away", "fork"],
)
def test_nothing_that_ended_is_lost_or_doubled(tmp_path: Path, fault: str, away: bool) -> None:
    laid(tmp_path / "store")
    tally = agents_die(tmp_path, fault, 1, away=away)
    assert tally.acknowledged > 2, "only the clean agent at the end ended spans"
    assert tally.clean, tally
