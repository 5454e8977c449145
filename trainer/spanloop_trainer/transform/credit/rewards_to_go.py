"""Every step gets the discounted sum of what was earned from it on."""

from __future__ import annotations

from typing import Any

import polars as pl

from spanloop_trainer.config.credit import Credit
from spanloop_trainer.transform.credit.method import Method, number


def advantage(steps: pl.DataFrame, _: Credit) -> pl.DataFrame:
    """A_t = G_t = Σ over k ≥ t of γ^(k - t) r_k; null after the last step that was judged.

    What was earned before an action is none of its doing: Sutton et al. 2000 (policy gradient theorem), and Sutton and
    Barto, second edition, equation 3.8 and section 13.3.
    """
    return steps.with_columns(pl.col("return_").alias("advantage"))


def explain(steps: pl.DataFrame, credit: Credit, step: dict[str, Any]) -> list[str]:
    """What came, by step."""
    later = steps.filter(
        (pl.col("episode") == step["episode"])
        & (pl.col("step") >= step["step"])
        & pl.col("earned").is_not_null()
        & (pl.col("earned") != 0)
    )
    if step["advantage"] is None:
        return ["rewards to go: none"]
    terms = [
        f"{number(credit.gamma)}^{time - step['time']} × {number(earned)} (step {place})"
        for place, time, earned in later.select("step", "time", "earned").iter_rows()
    ]
    return [
        f"rewards to go: {' + '.join(terms[:8]) or '0'}"
        f"{' + …' if len(terms) > 8 else ''} = {number(step['advantage'])}"
    ]


METHOD = Method(advantage, explain, "Sutton and Barto 2018, equation 3.8 and section 13.3")
