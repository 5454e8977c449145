"""Which episode called another one as a step."""

from __future__ import annotations

import polars as pl

from spanloop_trainer.transform.calls.tree import Tree
from spanloop_trainer.transform.episodes.scopes import Scopes

_NONE = pl.Series([None], dtype=pl.UInt32)


def parents(calls: pl.DataFrame, placed: Scopes, tree: Tree) -> pl.Series:
    """`parent_episode_id` of every call's episode; null: none called it.

    That is the episode of the agent (or the model call) above its first call's run; of that agent's calls the last before it. Agents that
    only stand side by side below one span have the name of that span as parent, whether it has calls itself or not.

    Args:
        calls: `row`, `node`, `kind`, `run` (node), `first` (row of the first of its episode), `episode_id`.
    """
    nodes = calls["node"]
    if tree.up.gather(nodes).equals(nodes):
        return pl.repeat(None, calls.height, dtype=pl.String, eager=True).alias("parent_episode_id")
    firsts = calls.select(
        "row", "node", "first", "kind", "episode_id", "run", placed.agent.alias("agent"), placed.caller.alias("caller")
    ).filter(pl.col("row") == pl.col("first"))  # fmt: skip
    return (
        calls.select("episode_id")
        .join(_above(calls, firsts, placed, tree), on="episode_id", how="left", maintain_order="left")
        .join(_beside(firsts, tree), on="episode_id", how="left", maintain_order="left")
        .select(pl.coalesce("above", "beside").alias("parent_episode_id"))["parent_episode_id"]
    )


def _above(calls: pl.DataFrame, firsts: pl.DataFrame, placed: Scopes, tree: Tree) -> pl.DataFrame:
    """`episode_id` and `above`: the episode of a call that was made above it."""
    nodes = calls["node"]
    is_call = pl.repeat(False, tree.up.len(), dtype=pl.Boolean, eager=True).scatter(nodes, True)
    # Where a call was made: below its agent; in a loop without an agent, below the span above it.
    parent = tree.up.gather(nodes)
    place = placed.agent.zip_with(placed.agent.is_not_null(), parent.zip_with(parent != nodes, _NONE))
    marked = is_call.clone().scatter(place.drop_nulls(), True)  # which writes in place
    # Its own loop's span is no caller: look above the run, the agent, or the tool that it is the work of.
    tool = tree.nearest(tree.spans["is_tool"] | marked, firsts["node"])
    tool = tool.zip_with(tree.spans["is_tool"].gather(tool).fill_null(value=False), _NONE)
    own = pl.when(pl.col("kind") == "trace").then("run").otherwise(pl.coalesce("agent", pl.lit(tool), "node"))
    own_span = firsts.select(own.alias("own"))["own"]
    # Without agent and tool only a model call above counts: siblings below one span did not call each other.
    found = tree.nearest(marked, own_span).zip_with(
        own_span != firsts["node"], tree.nearest(is_call, own_span)
    )
    columns = ("row", "first", "episode_id")
    made = pl.concat(
        [
            calls.select(place.alias("place"), *columns).filter(pl.col("place").is_not_null()),
            calls.select(pl.col("node").alias("place"), *columns),
        ]
    )
    pairs = firsts.with_columns(found.alias("place")).filter(pl.col("place").is_not_null())
    pairs = pairs.join(made, on="place", how="inner", suffix="_above")
    # An explicit id may be anywhere in a tree: only the earlier of two such runs can have called the other.
    later = (pl.col("kind") == "trace") | (pl.col("first_above") < pl.col("first"))
    pairs = pairs.filter((pl.col("episode_id") != pl.col("episode_id_above")) & later)
    # The last before it; there is none where an agent first called others.
    before = pl.col("row_above") < pl.col("row")
    distance = pl.col("row_above").cast(pl.Int64)
    pairs = pairs.sort("row", before, pl.when(before).then(distance).otherwise(-distance))
    return pairs.unique("row", keep="last", maintain_order=True).select(
        "episode_id", pl.col("episode_id_above").alias("above")
    )


def _beside(firsts: pl.DataFrame, tree: Tree) -> pl.DataFrame:
    """`episode_id` and `beside`: the name of the span that holds its run and others."""
    runs = firsts.filter(pl.col("kind") == "trace")
    top = tree.topmost(tree.spans["is_chain"], runs["run"])
    runs = runs.with_columns(top.zip_with(top != runs["run"], _NONE).alias("top"))
    several = pl.len().over("top") > 1
    held = runs.select("episode_id", pl.coalesce("caller", pl.when(several).then("top")).alias("beside"))
    return held.with_columns(tree.names(held["beside"]).alias("beside"))
