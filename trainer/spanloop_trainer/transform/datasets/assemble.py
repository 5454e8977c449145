"""Calls with all that was found out about them to rows of the contract."""

from __future__ import annotations

import polars as pl

from spanloop_trainer.transform.datasets.schema import REWARD_PART
from spanloop_trainer.transform.flavours import Flag


def with_policy(calls: pl.DataFrame) -> pl.DataFrame:
    """Add `policy`, `policy_version` and `resources`: the gateway's stamp, else the names that the span has.

    The gateway records no text, and the prompt that it sent may have had values of the call in its places: `state` keeps the
    agent's own text, and a flag says that another one ran.
    """
    prompt = pl.coalesce(pl.lit("prompt:") + pl.col("prompt_version"), "prompt_hash")
    requested = pl.lit("requested:") + pl.col("prompt_requested")
    named = pl.coalesce("response_model", pl.col("request_model").replace("", None))
    # Few are distinct, and making lists takes ten times as long as finding those of a call.
    of = calls.select(prompt.alias("prompt"), requested.alias("requested"))
    lists = of.unique().with_columns(
        pl.concat_list("prompt", "requested").list.drop_nulls().alias("resources")
    )
    resources = of.join(
        lists, on=["prompt", "requested"], how="left", nulls_equal=True, maintain_order="left"
    )["resources"]
    return calls.with_columns(
        pl.coalesce("served_version", named).alias("policy_version"),
        pl.coalesce(pl.col("served_version").str.split("@").list.first(), named).alias("policy"),
        resources,
        pl.when(pl.col("prompt_requested").is_not_null())
        .then(pl.col("flags") | pl.lit(Flag.PROMPT_REPLACED, pl.UInt16))
        .otherwise("flags")
        .alias("flags"),
    )


def answer_rows(calls: pl.DataFrame, of_episodes: pl.DataFrame, of_calls: pl.DataFrame) -> pl.DataFrame:
    """One slim row an answer, and one for a call that has none: what credit and filters look at.

    An answer that the episode did not go on with (n > 1) ends there: no next call, and no reward, which judged another.

    Args:
        calls: of stage B.
        of_episodes, of_calls: `reward` by `episode_id` and by `row`.
    """
    rows = (
        calls.filter("selected").select(
            "row", "episode_id", "step", "task_id", "split", "agent", "status", "start", "taken", "ends", "policy_version",
            pl.col("prompt_code").alias("state_code"),
            pl.col("answers").list.eval(pl.element().struct.field("choice")).alias("choice"),
            pl.int_ranges(0, pl.col("answers").list.len(), dtype=pl.Int32).alias("place"),
        )
        .explode("choice", "place", empty_as_null=True)
        .with_columns(pl.col("choice", "place").fill_null(0))
    )  # fmt: skip
    taken = pl.col("choice") == pl.col("taken")
    parts = ("reward_episode", "reward_call")
    return (
        rows.join(of_episodes.select("episode_id", pl.col("reward").alias("reward_episode")), on="episode_id", how="left", maintain_order="left")
        .join(of_calls.select("row", pl.col("reward").alias("reward_call")), on="row", how="left", maintain_order="left")
        .with_columns(taken.alias("taken"), *(pl.when(taken).then(name).alias(name) for name in parts))
        .with_columns(
            pl.when(pl.any_horizontal(pl.col(parts).is_not_null()))
            .then(pl.sum_horizontal(pl.col(parts).fill_null(0.0)))
            .alias("reward"),
            (~pl.col("taken") | pl.col("ends")).alias("done"),
            pl.lit(None, pl.Float64).alias("return_"),
            pl.lit(None, pl.Float64).alias("advantage"),
            pl.lit(1.0).alias("weight"),
        )
        .drop("ends")
    )  # fmt: skip


