"""From the rewards of an episode to the advantage of each of its steps; docs/credit.md has the equations side by side.

- `advantages(rows, credit)`: stage E; fills `return_` and `advantage`.
- `explain(rows, credit, episode_id=…, step=…, choice=0) -> list[str]`: the arithmetic of one row in words; `rows` may be those of
  stage E or of a dataset (all rows of the task, since methods compare within it).
- `among_rollouts(rows, method)`: what the trainer calls on the rows that it keeps.
- `read_values(path)`: the value of every state, for `gae`.

A method is one module with one `Method`, named in `METHODS`; its options are in `credit_settings.CREDIT_OPTIONS`.
"""

from __future__ import annotations

import polars as pl

from spanloop_trainer.config.credit import Credit
from spanloop_trainer.transform.credit import (
    discounted,
    gae,
    gigpo,
    grpo,
    identical,
    rewards_to_go,
    rloo,
)
from spanloop_trainer.transform.credit.groups import among_rollouts, episode_returns
from spanloop_trainer.transform.credit.method import Method, number
from spanloop_trainer.transform.credit.steps import returns, steps_of
from spanloop_trainer.transform.credit.values import join_values, read_values

__all__ = [
    "METHODS",
    "Method",
    "advantages",
    "among_rollouts",
    "episode_returns",
    "explain",
    "join_values",
    "read_values",
]

METHODS: dict[str, Method] = {
    "identical": identical.METHOD,
    "discounted": discounted.METHOD,
    "rewards_to_go": rewards_to_go.METHOD,
    "grpo": grpo.METHOD,
    "rloo": rloo.METHOD,
    "gigpo": gigpo.METHOD,
    "gae": gae.METHOD,
}


def advantages(rows: pl.DataFrame, credit: Credit) -> pl.DataFrame:
    """Fill `return_` and `advantage`.

    Args:
        rows: of stage E: `episode_id`, `step`, `choice`, `task_id`, `agent`, `status`, `taken`, `reward_episode` and
            `reward_call` (f64, null: not judged), `state_code`; for `gae` also `value` (`values.join_values`).

    Returns:
        The rows in their order. `return_` is the discounted sum of what the episode earned from the step on (γ of the method,
        else 1), null where nothing was judged any more; `advantage` as the method has it. Both are null for answers that the
        episode did not go on with.
    """
    steps = steps_of(rows)
    steps = steps.with_columns(returns(steps, credit.gamma or 1.0))
    found = METHODS[credit.method].advantage(steps, credit).select("at", "return_", "advantage")
    return (
        rows.drop("return_", "advantage", strict=False)
        .with_row_index("at")
        .join(found, on="at", how="left", maintain_order="left")
        .drop("at")
    )


def explain(rows: pl.DataFrame, credit: Credit, *, episode_id: str, step: int, choice: int = 0) -> list[str]:
    """How the advantage of one row came to be, in words: a few lines.

    Args:
        rows: as `advantages` gave them, or those of a dataset that was built with `credit`; all of the row's task.
        episode_id, step, choice: which row.
    """
    row = (pl.col("episode_id") == episode_id) & (pl.col("step") == step)
    places = rows.with_row_index("at").filter(row, pl.col("choice") == choice)["at"]
    task = rows.filter(row)["task_id"].head(1)
    if places.is_empty():
        return [f"episode {episode_id} has no step {step} with answer {choice} here"]
    if credit.values is not None and "value" not in rows.columns:
        return [f"credit {credit}: the values of its states are in the file, not in these rows"]
    of_task = rows.with_row_index("asked").filter(pl.col("task_id").is_in(task.implode()))
    steps = steps_of(of_task.drop("asked"), credit.gamma or 1.0)
    steps = steps.with_columns(returns(steps, credit.gamma or 1.0))
    found = METHODS[credit.method].advantage(steps, credit).with_columns(of_task["asked"].gather(steps["at"]))
    chosen = found.filter(pl.col("asked") == places[0])
    if chosen.is_empty():
        return ["the episode went on with another answer: no advantage"]
    of = chosen.row(0, named=True)
    # Who the group is, in words.
    first = found.filter(pl.col("episode") == of["episode"])["asked"][0]
    of["task_id"], of["actor"] = task[0], rows["agent"][first]
    if of["total"] is None:
        return [f"credit {credit}: nothing in this episode was judged, so it is unscored"]
    earned = f"earned here {number(of['earned'] or 0.0)}, return {number(of['return_'])}"
    if of["return_"] is None:
        earned = "nothing was judged from this step on"
    head = f"credit {credit}: {earned}; return of the episode {number(of['total'])}"
    return [head, *METHODS[credit.method].explain(found, credit, of)]
