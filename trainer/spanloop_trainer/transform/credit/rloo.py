"""Each episode compared with the mean of the others of its task."""

from __future__ import annotations

from typing import Any

import polars as pl

from spanloop_trainer.config.credit import Credit
from spanloop_trainer.transform.credit.groups import GROUP, broadcast, leave_one_out, per_episode
from spanloop_trainer.transform.credit.method import Method, number, numbers


def advantage(steps: pl.DataFrame, _: Credit) -> pl.DataFrame:
    """A_i,t = R_i - 1/(G - 1) Σ over j ≠ i of R_j for every step t of episode i; null in a group of one.

    RLOO: Ahmadian et al. 2024, arXiv 2402.14740, equation 8, after Kool et al. 2019, "Buy 4 REINFORCE samples, get a
    baseline for free!".
    """
    episodes = per_episode(steps)
    return broadcast(steps, episodes.with_columns(leave_one_out(pl.col("score"), GROUP).alias("advantage")))


def explain(steps: pl.DataFrame, _: Credit, step: dict[str, Any]) -> list[str]:
    """The others and their mean."""
    of = f"group {step['task_id']} of {step['actor']}"
    others = per_episode(steps).filter(
        (pl.col("group") == step["group"]) & (pl.col("episode") != step["episode"])
    )["score"]
    if others.is_empty():
        return [f"{of}: 1 episode, return {number(step['total'])}; alone, so nothing to compare with"]
    mean = float(others.mean())  # type: ignore[arg-type]  # Polars types it as any scalar
    return [
        f"{of}: {len(others)} other episodes, returns {numbers(others.to_list())}; {number(step['total'])} -"
        f" mean {number(mean)} = {number(step['advantage'])}"
    ]


METHOD = Method(advantage, explain, "arXiv 2402.14740 equation 8")
