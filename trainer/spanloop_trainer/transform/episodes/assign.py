"""Which calls belong to one run: explicit id, else the trace under its agent, else the chain of prompts.

In that order, as DESIGN section 6 has it (docs/episodes.md shows each rule):

1. a rollout id is the episode. A session or conversation id is the episode within one process; other processes under the
   same id belong to it only where they continue its messages (ids such as `thread-42` or a group's id are shared by
   unrelated runs, and a session may move between replicas);
2. a call below an agent's span belongs to the run of that agent (see `scopes`);
3. any other call belongs to the chain of prompts. Where two calls continue one, the earlier goes on with the episode and the
   later starts a new one (a fork): its first state holds the shared history, and no transition counts twice.
"""

from __future__ import annotations

import polars as pl

from spanloop_trainer.transform.calls.tree import Tree, resolve
from spanloop_trainer.transform.episodes.callers import parents
from spanloop_trainer.transform.episodes.chains import Chains
from spanloop_trainer.transform.episodes.scopes import scopes
from spanloop_trainer.transform.flavours import Flag


def assign_episodes(calls: pl.DataFrame, chains: Chains, tree: Tree) -> pl.DataFrame:
    """Add to `calls` (in the order of a dense `row`; `node`: in `tree`):

    - `episode_id`, `step`, `agent`, `kind` (`rollout`, `session`, `trace`, `chain`);
    - `parent_episode_id` (null: none) and `called` (it has calls of its own in the window);
    - `lineage`: the episode whose task this one keeps; null: none.
    """
    placed = scopes(calls, tree)
    calls = calls.with_columns(placed.run.alias("run"), *_facts_above(calls, tree)).with_columns(
        pl.coalesce("rollout", "rollout_above").alias("rollout"),
        pl.coalesce("session", "agent_session").alias("session"),
        pl.coalesce("explicit_task", "task_above").alias("explicit_task"),
        pl.coalesce("span_agent", "agent_name", "service").alias("agent"),
    )
    unplaced = pl.all_horizontal(pl.col("rollout", "session", "run").is_null())
    calls = calls.with_columns(
        pl.coalesce("run", _steps_of_a_chain(calls.with_columns(unplaced.alias("unplaced")), chains, tree))
    )
    calls = calls.with_columns(
        pl.when(pl.col("rollout").is_not_null()).then(pl.lit("rollout"))
        .when(pl.col("session").is_not_null()).then(pl.lit("session"))
        .when(pl.col("run").is_not_null()).then(pl.lit("trace"))
        .otherwise(pl.lit("chain")).alias("kind"),
    )  # fmt: skip
    calls = calls.with_columns(_first_of_run(calls, chains).alias("first"))
    calls = calls.with_columns(_names(calls, tree))
    calls = calls.with_columns(_places(calls["first"]).alias("step"))
    calls = calls.with_columns(pl.col("flags") | _changed(calls, chains))
    calls = calls.with_columns(parents(calls, placed, tree))
    called = pl.col("parent_episode_id").is_in(calls["episode_id"].unique().implode()).fill_null(value=False)
    calls = calls.with_columns(called.alias("called"))
    calls = calls.with_columns(
        pl.coalesce(pl.when("called").then("parent_episode_id"), _forked_from(calls, chains)).alias("lineage")
    )
    return calls.drop("node", "run", "first", "rollout_above", "task_above", "agent_name", "agent_session")


def _places(keys: pl.Series) -> pl.Series:
    """For each row the number of rows before it with the same key. Two sorts take half of a window function's time."""
    ordered = keys.alias("key").to_frame().with_row_index("row").sort("key", "row")
    place = pl.int_range(pl.len(), dtype=pl.Int32)
    begun = (
        pl.when((pl.col("key") != pl.col("key").shift(1)).fill_null(value=True)).then(place).forward_fill()
    )
    return ordered.select("row", (place - begun).alias("place")).sort("row")["place"]


def _facts_above(calls: pl.DataFrame, tree: Tree) -> list[pl.Series]:
    """What the nearest span above that says it says."""
    return [
        tree.spans[name].gather(tree.nearest(tree.spans[name].is_not_null(), calls["node"])).alias(name)
        for name in ("rollout_above", "agent_session", "task_above", "agent_name")
    ]


def _steps_of_a_chain(calls: pl.DataFrame, chains: Chains, tree: Tree) -> pl.Series:
    """The span (OpenInference's CHAIN) that is the run of calls which neither an id, an agent nor their messages hold together.

    A program that writes each prompt anew and runs tools in between: one after another, and none continues another's messages.
    """
    none = pl.repeat(None, calls.height, dtype=pl.UInt32, eager=True).alias("run")
    is_chain = tree.spans["is_chain"]
    if not is_chain.any():
        return none
    # Calls continue each other also in another trace.
    linked = pl.concat([chains.links["row"], chains.links["parent"]]).unique()
    top = tree.topmost(is_chain, calls["node"])
    with_tools = tree.topmost(is_chain, tree.spans["is_tool"].arg_true()).drop_nulls().unique()
    begin = pl.col("start").dt.epoch("ns")
    candidates = calls.select(
        "row", "unplaced", begin.alias("from"), (begin + pl.col("duration_ns").cast(pl.Int64)).alias("to"), top.alias("top")
    ).filter(pl.col("unplaced") & pl.col("top").is_in(with_tools.implode())).sort("top", "row")  # fmt: skip
    overlap = pl.col("from") < pl.col("to").cum_max().shift(1).over("top")
    broken = candidates.filter(pl.col("row").is_in(linked.implode()) | overlap.fill_null(value=False))
    runs = candidates.join(broken, on="top", how="anti")
    found = calls.select("row").join(runs.select("row", "top"), on="row", how="left", maintain_order="left")
    return found["top"].alias("run")


