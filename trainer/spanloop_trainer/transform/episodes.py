"""Which calls belong to one run: explicit id, else the trace under its agent, else the chain of prompts.

In that order, as DESIGN section 6 has it:

1. a rollout id is the episode. A session or conversation id is the episode within one process; other processes under the
   same id belong to it only where they continue its messages (ids such as `thread-42` or a group's id are shared by
   unrelated runs, and a session may move between replicas);
2. a call below an agent's span belongs to the topmost agent span of its trace;
3. any other call belongs to the chain of prompts. Where two calls continue one, the earlier goes on with the episode and the
   later starts a new one (a fork): its first state holds the shared history, and no transition counts twice.
"""

from __future__ import annotations

import polars as pl

# Deeper nesting of spans than this is a cycle or a mistake; such a call falls back to its chain.
MAX_DEPTH = 128


def agents_above(calls: pl.DataFrame, ancestors: pl.DataFrame) -> pl.DataFrame:
    """`row`, `root_agent_span`, `agent_name` (nearest named agent), `agent_session` for calls below an agent's span."""
    walk = calls.filter(pl.col("parent_span_id") != "").select(
        "row", "trace_id", pl.col("parent_span_id").alias("span_id"),
        pl.lit(None, pl.String).alias("root_agent_span"), pl.lit(None, pl.String).alias("agent_name"),
        pl.lit(None, pl.String).alias("agent_session"),
    )  # fmt: skip
    done = []
    for _ in range(MAX_DEPTH):
        if walk.is_empty():
            break
        walk = walk.join(ancestors, on=["trace_id", "span_id"], how="left", suffix="_here").with_columns(
            pl.when(pl.col("is_agent")).then("span_id").otherwise("root_agent_span").alias("root_agent_span"),
            pl.coalesce("agent_name", "agent_name_here").alias("agent_name"),
            pl.coalesce("agent_session", "agent_session_here").alias("agent_session"),
            pl.col("parent_span_id").fill_null("").alias("span_id"),
        )
        walk = walk.select("row", "trace_id", "span_id", "root_agent_span", "agent_name", "agent_session")
        done.append(walk.filter(pl.col("span_id") == ""))
        walk = walk.filter(pl.col("span_id") != "")
    columns = ("row", "root_agent_span", "agent_name", "agent_session")
    return pl.concat([walk.clear(), *done]).select(columns)


def _roots(up: pl.Series) -> pl.Series:
    """Follow pointers (`up[i]` is a place, `up[i] == i` a root) to the root of each; a doubling a round."""
    while True:
        further = up.gather(up)
        if further.equals(up):
            return up
        up = further


