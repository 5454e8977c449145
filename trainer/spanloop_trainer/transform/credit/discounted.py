"""Every step gets what its episode got, less the further it is from the end."""

from __future__ import annotations

from typing import Any

import polars as pl

from spanloop_trainer.config.credit import Credit
from spanloop_trainer.transform.credit.method import Method, number


def _to_go() -> pl.Expr:
    return pl.col("time").max().over("episode") - pl.col("time")


def advantage(steps: pl.DataFrame, credit: Credit) -> pl.DataFrame:
    """A_t = γ^(T - t) R, T the time of the last step.

    A reward at the end, discounted: Sutton and Barto, second edition, equation 3.8 with r_k = 0 for k < T.
    """
    gamma = pl.lit(credit.gamma, pl.Float64)
    return steps.with_columns((gamma ** _to_go() * pl.col("total")).alias("advantage"))


def explain(steps: pl.DataFrame, credit: Credit, step: dict[str, Any]) -> list[str]:
    """The power and the product."""
    last = steps.filter(pl.col("episode") == step["episode"])["time"].max()
    to_go = int(last) - step["time"]  # type: ignore[arg-type]  # Polars types max() as any scalar; `time` is an integer
    return [
        f"discounted: {to_go} steps before the end, {number(credit.gamma)}^{to_go} × {number(step['total'])}"
        f" = {number(step['advantage'])}"
    ]


METHOD = Method(advantage, explain, "Sutton and Barto 2018, equation 3.8, reward at the end")
