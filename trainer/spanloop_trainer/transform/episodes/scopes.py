"""Which agent's span is the run that a call belongs to.

The topmost agent span of a trace is the run, and agents that come one after another below it share it: a hand-off keeps the
run. An agent's span is a run of its own, called by the one above,

- where a tool's span lies between it and the agent above it (an agent called as a tool);
- where the agent above it has model calls after this one's first, and another name: it called this one and went on;
- where it and another agent beside it make model calls at the same time: parallel agents are no one sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from spanloop_trainer.transform.calls.tree import Tree, resolve


class Scopes(NamedTuple):
    """Nodes (u32) of the tree, aligned with the calls; null: no agent above.

    Attributes:
        agent: the nearest agent's span above a call.
        run: the agent's span that is its run.
        caller: the run of the agent above `run`, if there is one.
    """

    agent: pl.Series
    run: pl.Series
    caller: pl.Series


def scopes(calls: pl.DataFrame, tree: Tree) -> Scopes:
    """Place every call below the agents of its trace.

    Args:
        calls: `node`, `start`, `duration_ns`.
    """
    is_agent = tree.spans["is_agent"]
    nearest = tree.nearest(is_agent, calls["node"])
    if nearest.null_count() == nearest.len():
        return Scopes(nearest, nearest, nearest)
    agents = pl.DataFrame({"node": is_agent.arg_true()}).with_row_index("agent")
    nodes = agents["node"]
    place = pl.repeat(None, is_agent.len(), dtype=pl.UInt32, eager=True).scatter(nodes, agents["agent"])
    is_tool = tree.spans["is_tool"]
    above = tree.nearest(is_agent, nodes)
    between = is_tool.gather(tree.nearest(is_tool | is_agent, nodes)).fill_null(value=False)
    begin = pl.col("start").dt.epoch("ns")
    own = calls.select(
        place.gather(nearest).alias("agent"), begin.alias("from"), (begin + pl.col("duration_ns").cast(pl.Int64)).alias("to")
    ).filter(pl.col("agent").is_not_null())  # fmt: skip
    own = own.group_by("agent").agg(
        pl.col("from").min().alias("first"),
        pl.col("from").max().alias("latest"),
        pl.col("to").max().alias("end"),
    )
    agents = agents.with_columns(
        tree.spans["agent_name"].gather(nodes).alias("name"),
        place.gather(above).alias("above"),
        between.alias("as_tool"),
    ).join(own, on="agent", how="left", maintain_order="left")
    agents = agents.with_columns(_nearest_busy(agents))
    apart = pl.col("above").is_null() | pl.col("as_tool")
    run = resolve(agents.select(pl.when(apart).then("agent").otherwise("above").alias("run"))["run"])
    apart = apart | _called(agents, run) | _parallel(agents, run)
    run = resolve(agents.select(pl.when(apart).then("agent").otherwise("above").alias("run"))["run"])
    of_calls = run.gather(place.gather(nearest))
    caller = run.gather(agents["above"]).gather(of_calls)
    return Scopes(nearest, nodes.gather(of_calls), nodes.gather(caller))


def _nearest_busy(agents: pl.DataFrame) -> pl.Series:
    """`caller`: the nearest agent above that makes calls itself; null: none."""
    busy = pl.col("first").is_not_null()
    up = agents.select(
        pl.when(busy | pl.col("above").is_null()).then("agent").otherwise("above").alias("up")
    )["up"]
    end = resolve(up).gather(agents["above"])
    return pl.DataFrame({"end": end, "from": agents["first"].gather(end)}).select(
        pl.when(pl.col("from").is_not_null()).then("end").alias("caller")
    )["caller"]


def _callers(agents: pl.DataFrame, run: pl.Series) -> pl.DataFrame:
    """The agents, with the run of each and that of its caller."""
    return agents.with_columns(
        run.alias("run"), run.gather(agents["caller"]).alias("run_of_caller"),
        agents["latest"].gather(agents["caller"]).alias("latest_of_caller"),
        agents["name"].gather(agents["caller"]).alias("name_of_caller"),
    )  # fmt: skip


def _called(agents: pl.DataFrame, run: pl.Series) -> pl.Series:
    """Whether the agent above went on after this one began."""
    return _callers(agents, run).select(
        (
            (pl.col("run") == pl.col("run_of_caller"))
            & (pl.col("latest_of_caller") > pl.col("first"))
            & pl.col("name").is_not_null()
            & pl.col("name").ne_missing(pl.col("name_of_caller"))
        ).fill_null(value=False)
    ).to_series()  # fmt: skip


def _parallel(agents: pl.DataFrame, run: pl.Series) -> pl.Series:
    """Whether another agent beside this one makes calls at the same time."""
    beside = _callers(agents, run).filter(pl.col("first").is_not_null()).with_columns(
        pl.when(pl.col("run") == pl.col("run_of_caller")).then("caller").alias("below")
    ).sort("run", "below", "first", "agent")  # fmt: skip
    key = ["run", "below"]
    # Most agents have none beside them, and windows over one row each take long.
    beside = (
        beside.filter(pl.struct(key).hash().is_duplicated())
        .with_columns(
            (pl.col("first") < pl.col("end").cum_max().shift(1).over(key))
            .fill_null(value=False)
            .alias("late"),
            (pl.col("end") > pl.col("first").shift(-1).over(key)).fill_null(value=False).alias("early"),
        )
        .filter(pl.col("late") | pl.col("early"))
    )
    return agents["agent"].is_in(beside["agent"].implode())
