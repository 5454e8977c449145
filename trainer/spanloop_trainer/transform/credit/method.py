"""What a method of credit is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from spanloop_trainer.config.credit import Credit


@dataclass(frozen=True)
class Method:
    """One way to share credit.

    Attributes:
        advantage: gives `steps` (see `steps.steps_of`, and `return_`) a column `advantage` (f64, null: none); keeps the rows' order.
            It may add columns, which `explain` then finds.
        explain: lines of text for one step, which is one row of what `advantage` returned.
        source: paper and equation.
    """

    advantage: Callable[[pl.DataFrame, Credit], pl.DataFrame]
    explain: Callable[[pl.DataFrame, Credit, dict[str, Any]], list[str]]
    source: str


def number(value: float | None) -> str:
    """A number as people write it: at most four digits that matter."""
    return "none" if value is None else f"{value:.4g}"


def numbers(values: list[float], most: int = 8) -> str:
    """Several of them; the first `most`."""
    shown = ", ".join(number(value) for value in values[:most])
    return f"{shown}, … ({len(values) - most} more)" if len(values) > most else shown
