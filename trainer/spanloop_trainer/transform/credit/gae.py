"""Generalised advantage: what a step earned beyond what the value of its state promised."""

from __future__ import annotations

from typing import Any

import polars as pl

from spanloop_trainer.config.credit import Credit
from spanloop_trainer.transform.credit.method import Method, number
from spanloop_trainer.transform.credit.steps import decay_of, decayed_sums


def advantage(steps: pl.DataFrame, credit: Credit) -> pl.DataFrame:
    """A_t = Σ over l ≥ 0 of (γλ)^l δ_(t+l), δ_t = r_t + γ V(s_(t+1)) - V(s_t), V = 0 behind the last step.

    GAE, arXiv 1506.02438 (Schulman et al. 2016), equation 16. λ = 0 gives δ_t (equation 17), λ = 1 the return less the
    value (equation 18). V is the column `value`. Null in an episode that is unscored, or in which a step lacks its value, and for
    failed calls, which are no actions.
    """
    gamma, lambda_ = float(credit.gamma or 1.0), float(credit.lambda_ or 0.0)
    acted = pl.col("acted")
    value = pl.when(acted & pl.col("value").is_finite()).then("value")
    after = value.shift(-1).backward_fill().over("episode").fill_null(0.0)
    known = (value.is_not_null() | ~acted).all().over("episode") & pl.col("total").is_not_null()
    steps = steps.with_columns(value.alias("value"), after.alias("value_after"), known.alias("known"))
    # A failed call stands at the time of the step before it: what it was given is that step's, and no value moves.
    delta = pl.col("earned").fill_null(0.0) + pl.when(acted).then(
        gamma * pl.col("value_after") - pl.col("value").fill_null(0.0)
    ).otherwise(0.0)
    deltas = steps.select(delta.alias("delta"))["delta"]
    sums = decayed_sums(deltas.to_numpy(), decay_of(steps, gamma * lambda_))
    return steps.with_columns(deltas, pl.Series("sum", sums)).with_columns(
        pl.when(acted & pl.col("known")).then("sum").alias("advantage")
    )


def explain(steps: pl.DataFrame, credit: Credit, step: dict[str, Any]) -> list[str]:
    """δ of this step, and the sum with those after it."""
    if step["advantage"] is None:
        if not step["acted"]:
            return ["gae: the call failed, so there is no action to judge"]
        return ["gae: a step of this episode has no value in the file"]
    later = steps.filter(
        (pl.col("episode") == step["episode"]) & (pl.col("step") > step["step"]) & pl.col("acted")
    )
    return [
        f"δ = {number(step['earned'] or 0.0)} + {number(credit.gamma)} × {number(step['value_after'])} -"
        f" {number(step['value'])} = {number(step['delta'])}",
        f"with the δ of {later.height} later steps, each step by {number(credit.gamma)} × {number(credit.lambda_)}:"
        f" {number(step['advantage'])}",
    ]


METHOD = Method(advantage, explain, "arXiv 1506.02438 equation 16")