def assign_episodes(calls: pl.DataFrame, links: pl.DataFrame, ancestors: pl.DataFrame) -> pl.DataFrame:
    """Add `episode_id`, `step`, `agent` and `kind` (`rollout`, `session`, `trace`, `chain`) to `calls` (dense `row`)."""
    calls = calls.join(agents_above(calls, ancestors), on="row", how="left", maintain_order="left")
    calls = calls.with_columns(
        pl.coalesce("session", "agent_session").alias("session"),
        pl.coalesce("span_agent", "agent_name", "service").alias("agent"),
    ).with_columns(
        pl.when(pl.col("rollout").is_not_null()).then(pl.lit("rollout"))
        .when(pl.col("session").is_not_null()).then(pl.lit("session"))
        .when(pl.col("root_agent_span").is_not_null()).then(pl.lit("trace"))
        .otherwise(pl.lit("chain")).alias("kind"),
    )  # fmt: skip
    key = (
        pl.when(pl.col("kind") == "rollout").then(pl.struct(pl.col("rollout").alias("a"), pl.lit("").alias("b")))
        .when(pl.col("kind") == "session").then(pl.struct(pl.col("session").alias("a"), pl.col("instance").alias("b")))
        .when(pl.col("kind") == "trace")
        .then(pl.struct(pl.col("trace_id").alias("a"), pl.col("root_agent_span").alias("b")))
        .otherwise(pl.struct(pl.col("row").cast(pl.String).alias("a"), pl.lit("").alias("b")))
    )  # fmt: skip
    # `first`: the earliest call (rows are in order of start) of the same key; a chain's calls are alone so far.
    calls = calls.with_columns(pl.col("row").min().over("kind", key.alias("key")).alias("first"))
    parent = calls.select("row", "kind", "session", "first").join(
        links.select("row", "parent"), on="row", how="left", maintain_order="left"
    )
    before = calls.select(
        pl.col("row").alias("parent"), pl.col("kind").alias("parent_kind"),
        pl.col("session").alias("parent_session"), pl.col("first").alias("parent_first"),
    )  # fmt: skip
    parent = parent.join(before, on="parent", how="left", maintain_order="left")
    # A chain goes on from its parent; a session's first call in a process goes on from the same session elsewhere.
    goes_on = (pl.col("kind") == pl.col("parent_kind")) & (
        (pl.col("kind") == "chain")
        | (
            (pl.col("kind") == "session")
            & (pl.col("session") == pl.col("parent_session"))
            & (pl.col("row") == pl.col("first"))
        )
    )
    up = parent.select(pl.when(goes_on).then("parent_first").otherwise("first").alias("up"))["up"]
    calls = calls.with_columns(_roots(up).alias("first"))
    first = calls["first"]
    root = calls.select(
        "kind", "trace_id", "span_id", "root_agent_span", "session", "rollout", "instance"
    )[first.to_list()] if calls.height else calls  # fmt: skip
    episode_id = root.select(
        pl.when(pl.col("kind") == "rollout").then("rollout")
        .when(pl.col("kind") == "session").then(pl.concat_str("session", pl.lit("@"), "instance"))
        .when(pl.col("kind") == "trace").then(pl.concat_str("trace_id", pl.lit("-"), "root_agent_span"))
        .otherwise(pl.concat_str("trace_id", pl.lit("-"), "span_id")).alias("episode_id")
    )["episode_id"]  # fmt: skip
    calls = calls.with_columns(episode_id)
    return calls.with_columns(pl.int_range(0, pl.len(), dtype=pl.Int32).over("episode_id").alias("step"))


def next_calls(calls: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """`row`, `taken` (choice that went on), `next_span_id`, `last`, and where the environment's answer is found, for every call:
    in the messages of `next_row` from place `seen` on (both null: none seen).

    The next call is the one that continues this one's messages inside the episode, else the next in time; only the first
    shows what the environment answered.
    """
    episode = calls.select("row", "episode_id", "span_id")
    follows = (
        links.filter(pl.col("status") != "invalid")
        .join(episode, on="row")
        .join(episode.select(pl.col("row").alias("parent"), pl.col("episode_id").alias("parent_episode")), on="parent")
        .filter(pl.col("episode_id") == pl.col("parent_episode"))
        # A failed attempt and the one that worked continue the same call: the one that worked is its successor.
        .sort(pl.col("status") != "ok", "row").unique("parent", keep="first", maintain_order=True)
    )  # fmt: skip
    follows = follows.join(calls.select("row", pl.col("length").alias("all")), on="row")
    shows = pl.col("length") < pl.col("all")
    chained = follows.select(
        pl.col("parent").alias("row"), pl.col("span_id").alias("chained"), pl.col("choice").alias("taken"),
        pl.when(shows).then("row").alias("next_row"), pl.when(shows).then("length").alias("seen"),
    )  # fmt: skip
    return (
        calls.select("row", "episode_id", "step", pl.col("span_id").shift(-1).over("episode_id").alias("later"))
        .join(chained, on="row", how="left", maintain_order="left")
        .select(
            "row", pl.col("taken").fill_null(0).cast(pl.Int32), pl.coalesce("chained", "later").alias("next_span_id"),
            "next_row", "seen", pl.col("later").is_null().alias("last"),
        )
    )  # fmt: skip
