"""Every step gets what its episode got."""

from __future__ import annotations

from typing import Any

import polars as pl

from spanloop_trainer.config.credit import Credit
from spanloop_trainer.transform.credit.method import Method, number


def advantage(steps: pl.DataFrame, _: Credit) -> pl.DataFrame:
    """A_t = R = Σ_k r_k.

    The reward of a whole trajectory as the weight of each of its actions: REINFORCE without a baseline, Williams 1992,
    section 5 (episodic REINFORCE).
    """
    return steps.with_columns(pl.col("total").alias("advantage"))


def explain(_: pl.DataFrame, __: Credit, step: dict[str, Any]) -> list[str]:
    """That it is the episode's."""
    return [f"identical: every step gets the episode's return, {number(step['total'])}"]


METHOD = Method(advantage, explain, "Williams 1992, Machine Learning 8, section 5")