def assemble(
    rows: pl.DataFrame, calls: pl.DataFrame, of_episodes: pl.DataFrame, of_calls: pl.DataFrame
) -> pl.DataFrame:
    """Rows of the contract, in no order.

    Args:
        rows: of stage E, of some whole episodes.
        calls: of stage B for these episodes, with texts and tokens.
        of_episodes, of_calls: `reward_parts` by `episode_id` and by `row`.
    """
    # The rows have these, as stage E left them.
    own = ["episode_id", "step", "task_id", "split", "agent", "status", "start", "taken", "policy_version"]
    shown = calls.select(pl.col("row").alias("next_row"), pl.col("messages").alias("next_messages"))
    calls = calls.drop(own, strict=False).join(shown, on="next_row", how="left", maintain_order="left")
    calls = calls.with_columns(pl.col("answers").list.len().cast(pl.Int32).alias("n"))
    rows = rows.join(calls, on="row", how="left", maintain_order="left")
    rows = rows.join(_flag_names(rows["flags"]), on="flags", how="left", maintain_order="left")
    parts = _parts(rows, of_episodes, of_calls)
    ok, taken, choice = pl.col("status") == "ok", pl.col("taken"), pl.col("choice")
    valid = pl.col("status") != "invalid"
    # Where in `answers`; answers are not always numbered without a gap.
    place = pl.col("place")
    finish = pl.col("answers").list.get(place, null_on_oob=True).struct.field("finish")
    completion, logprobs = (
        pl.col(name).list.get(choice, null_on_oob=True) for name in ("completion_ids", "logprobs")
    )
    return rows.select(
        "episode_id", "step", "choice", "parent_episode_id", "task_id", "agent",
        "trace_id", "span_id", "response_id", "start",
        pl.when(valid).then("[" + pl.col("messages").list.join(",") + "]").alias("state"),
        pl.when(valid).then("tools_json").alias("tools"),
        pl.when(ok).then(pl.col("chats").list.get(place, null_on_oob=True)).alias("action"),
        pl.when(taken & pl.col("seen").is_not_null())
        .then("[" + pl.col("next_messages").list.slice(pl.col("seen")).list.join(",") + "]").alias("observation"),
        pl.when(taken).then("next_span_id").alias("next_span_id"),
        "done",
        "status", "error_type", "failure",
        pl.coalesce(finish, pl.col("finish_reasons").list.get(choice, null_on_oob=True)).alias("finish_reason"),
        "reward", "return_", "advantage",
        parts.alias("reward_parts"),
        "policy", "policy_version", "resources",
        pl.struct(
            pl.coalesce("temperature", "gateway_temperature").alias("temperature"),
            pl.coalesce("top_p", "gateway_top_p").alias("top_p"),
            pl.coalesce("max_tokens", "gateway_max_tokens").alias("max_tokens"),
            pl.coalesce("seed", "gateway_seed").alias("seed"),
            "n",
        ).alias("sampling"),
        # An empty array is what an absent attribute looks like: not captured, never guessed.
        pl.when(pl.col("prompt_ids").list.len() > 0).then("prompt_ids").alias("prompt_ids"),
        pl.when(ok & (completion.list.len() > 0)).then(completion).alias("completion_ids"),
        pl.when(ok & (logprobs.list.len() > 0)).then(logprobs).alias("logprobs"),
        pl.col("flag_names").alias("flags"),
        "weight", "split",
    )  # fmt: skip


def _flag_names(flags: pl.Series) -> pl.DataFrame:
    """`flags` as they occur, and their names."""
    distinct = flags.unique().sort()
    names = [Flag(number).names() for number in distinct.to_list()]
    return pl.DataFrame({"flags": distinct, "flag_names": pl.Series(names, dtype=pl.List(pl.String))})


def _parts(rows: pl.DataFrame, of_episodes: pl.DataFrame, of_calls: pl.DataFrame) -> pl.Series:
    """Every source of reward of a row: those of its episode, then its own."""
    none = pl.lit([], dtype=pl.List(REWARD_PART))
    parts = (
        rows.select("row", "episode_id", "taken")
        .join(of_episodes.select("episode_id", "reward_parts"), on="episode_id", how="left", maintain_order="left")
        .join(
            of_calls.select("row", pl.col("reward_parts").alias("of_call")),
            on="row", how="left", maintain_order="left",
        )
        .with_row_index("place")
    )  # fmt: skip
    # Lists of structs are joined end to end slowly, and few rows have both.
    both = parts.filter(pl.col("reward_parts").is_not_null() & pl.col("of_call").is_not_null()).select(
        "place", pl.concat_list("reward_parts", "of_call").alias("both")
    )
    if both.height:
        parts = parts.join(both, on="place", how="left", maintain_order="left")
    else:
        parts = parts.with_columns(pl.lit(None, pl.List(REWARD_PART)).alias("both"))
    return parts.select(
        pl.when("taken")
        .then(pl.coalesce("both", "reward_parts", "of_call", none))
        .otherwise(none)
        .alias("reward_parts")
    )["reward_parts"]
