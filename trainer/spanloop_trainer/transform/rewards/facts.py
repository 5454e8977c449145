"""What a rule may look at: one row of facts an episode, or a call."""

from __future__ import annotations

import polars as pl

from spanloop_trainer.transform.episodes.failures import STUCK

# Columns of a rule over episodes, beside `expected` and `task_FIELD` of the task files.
EPISODE = pl.Schema(
    {
        "episode_id": pl.String,
        "task_id": pl.String,
        "agent": pl.String,
        "service": pl.String,
        "split": pl.String,
        "policy_version": pl.String,
        "answer": pl.String,  # text of the last answer; null: none, or the last call failed
        "finish_reason": pl.String,  # of the last call
        "status": pl.String,  # of the last call
        "failure": pl.String,  # see `failures`; null: none
        "parent_episode_id": pl.String,  # null: no other episode called it
        "steps": pl.Int64,
        "errors": pl.Int64,  # calls whose status is not `ok`
        "tool_calls": pl.Int64,
        "duration_s": pl.Float64,
    }
)
# Columns of a rule over calls, beside these, `expected`, `task_FIELD`, and what the whole episode says as `episode_NAME`.
CALL = pl.Schema(
    {
        "episode_id": pl.String,
        "task_id": pl.String,
        "agent": pl.String,
        "service": pl.String,
        "split": pl.String,
        "policy_version": pl.String,
        "span_id": pl.String,
        "step": pl.Int32,
        "last": pl.Boolean,  # of its episode
        "answer": pl.String,  # text of the answer that the episode went on with; null: none, or the call failed
        "finish_reason": pl.String,
        "status": pl.String,
        "error_type": pl.String,
        "failure": pl.String,
        "tool_calls": pl.Int64,
        "messages": pl.Int64,  # in the prompt
        "observation": pl.String,  # JSON: messages added before the next call; null: none seen
        "duration_s": pl.Float64,
    }
)
_WHOLE = ("answer", "finish_reason", "status", "failure", "steps", "errors", "tool_calls", "duration_s")


def task_facts(tasks: pl.DataFrame) -> pl.DataFrame:
    """`task_id`, `expected` and `task_FIELD` of the task files."""
    return tasks.drop("prompt", "split")


def episode_facts(calls: pl.DataFrame, tasks: pl.DataFrame) -> pl.DataFrame:
    """One row an episode: `EPISODE`, `expected`, `task_FIELD`; in the order of the first calls.

    Args:
        calls: a bucket of whole episodes.
        tasks: of `tasks.read_tasks`.
    """
    calls = _with_answer(calls)
    end = pl.col("start").dt.epoch("ns") + pl.col("duration_ns").cast(pl.Int64)
    episodes = calls.group_by("episode_id", maintain_order=True).agg(
        pl.col("task_id", "agent", "service", "split").first(),
        pl.col("policy_version").last(),
        pl.col("answer").last(),
        pl.col("finish_reason").last(),
        pl.col("status").last(),
        # Of its last call, else of a run that went in circles: what was mended on the way is no failure of the episode.
        pl.coalesce(
            pl.col("failure").last(), pl.col("failure").filter(pl.col("failure").is_in(STUCK)).first()
        ).alias("failure"),
        pl.col("parent_episode_id").first(),
        pl.len().cast(pl.Int64).alias("steps"),
        (pl.col("status") != "ok").sum().cast(pl.Int64).alias("errors"),
        pl.col("tool_calls").sum().cast(pl.Int64).alias("tool_calls"),
        ((end.max() - pl.col("start").dt.epoch("ns").min()) / 1e9).alias("duration_s"),
    )
    called = calls.group_by("episode_id", maintain_order=True).agg(pl.col("called").first())["called"]
    return (
        episodes.select(pl.col(name).cast(dtype) for name, dtype in EPISODE.items())
        .join(task_facts(tasks), on="task_id", how="left", maintain_order="left")
        # A run that another called keeps its task, but what is expected is the answer of the one that called.
        .with_columns(called)
        .with_columns(pl.when(~pl.col("called")).then("expected").alias("expected"))
        .drop("called")
    )


def call_facts(calls: pl.DataFrame, episodes: pl.DataFrame) -> pl.DataFrame:
    """One row a call, in their order: `row`, `CALL`, `episode_NAME`, `expected`, `task_FIELD`.

    Args:
        calls: a bucket of whole episodes.
        episodes: of `episode_facts`.
    """
    shown = calls.select(pl.col("row").alias("next_row"), pl.col("messages").alias("next_messages"))
    observed = "[" + pl.col("next_messages").list.slice(pl.col("seen")).list.join(",") + "]"
    facts = (
        _with_answer(calls)
        .join(shown, on="next_row", how="left", maintain_order="left")
        .with_columns(
            pl.when(pl.col("seen").is_not_null()).then(observed).alias("observation"),
            (pl.col("duration_ns").cast(pl.Int64) / 1e9).alias("duration_s"),
            pl.col("length").alias("messages"),
        )
        .select("row", *(pl.col(name).cast(dtype) for name, dtype in CALL.items()))
    )
    whole = episodes.select(
        "episode_id",
        pl.col(_WHOLE).name.prefix("episode_"),
        *(name for name in episodes.columns if name not in EPISODE),
    )
    return facts.join(whole, on="episode_id", how="left", maintain_order="left")


def blank(level: str, tasks: pl.DataFrame) -> pl.DataFrame:
    """No rows, and the columns that a rule of this level sees."""
    of_tasks = task_facts(tasks).drop("task_id").schema
    if level == "episode":
        return pl.DataFrame(schema={**EPISODE, **of_tasks})
    return pl.DataFrame(schema={**CALL, **{f"episode_{name}": EPISODE[name] for name in _WHOLE}, **of_tasks})


def _with_answer(calls: pl.DataFrame) -> pl.DataFrame:
    """Add `answer`, `tool_calls` and `finish_reason` of the choice that the episode went on with."""
    taken = pl.col("taken")
    answer = pl.col("answers").list.get(taken, null_on_oob=True).struct
    return calls.with_columns(
        pl.when(pl.col("status") == "ok")
        .then(pl.col("texts").list.get(taken, null_on_oob=True))
        .alias("answer"),
        answer.field("tool_calls").fill_null(0).alias("tool_calls"),
        answer.field("finish").alias("finish_reason"),
    )