def _first_of_run(calls: pl.DataFrame, chains: Chains) -> pl.Series:
    """For every call the row of the first of its episode."""
    key = (
        pl.when(pl.col("kind") == "rollout").then(pl.struct(pl.lit(0), pl.col("rollout").alias("a"), pl.lit("").alias("b")).hash())
        .when(pl.col("kind") == "session").then(pl.struct(pl.lit(1), pl.col("session").alias("a"), pl.col("instance").alias("b")).hash())
        .when(pl.col("kind") == "trace").then(pl.struct(pl.lit(2), "run").hash())
        .otherwise(pl.struct(pl.lit(3), "row").hash())
    )  # fmt: skip
    # Rows are in order of start; a chain's calls are alone so far.
    calls = calls.with_columns(pl.col("row").min().over(key.alias("key")).alias("first"))
    here = calls.select("row", "kind", "session", "first")
    before = here.select(pl.all().name.prefix("parent_")).rename({"parent_row": "parent"})
    pairs = (
        pl.concat([chains.links.select("row", "parent"), chains.retries])
        .join(here, on="row")
        .join(before, on="parent")
        .filter(pl.col("kind") == pl.col("parent_kind"))
    )
    edited = (
        chains.edited.filter(~pl.col("compacted"))
        .select("row", "parent")
        .join(here, on="row")
        .join(before, on="parent")
    )
    # A chain goes on from its parent; a session's first call in a process goes on from the same session elsewhere.
    moved = (pl.col("session") == pl.col("parent_session")) & (pl.col("row") == pl.col("first"))
    both = pl.col("kind") == pl.col("parent_kind")
    up = pl.concat(
        [
            pairs.filter((pl.col("kind") == "chain") | ((pl.col("kind") == "session") & moved)),
            edited.filter(
                both & ((pl.col("kind") == "chain") | ((pl.col("kind") == "session") & moved))
            ).select(pairs.columns),
        ]
    ).unique("row", keep="first", maintain_order=True)
    pointed = calls.select("row", "first").join(
        up.select("row", "parent_first"), on="row", how="left", maintain_order="left"
    )
    return resolve(pointed.select(pl.coalesce("parent_first", "first").alias("up"))["up"])


def _names(calls: pl.DataFrame, tree: Tree) -> pl.Series:
    """`episode_id`: of the id that made it, else of the span that its run is, else of its first call."""
    root = calls.select("kind", "trace_id", "span_id", "run", "session", "rollout", "instance")[
        calls["first"]
    ]
    return root.with_columns(tree.names(root["run"]).alias("name")).select(
        pl.when(pl.col("kind") == "rollout").then("rollout")
        .when(pl.col("kind") == "session").then(pl.concat_str("session", pl.lit("@"), "instance"))
        .when(pl.col("kind") == "trace").then("name")
        .otherwise(pl.concat_str("trace_id", pl.lit("-"), "span_id")).alias("episode_id")
    )["episode_id"]  # fmt: skip


def _changed(calls: pl.DataFrame, chains: Chains) -> pl.Series:
    """Flags of calls whose history is another; one that an agent gets from another at a hand-off is none of them."""
    of_rows = calls.select("row", "agent")
    changed = (
        chains.edited.join(of_rows, on="row")
        .join(of_rows.rename({"row": "parent"}), on=["parent", "agent"], how="semi")
        .select(
            "row",
            pl.when("compacted")
            .then(Flag.COMPACTED.value)
            .otherwise(Flag.EDITED_HISTORY.value)
            .alias("changed"),
        )
    )
    return (
        calls.select("row")
        .join(changed, on="row", how="left", maintain_order="left")["changed"]
        .fill_null(0)
        .cast(calls.schema["flags"])
    )


def _forked_from(calls: pl.DataFrame, chains: Chains) -> pl.Series:
    """The episode whose history a run began with in a shorter form."""
    of_rows = calls.select("row", "episode_id")
    forks = (
        chains.edited.filter("compacted")
        .join(of_rows, on="row")
        .join(of_rows.rename({"row": "parent", "episode_id": "origin"}), on="parent")
        .filter(pl.col("episode_id") != pl.col("origin"))
        .sort("row")
        .unique("episode_id", keep="first", maintain_order=True)
        .select("episode_id", "origin")
    )
    return calls.select("episode_id").join(forks, on="episode_id", how="left", maintain_order="left")[
        "origin"
    ]
