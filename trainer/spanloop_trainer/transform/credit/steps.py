"""The steps of every episode in order, what each one earned, and the discounted sum of what comes (`return_`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]


def codes(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with `episode` and `task` (u64): hashes of the ids, since windows over numbers take a third of the time.

    With 64 bits, two of a million ids are the same once in ten million builds.
    """
    return rows.with_columns(
        pl.col("episode_id").hash().alias("episode"), pl.struct("task_id", "agent").hash().alias("task")
    )


def steps_of(rows: pl.DataFrame, gamma: float = 1.0) -> pl.DataFrame:
    """One row a step, step after step of an episode; answers that the episode did not go on with are no steps.

    A failed call is no step of the decision process: it has the time of the step before it, what it was given is paid
    to those before it, and no method compares it with anything.

    Args:
        rows: of stage E (`reward_episode`, `reward_call`, `taken`), or of a dataset, whose `return_` tells what was earned.
        gamma: that the dataset's `return_` was made with.

    Returns:
        `at` (place in `rows`), `episode` and `group` (u64, equal: the same one; a group is the rollouts of one task by one agent,
        which for an episode is that of its first step), `step`, `acted` (status ok), `time` (0, 1, … within the episode), `earned`
        (f64, null: nothing was judged here; the episode's own reward is paid at its last step), `total` (sum of `earned` over the
        episode, null: unscored), and `state_code`, `value` where rows have them (`state` stands in for the code).
    """
    if "state_code" not in rows.columns and "state" in rows.columns:
        rows = rows.with_columns(pl.col("state").hash().alias("state_code"))
    judged = "reward_episode" in rows.columns
    told = ("reward_episode", "reward_call") if judged else ("return_", "choice")
    kept = [name for name in ("state_code", "value") if name in rows.columns]
    acted = pl.col("status").cast(pl.String) == "ok"
    steps = codes(rows.with_row_index("at"))
    if judged:
        steps = steps.filter("taken")
    steps = steps.select("at", "episode", "task", "step", acted.alias("acted"), *told, *kept)
    if judged:
        steps = steps.sort("episode", "step", "at")
    else:
        # Of several answers the one with a return was taken; where none has, it does not matter which.
        steps = steps.sort("episode", "step", pl.col("return_").is_null(), "choice").unique(
            ["episode", "step"], keep="first", maintain_order=True
        )
    steps = steps.with_columns(
        pl.col("task").first().over("episode").alias("group"),
        (pl.col("acted").cast(pl.Int64).cum_sum().over("episode") - 1).clip(lower_bound=0).alias("time"),
    )
    follows = pl.col("episode").shift(-1) == pl.col("episode")
    earned: pl.Expr
    if judged:
        paid = pl.when(~follows.fill_null(value=False)).then("reward_episode")
        earned = pl.when(paid.is_not_null() | pl.col("reward_call").is_not_null()).then(
            paid.fill_null(0.0) + pl.col("reward_call").fill_null(0.0)
        )
    else:
        waited = pl.col("time").shift(-1) - pl.col("time")
        later = pl.when(follows).then(pl.lit(gamma, pl.Float64) ** waited * pl.col("return_").shift(-1))
        difference = pl.col("return_") - later.fill_null(0.0)
        # What is left of rounding was not earned.
        earned = (
            pl.when(difference.abs() > 1e-12 * pl.col("return_").abs())
            .then(difference)
            .otherwise(0 * difference)
        )
    steps = steps.with_columns(earned.alias("earned"))
    steps = steps.with_columns(returns(steps, 1.0).alias("total"))
    return steps.select(
        "at",
        "episode",
        "group",
        "step",
        "acted",
        "time",
        "earned",
        pl.col("total").first().over("episode"),
        *kept,
    )


def decayed_sums(values: Floats, decay: Floats) -> Floats:
    """Σ over j ≥ i of values[j] · decay[i] · … · decay[j-1], for every place i; a decay of 0 ends a run.

    By doubling: after k rounds place i holds the sum over the 2^k places from it on. No power of a small factor is
    divided by another, as it would be with running products, and what lies beyond a run's end never enters.
    """
    sums, decay = values.copy(), decay.copy()
    places = np.arange(len(values))
    ahead = np.minimum(places + 1, len(values) - 1)
    while decay.any():
        # Only where there is a factor: 0 times infinity would carry one bad reward into the run before.
        carried = np.multiply(decay, sums[ahead], out=np.zeros_like(sums), where=decay > 0)
        sums = sums + carried
        decay = decay * decay[ahead]
        ahead = ahead[ahead]
    return sums


def decay_of(steps: pl.DataFrame, factor: float) -> Floats:
    """`factor` to the power of the time to the next step of the episode; 0 at its last."""
    same = (pl.col("episode") == pl.col("episode").shift(-1)).fill_null(value=False)
    waited = pl.col("time").shift(-1) - pl.col("time")
    decay = pl.when(same).then(pl.lit(factor, pl.Float64) ** waited).otherwise(0.0)
    return steps.select(decay.alias("decay"))["decay"].to_numpy().astype(np.float64)


def returns(steps: pl.DataFrame, gamma: float) -> pl.Series:
    """G_t = Σ over k ≥ t of γ^(k - t) r_k; null where nothing was judged from that step on.

    Sutton and Barto, Reinforcement Learning, second edition, equation 3.8.
    """
    earned = steps["earned"].fill_null(0.0).to_numpy().astype(np.float64)
    sums = decayed_sums(earned, decay_of(steps, gamma))
    # How many were judged from here on: a sum of ones.
    judged = steps["earned"].is_not_null().to_numpy().astype(np.float64)
    known = decayed_sums(judged, decay_of(steps, 1.0)) > 0
    return pl.select(pl.when(pl.Series(known)).then(pl.Series(sums)).alias("return_"))["return_"]
