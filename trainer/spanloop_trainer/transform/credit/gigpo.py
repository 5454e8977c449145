"""Episodes of one task compared as in GRPO, and beside that the steps that started from the same state."""

from __future__ import annotations

from typing import Any

import polars as pl

from spanloop_trainer.config.credit import Credit
from spanloop_trainer.transform.credit import grpo
from spanloop_trainer.transform.credit.groups import relative
from spanloop_trainer.transform.credit.method import Method, number, numbers

_STATE = ("group", "state_code", "comparable")


def advantage(steps: pl.DataFrame, credit: Credit) -> pl.DataFrame:
    """A = A_E + ω A_S.

    GiGPO, arXiv 2505.10978: A_E compares episodes (equation 3), A_S = (G_t - mean) / std compares the discounted returns
    G_t (equation 5) of all steps of a task that started from one state (equations 6 and 7), and 8 adds them. A state that
    no other step shares gives A_S = 0, so that without equal states it is GRPO. `scale_by_std = false` divides neither, the
    paper's other normalisation. Null in a group of one episode.

    A state is the whole prompt, so steps are compared at the start of a task, after equal tool results, and
    where a step was tried again.
    """
    scale = credit.scale_by_std is not False
    steps = grpo.advantage(steps, credit).rename({"advantage": "of_episode"})
    steps = steps.with_columns(
        (pl.col("acted") & pl.col("return_").is_not_null() & pl.col("state_code").is_not_null()).alias(
            "comparable"
        )
    )
    # Sorted by what is compared, so that sums of floats come out the same whatever the order of rows.
    ordered = steps.with_row_index("place").sort(*_STATE, "return_", "place")
    found = ordered.with_columns(
        pl.when("comparable").then(relative(pl.col("return_"), _STATE, scale_by_std=scale)).alias("of_state")
    ).sort("place")
    return found.drop("place").with_columns(
        (pl.col("of_episode") + credit.omega * pl.col("of_state").fill_null(0.0)).alias("advantage")
    )


def explain(steps: pl.DataFrame, credit: Credit, step: dict[str, Any]) -> list[str]:
    """Both groups, and their sum."""
    scale = credit.scale_by_std is not False
    text = [f"episodes: {line}" for line in grpo.lines(steps, step, step["of_episode"], scale_by_std=scale)]
    if step["advantage"] is None:
        return text
    if step["of_state"] is None:
        text.append("equal states: none, so 0")
    else:
        same = steps.filter("comparable", *(pl.col(name) == step[name] for name in ("group", "state_code")))[
            "return_"
        ].sort()
        mean = float(same.mean())  # type: ignore[arg-type]  # Polars types it as any scalar
        text.append(
            f"equal states: {len(same)} steps, returns {numbers(same.to_list())}; mean {number(mean)}; this one has"
            f" {number(step['return_'])}: {number(step['of_state'])}"
        )
    text.append(
        f"{number(step['of_episode'])} + {number(credit.omega)} × {number(step['of_state'] or 0.0)}"
        f" = {number(step['advantage'])}"
    )
    return text


METHOD = Method(advantage, explain, "arXiv 2505.10978 equations 3 to 8")
