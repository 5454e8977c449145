"""Episodes of one task compared with their mean, in standard deviations."""

from __future__ import annotations

from typing import Any

import polars as pl

from spanloop_trainer.config.credit import Credit
from spanloop_trainer.transform.credit.groups import GROUP, broadcast, per_episode, relative
from spanloop_trainer.transform.credit.method import Method, number, numbers


def advantage(steps: pl.DataFrame, credit: Credit) -> pl.DataFrame:
    """A_i,t = (R_i - mean(R_1 … R_G)) / std(R_1 … R_G) for every step t of episode i.

    GRPO with outcome supervision, arXiv 2402.03300 (DeepSeekMath), section 4.1.2, with an episode for an output; std has
    G - 1, as TRL computes it, and no ε: groups without differences give 0. With `scale_by_std = false` the
    advantage of Dr. GRPO, arXiv 2503.20783, section 3.2: R_i - mean. Null in a group of one.
    """
    episodes = per_episode(steps)
    compared = relative(pl.col("score"), GROUP, scale_by_std=credit.scale_by_std is not False)
    return broadcast(steps, episodes.with_columns(compared.alias("advantage")))


def lines(steps: pl.DataFrame, step: dict[str, Any], value: float | None, *, scale_by_std: bool) -> list[str]:
    """The group and the arithmetic that gave `value`."""
    group = per_episode(steps).filter(pl.col("group") == step["group"])
    of = f"group {step['task_id']} of {step['actor']}"
    scores = group["score"]
    shown = f"{of}: {group.height} episodes, returns {numbers(scores.to_list())}"
    if group.height < 2:
        return [f"{of}: 1 episode, return {number(scores[0])}; alone, so nothing to compare with"]
    mean, std = float(scores.mean()), float(scores.std())  # type: ignore[arg-type]  # Polars types them as any scalar
    if value == 0.0:
        return [f"{shown}; mean {number(mean)}: advantage 0"]
    if not scale_by_std:
        return [f"{shown}; {number(step['total'])} - mean {number(mean)} = {number(value)}"]
    return [
        f"{shown}; mean {number(mean)}, std {number(std)};"
        f" ({number(step['total'])} - {number(mean)}) / {number(std)} = {number(value)}"
    ]


def explain(steps: pl.DataFrame, credit: Credit, step: dict[str, Any]) -> list[str]:
    """The group and the arithmetic."""
    return lines(steps, step, step["advantage"], scale_by_std=credit.scale_by_std is not False)


METHOD = Method(
    advantage, explain, "arXiv 2402.03300 section 4.1.2; without std arXiv 2503.20783 section 3.2"
)
