"""An alias moves under load: eight times here, fifty times with `python -m bench gateway --swaps 50`."""

from __future__ import annotations

from pathlib import Path

from bench.gateway import swaps

SWAPS = 8


def test_swaps_under_load(tmp_path: Path) -> None:
    result = swaps.run(SWAPS, tmp_path)
    assert result.failures == []
    assert result.mixed == []
    assert result.wrong_spans == []
    assert result.missing_spans == []
    # Else nothing was tried: each swap finds streams in the middle of their answers.
    assert result.across >= SWAPS * swaps.STREAMS / 2
