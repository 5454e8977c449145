"""What came after a call in its run: the next call, and what the environment had answered by then."""

from __future__ import annotations

import polars as pl

from spanloop_trainer.transform.episodes.chains import Chains


def next_calls(calls: pl.DataFrame, chains: Chains) -> pl.DataFrame:
    """`row`, `taken` (choice that went on), `next_span_id`, `last`, and where the environment's answer is found, for every call:
    in the messages of `next_row` from place `seen` on (both null: none seen).

    The next call is the one that continues this one's messages inside the episode, else the next of the same agent, else (a hand-off)
    the next of all. What the environment answered is shown by a call that holds this one's answer, with the messages behind it.

    Args:
        calls: in the order of `row`, with `episode_id` and `agent`.
    """
    chained = _chained(calls, chains.links)
    following = calls.select(
        "row",
        "answers",
        _next_of(calls.select(pl.struct("episode_id", "agent").hash())).alias("following"),
        _next_of(calls.select(pl.col("episode_id").hash())).alias("later"),
    )
    history = calls.filter((pl.col("status") != "invalid") & pl.col("answered").is_not_null()).select(
        pl.col("row").alias("following"), pl.col("answered").alias("act"), pl.col("length").alias("all"),
        pl.col("prefixes").list.last().struct.field("length").alias("length"),
    )  # fmt: skip
    rewritten = (
        following.join(chained, on="row", how="anti")
        .filter(pl.col("following").is_not_null())
        .explode("answers", empty_as_null=True).unnest("answers")
        .join(history, on=["following", "act"], how="inner", maintain_order="left")
        .unique("row", keep="first", maintain_order=True)
        .select("row", pl.col("choice").alias("choice_rewritten"), *_seen("following", "_rewritten"))
    )  # fmt: skip
    after = (
        following.select("row", "later", "following")
        .join(chained, on="row", how="left", maintain_order="left")
        .join(rewritten, on="row", how="left", maintain_order="left")
    )
    following_span = calls["span_id"].gather(
        after.select(pl.coalesce("chained", "following", "later"))["chained"]
    )
    return after.select(
        "row",
        pl.coalesce("choice", "choice_rewritten", pl.lit(0)).cast(pl.Int32).alias("taken"),
        following_span.alias("next_span_id"),
        pl.coalesce("next_row", "next_row_rewritten").alias("next_row"),
        pl.coalesce("seen", "seen_rewritten").alias("seen"),
        pl.col("later").is_null().alias("last"),
    )


def _next_of(keys: pl.DataFrame) -> pl.Series:
    """For each row (counted from 0) the next one with the same key; null: none. Two sorts take a third of a window function's time."""
    names = keys.columns
    ordered = keys.with_row_index("row").sort(*names, "row")
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift(-1) for name in names)
    return ordered.select("row", pl.when(same).then(pl.col("row").shift(-1)).alias("next")).sort("row")[
        "next"
    ]


def _seen(row: str, suffix: str = "") -> tuple[pl.Expr, pl.Expr]:
    """`next_row` and `seen`, where there is something behind the answer."""
    shows = pl.col("length") < pl.col("all")
    return (
        pl.when(shows).then(row).alias(f"next_row{suffix}"),
        pl.when(shows).then("length").alias(f"seen{suffix}"),
    )


def _chained(calls: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """`row`, `chained` (row of the call that continues it in its episode), `choice`, `next_row`, `seen`."""
    episode = calls.select("row", "episode_id")
    follows = (
        links.filter(pl.col("status") != "invalid")
        .join(episode, on="row")
        .join(episode.select(pl.col("row").alias("parent"), pl.col("episode_id").alias("parent_episode")), on="parent")
        .filter(pl.col("episode_id") == pl.col("parent_episode"))
        # A failed attempt and the one that worked continue the same call: the one that worked is its successor.
        .sort(pl.col("status") != "ok", "row").unique("parent", keep="first", maintain_order=True)
    )  # fmt: skip
    follows = follows.join(calls.select("row", pl.col("length").alias("all")), on="row")
    return follows.select(
        pl.col("parent").alias("row"), pl.col("row").alias("chained"), "choice", *_seen("row")
    )
