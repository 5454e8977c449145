"""Calls with all that was found out about them to rows of the contract."""

from __future__ import annotations

import hashlib

import polars as pl


def with_policy(calls: pl.DataFrame) -> pl.DataFrame:
    """Add `policy`, `policy_version` and `resources`: the gateway's stamp, else the names that the span has."""
    texts = calls["system_text"].drop_nulls().unique()
    hashes = [f"prompt:{hashlib.sha256(text.encode()).hexdigest()[:16]}" for text in texts.to_list()]
    table = pl.DataFrame([texts, pl.Series("prompt_hash", hashes, dtype=pl.String)])
    prompt = pl.coalesce(pl.lit("prompt:") + pl.col("prompt_version"), "prompt_hash")
    requested = pl.lit("requested:") + pl.col("prompt_requested")
    named = pl.coalesce("response_model", pl.col("request_model").replace("", None))
    return calls.join(table, on="system_text", how="left", maintain_order="left").with_columns(
        pl.coalesce("served_version", named).alias("policy_version"),
        pl.coalesce(pl.col("served_version").str.split("@").list.first(), named).alias("policy"),
        pl.concat_list(prompt, requested).list.drop_nulls().alias("resources"),
    )


def episode_facts(calls: pl.DataFrame) -> pl.DataFrame:
    """One row an episode, with what rules and task lookup need; `answer` is the last call's text, if it had one."""
    taken = pl.col("answers").list.get(pl.col("taken"), null_on_oob=True)
    calls = calls.with_columns(
        taken.struct.field(name).alias(name) for name in ("text", "tool_calls", "finish")
    )
    end = pl.col("start").dt.epoch("ns") + pl.col("duration_ns").cast(pl.Int64)
    return calls.group_by("episode_id", maintain_order=True).agg(
        pl.col("explicit_task").drop_nulls().first(),
        pl.col("first_user").first(),
        pl.col("agent").first(),
        pl.col("service").first(),
        pl.col("policy_version").last(),
        pl.when(pl.col("status").last() == "ok").then(pl.col("text").last()).alias("answer"),
        pl.col("finish").last().alias("finish_reason"),
        pl.col("status").last(),
        pl.len().cast(pl.Int64).alias("steps"),
        (pl.col("status") != "ok").sum().cast(pl.Int64).alias("errors"),
        pl.col("tool_calls").fill_null(0).sum().cast(pl.Int64).alias("tool_calls"),
        ((end.max() - pl.col("start").dt.epoch("ns").min()) / 1e9).alias("duration_s"),
    )


def assemble(
    calls: pl.DataFrame,
    episodes: pl.DataFrame,
    of_episodes: pl.DataFrame,
    of_calls: pl.DataFrame,
) -> pl.DataFrame:
    """One row an answer, and one for a call that has none.

    An answer that the episode did not go on with (n > 1) ends there: no next call, and no reward, which judged another.
    """
    answer = pl.col("answers").struct
    rows = (
        calls.with_columns(pl.col("answers").list.len().cast(pl.Int32).alias("n"))
        .explode("answers", empty_as_null=True)
        .with_columns(
            answer.field("choice").fill_null(0).alias("choice"),
            answer.field("chat").alias("chat"),
            answer.field("finish").alias("finish"),
        )
    )
    rows = (
        rows.join(
            episodes.select("episode_id", "task_id", "split"),
            on="episode_id",
            how="left",
            maintain_order="left",
        )
        .join(of_episodes, on="episode_id", how="left", maintain_order="left")
        .join(of_calls, on="row", how="left", suffix="_call", maintain_order="left")
    )
    ok, taken = pl.col("status") == "ok", pl.col("choice") == pl.col("taken")
    valid = pl.col("status") != "invalid"
    no_parts = pl.lit([], dtype=of_episodes.schema["reward_parts"])
    both = pl.col("reward").is_null() & pl.col("reward_call").is_null()
    rows = rows.with_columns(
        pl.when(taken & ~both)
        .then(pl.col("reward").fill_null(0.0) + pl.col("reward_call").fill_null(0.0))
        .alias("reward"),
        pl.when(taken)
        .then(
            pl.concat_list(
                pl.col("reward_parts").fill_null(no_parts), pl.col("reward_parts_call").fill_null(no_parts)
            )
        )
        .otherwise(no_parts)
        .alias("reward_parts"),
    )
    # An empty array is what an absent attribute looks like: not captured, never guessed.
    choice = pl.col("choice")
    per_choice = {
        name: pl.col(name).list.get(choice, null_on_oob=True) for name in ("completion_ids", "logprobs")
    }
    completion = pl.when(ok & (per_choice["completion_ids"].list.len() > 0)).then(
        per_choice["completion_ids"]
    )
    logprobs = pl.when(ok & (per_choice["logprobs"].list.len() > 0)).then(per_choice["logprobs"])
    return rows.select(
        "episode_id", "step", "choice", pl.lit(None, pl.String).alias("parent_episode_id"), "task_id", "agent",
        "trace_id", "span_id", "response_id", "start",
        pl.when(valid).then("[" + pl.col("messages").list.join(",") + "]").alias("state"),
        pl.when(valid).then("tools_json").alias("tools"),
        pl.when(ok).then("chat").alias("action"),
        pl.when(taken).then("observation").alias("observation"),
        pl.when(taken).then("next_span_id").alias("next_span_id"),
        (~taken | pl.col("last")).alias("done"),
        "status", "error_type",
        pl.coalesce("finish", pl.col("finish_reasons").list.get(choice, null_on_oob=True)).alias("finish_reason"),
        "reward", pl.col("reward").alias("return_"), pl.lit(None, pl.Float64).alias("advantage"), "reward_parts",
        "policy", "policy_version", "resources",
        pl.struct(
            pl.coalesce("temperature", "gateway_temperature").alias("temperature"),
            pl.coalesce("top_p", "gateway_top_p").alias("top_p"),
            pl.coalesce("max_tokens", "gateway_max_tokens").alias("max_tokens"),
            pl.coalesce("seed", "gateway_seed").alias("seed"),
            "n",
        ).alias("sampling"),
        pl.when(pl.col("prompt_ids").list.len() > 0).then("prompt_ids").alias("prompt_ids"),
        completion.alias("completion_ids"), logprobs.alias("logprobs"),
        pl.lit(1.0).alias("weight"), "split",
    )  # fmt: skip
