"""Comparison within groups: the rollouts of one task by one agent, whatever their lengths."""

from __future__ import annotations

from typing import Literal

import polars as pl

from spanloop_trainer.transform.credit.steps import codes

# Rewards that differ by less than this, relative to the largest, are one reward: the rest is rounding, and divided by its own
# standard deviation it would look like a difference of ±1.
_SAME = 1e-9

GROUP = ("group",)


def spread_free(value: pl.Expr, group: tuple[str, ...]) -> pl.Expr:
    """Whether all values of a group are the same, up to rounding."""
    low, high = value.min().over(group), value.max().over(group)
    return high - low <= _SAME * pl.max_horizontal(low.abs(), high.abs())


def relative(value: pl.Expr, group: tuple[str, ...], *, scale_by_std: bool) -> pl.Expr:
    """(x - mean) / std over a group, std with n - 1 as TRL has it; without the division on request.

    Null in a group of one; 0 in a group without differences.
    """
    centred = value - value.mean().over(group)
    if scale_by_std:
        centred = centred / value.std(ddof=1).over(group)
    return (
        pl.when(value.count().over(group) > 1)
        .then(pl.when(spread_free(value, group)).then(0.0).otherwise(centred))
        .otherwise(None)
    )  # fmt: skip


def leave_one_out(value: pl.Expr, group: tuple[str, ...]) -> pl.Expr:
    """x - mean of the others; null in a group of one."""
    size = value.count().over(group)
    others = (value.sum().over(group) - value) / (size - 1)
    return (
        pl.when(size > 1)
        .then(pl.when(spread_free(value, group)).then(0.0).otherwise(value - others))
        .otherwise(None)
    )  # fmt: skip


def per_episode(steps: pl.DataFrame, score: str = "total") -> pl.DataFrame:
    """`episode`, `group`, `score` of every scored episode: each counts once, however long it is.

    Sorted by score within its group, so that sums of floats come out the same whatever the order of rows.
    """
    return (
        steps.filter(pl.col(score).is_not_null())
        .unique("episode", keep="first", maintain_order=True)
        .select("episode", "group", pl.col(score).alias("score"))
        .sort("group", "score")
    )


def broadcast(steps: pl.DataFrame, episodes: pl.DataFrame) -> pl.DataFrame:
    """`steps` with `advantage` of their episode."""
    return steps.join(
        episodes.select("episode", "advantage"), on="episode", how="left", maintain_order="left"
    )


def episode_returns(rows: pl.DataFrame) -> pl.DataFrame:
    """`episode`, `group`, `score` of every scored episode of a dataset, or of a part of one.

    Args:
        rows: `episode_id`, `step`, `choice`, `task_id`, `agent`, `reward`, `return_`. An episode's score is the return of its
            first step here, as the dataset was built (discounted, where its credit discounts).
    """
    ordered = codes(rows).sort("episode", "step", "choice")
    return per_episode(
        ordered.with_columns(
            pl.col("task").first().over("episode").alias("group"),
            pl.coalesce("return_", "reward").alias("score"),
        ),
        "score",
    )


def among_rollouts(rows: pl.DataFrame, method: Literal["grpo", "rloo"]) -> pl.DataFrame:
    """Replace the column `advantage` of rows of a dataset, comparing only the episodes that are there.

    A trainer that leaves out rows (no tokens, cut streams) compares what is left: a group may be smaller than it was when the
    dataset was built, and a baseline over episodes that are not trained on would not sum to zero.

    Args:
        rows: as for `episode_returns`, and `advantage`.

    Returns:
        The rows in their order. Null: alone in its group, or unscored.
    """
    score = pl.col("score")
    compared = relative(score, GROUP, scale_by_std=True) if method == "grpo" else leave_one_out(score, GROUP)
    episodes = episode_returns(rows).with_columns(compared.alias("advantage"))
    # An answer that the episode did not take has no part in what came of it.
    scored = pl.any_horizontal(pl.col("reward", "return_", "advantage").is_not_null())
    found = broadcast(
        rows.with_columns(scored.alias("scored"), pl.col("episode_id").hash().alias("episode")).drop(
            "advantage"
        ),
        episodes,
    )
    return found.with_columns(pl.when("scored").then("advantage").alias("advantage")).drop(
        "scored", "episode"
    )
