"""Stores away, disks full, clocks wrong, senders that repeat themselves; small. The large run is `python -m bench.faults`."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.faults.scenarios import SCENARIOS, Size, Skipped
from tests.helpers.stores import laid

SIZE = Size(requests=20, outage_s=0.0, disk_mib=40, restarts=1)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(tmp_path: Path, name: str) -> None:
    laid(tmp_path / "store")
    try:
        tally = SCENARIOS[name](tmp_path / "store", SIZE)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert tally.acknowledged
    assert tally.clean, tally
