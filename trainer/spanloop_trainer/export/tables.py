"""Parquet tables: prompts for verl, and episodes of (s, a, r, s′, done)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from spanloop_trainer.export.rows import Chosen, Message, messages, text_of
from spanloop_trainer.transform.datasets.schema import TRANSITIONS

_Types = dict[str, pl.DataType | type[pl.DataType]]
_CALL = pl.Struct(
    {"id": pl.String, "type": pl.String, "function": pl.Struct({"name": pl.String, "arguments": pl.String})}
)
_PLAIN: _Types = {"role": pl.String, "content": pl.String}
_WITH_TOOLS: _Types = {**_PLAIN, "tool_calls": pl.List(_CALL), "tool_call_id": pl.String, "name": pl.String}
_EXTRA: _Types = {
    "index": pl.Int64, "split": pl.String, "task_id": pl.String, "agent": pl.String, "episode_id": pl.String, "span_id": pl.String,
    "tools": pl.String, "episodes": pl.Int64, "mean_reward": pl.Float64,
}  # fmt: skip


def verl(chosen: Chosen, expected: dict[str, str]) -> pl.DataFrame:
    """verl's RL prompts (its docs, "Prepare data for post-training"): one row a distinct first prompt of a task.

    Args:
        expected: task → the right answer: `reward_model.ground_truth`, empty where it is not known.

    Returns:
        `data_source`, `prompt` (list of messages; the fields of tool calls are there if some prompt has them), `ability` (the agent),
        `reward_model` (struct: `style`, `ground_truth`), `extra_info` (struct, with the `tools` as JSON). Small: a row a task.
    """
    first = (
        chosen.scan()
        .filter(pl.col("step") == pl.col("step").min().over("episode_id"))
        .group_by("task_id", "agent", "state", "tools", maintain_order=True)
        .agg(
            pl.col("split", "episode_id", "span_id").first(),
            pl.col("episode_id").n_unique().cast(pl.Int64).alias("episodes"),
            pl.col("reward").mean().alias("mean_reward"),
        )
        .collect()
    )
    prompts = [messages(state) for state in first["state"]]
    with_tools = any(m.get("tool_calls") or m["role"] == "tool" for prompt in prompts for m in prompt)
    fields = _WITH_TOOLS if with_tools else _PLAIN
    rows = [
        {
            "data_source": "spanloop",
            "prompt": [_flat(message, fields) for message in prompt],
            "ability": row["agent"],
            "reward_model": {"style": "rule", "ground_truth": expected.get(row["task_id"], "")},
            "extra_info": {**{name: row.get(name) for name in _EXTRA}, "index": index},
        }
        for index, (row, prompt) in enumerate(zip(first.iter_rows(named=True), prompts, strict=True))
    ]
    schema: _Types = {
        "data_source": pl.String, "prompt": pl.List(pl.Struct(fields)), "ability": pl.String,
        "reward_model": pl.Struct({"style": pl.String, "ground_truth": pl.String}), "extra_info": pl.Struct(_EXTRA),
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def _flat(message: Message, fields: _Types) -> Message:
    return {name: text_of(message) if name == "content" else message.get(name) for name in fields}


def episodes(chosen: Chosen) -> Iterator[pl.DataFrame]:
    """Steps of episodes, in order, whose columns have the names of RLlib (`ray.rllib.offline.offline_prelearner.SCHEMA`): texts are JSON.

    `eps_id`, `agent_id`, `t` (0, 1, … without a gap), `obs` (s, messages), `actions` (a, message), `rewards` (r), `new_obs` (s′: the
    prompt of the next call; at the end s, a, and what was observed), `terminateds` (done), `truncateds` (a later call of the episode is
    missing, since it failed or was filtered), `infos` (struct: where the step came from).

    Only the answers that an episode went on with. r is null where an episode is unscored. What was judged as a whole is earned at
    the last step, so that the sum of r is the episode's reward (and not once a step, as in the column `reward`).
    """
    slim = (
        chosen.scan()
        .select(
            "episode_id",
            "step",
            "choice",
            "trace_id",
            "span_id",
            "next_span_id",
            "reward",
            "reward_parts",
            "done",
        )
        .collect()
    )
    # Of n answers to one call, the one that was taken is the one that goes on, or the first.
    taken = slim.sort("episode_id", "step", pl.col("next_span_id").is_null(), "choice").unique(
        ["episode_id", "step"], keep="first", maintain_order=True
    )
    earned = _earned(taken).with_columns(
        pl.int_range(0, pl.len(), dtype=pl.Int64).over("episode_id").alias("t"),
        (pl.col("step") == pl.col("step").last().over("episode_id")).alias("ends"),
    )
    # Episodes lie in the file one behind the other: a batch ends between two of them.
    waiting: list[dict[str, Any]] = []
    columns = (
        "episode_id",
        "step",
        "choice",
        "trace_id",
        "span_id",
        "agent",
        "state",
        "action",
        "observation",
        "done",
        "task_id",
        "policy_version",
    )
    for row in chosen.rows(*columns, only=earned.select("trace_id", "span_id", "choice")):
        if len(waiting) >= 2000 and waiting[-1]["episode_id"] != row["episode_id"]:
            yield _steps(waiting, earned)
            waiting = []
        waiting.append(row)
    if waiting:
        yield _steps(waiting, earned)


def _earned(taken: pl.DataFrame) -> pl.DataFrame:
    """Add `earned`: what a step earned by itself, and at the last step what the episode earned as a whole."""
    parts = taken.select(
        "episode_id",
        "step",
        "reward",
        pl.col("reward_parts").list.eval(pl.element().struct.json_encode()).alias("parts"),
    )
    common = (
        parts.explode("parts", empty_as_null=True)
        .group_by("episode_id", "parts").agg(pl.col("step").n_unique().alias("steps"))
        .join(parts.group_by("episode_id").agg(pl.len().alias("all")), on="episode_id")
        .filter(pl.col("steps") == pl.col("all")).group_by("episode_id").agg(pl.len().alias("common"))
    )  # fmt: skip
    known = parts.join(common, on="episode_id", how="left").with_columns(
        (pl.col("parts").list.len() == pl.col("common").fill_null(0)).alias("whole")
    )
    # A step that only the episode's judgements reached shows what they are worth. Without one, every step was judged by itself.
    of_episodes = known.group_by("episode_id").agg(
        pl.col("reward").filter("whole").first().fill_null(0.0).alias("of_episode")
    )
    last = pl.col("step") == pl.col("step").last().over("episode_id")
    return (
        taken.drop("reward_parts")
        .join(of_episodes, on="episode_id", how="left", maintain_order="left")
        .with_columns(
            pl.when(pl.col("reward").is_not_null().any().over("episode_id")).then(
                (pl.col("reward") - pl.col("of_episode")).fill_null(0.0)
                + pl.when(last).then("of_episode").otherwise(0.0)
            ).alias("earned")
        )
    )  # fmt: skip


def _steps(rows: list[dict[str, Any]], earned: pl.DataFrame) -> pl.DataFrame:
    key = ["trace_id", "span_id", "choice"]
    frame = pl.DataFrame(rows, schema={name: TRANSITIONS[name] for name in rows[0]}).join(
        earned.select(*key, "t", "ends", "earned"), on=key, how="left", maintain_order="left"
    )
    following = pl.col("state").shift(-1).over("episode_id")
    open_ = pl.col("state").str.slice(0, pl.col("state").str.len_chars() - 1)
    seen = pl.col("observation").str.strip_prefix("[").str.strip_suffix("]")
    end = pl.concat_str(
        open_,
        pl.lit(","),
        "action",
        pl.when(seen != "").then(pl.lit(",") + seen).otherwise(pl.lit("")).fill_null(""),
        pl.lit("]"),
    )
    info = pl.struct("task_id", "trace_id", "span_id", "step", "choice", "policy_version")
    return frame.select(
        pl.col("episode_id").alias("eps_id"),
        pl.col("agent").alias("agent_id"),
        "t",
        pl.col("state").alias("obs"),
        pl.col("action").alias("actions"),
        pl.col("earned").cast(pl.Float64).alias("rewards"),
        pl.coalesce(following, end).alias("new_obs"),
        (pl.col("ends") & pl.col("done")).alias("terminateds"),
        (pl.col("ends") & ~pl.col("done")).alias("truncateds"),
        info.alias("infos"),
    )


def expected_answers(tasks: pl.DataFrame) -> dict[str, str]:
    """Task → its right answer, of `tasks.read_tasks`."""
    known = tasks.filter(pl.col("expected").is_not_null())
    return dict(zip(known["task_id"].to_list(), known["expected"].to_list(), strict=True))
