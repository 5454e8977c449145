"""Learning for some agents only: the calls of all others are part of the environment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from spanloop_trainer.transform.episodes.chains import Chains
from spanloop_trainer.transform.episodes.steps import next_calls

_NEXT = ("taken", "next_span_id", "next_row", "seen")


def select_agents(calls: pl.DataFrame, chains: Chains, agents: Sequence[str]) -> pl.DataFrame:
    """Add `selected` (a call that makes rows) and `ends` (the last of those in its episode).

    A selected call is followed by the next selected one. Where that one's messages go on from the selected call's, through calls of
    other agents, what these said is in the observation. Rewards look at the whole episode all the same, so no call is dropped here.

    Args:
        calls: dense `row` in order, with `_NEXT` and `last` as `next_calls` gives them.
        agents: names; empty: all.
    """
    if not agents:
        return calls.with_columns(pl.lit(value=True).alias("selected"), pl.col("last").alias("ends"))
    calls = calls.with_columns(pl.col("agent").is_in(agents).alias("selected"))
    rows = calls.filter("selected").select("row")
    # As if there were no others: numbered anew, as `next_calls` wants it.
    alone = calls.filter("selected").drop("row", *_NEXT, "last").with_row_index("row")
    found = next_calls(alone, chains._replace(links=_through(calls, chains.links)))
    found = found.select(
        rows["row"].gather(found["row"]),
        pl.col("taken", "next_span_id", "seen"),
        rows["row"].gather(found["next_row"]).alias("next_row"),
        pl.col("last").alias("ends"),
    )
    joined = calls.join(found, on="row", how="left", maintain_order="left", suffix="_alone")
    return joined.with_columns(
        pl.when("selected").then(f"{name}_alone").otherwise(name).alias(name) for name in _NEXT
    ).with_columns(pl.col("ends").fill_null(value=False)).drop([f"{name}_alone" for name in _NEXT])  # fmt: skip


def _through(calls: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """The links between selected calls, over any number of others in between; numbered among the selected.

    Such a link's `choice` and `length` are those of the first step away from the earlier call: its answer ends at the same place in
    all prompts that go on from it.
    """
    selected = calls["selected"].to_numpy()
    edge = np.full(calls.height, -1)  # a call's link, by place in `links`
    edge[links["row"].to_numpy()] = np.arange(links.height)
    parents = links["parent"].to_numpy().astype(np.int64)  # unsigned, -1 would be a place
    parent = np.where(edge >= 0, parents[edge] if links.height else -1, -1)
    # From a call of another agent up to the first of them behind a selected one; a doubling a round.
    place = np.arange(calls.height)
    top = np.where(~selected & (parent >= 0) & ~selected[parent], parent, place)
    while not np.array_equal(further := top[top], top):
        top = further
    later = links["row"].to_numpy()
    first = np.where(selected[parents], later, top[parents])
    reached = parent[first]
    number = np.cumsum(selected) - 1
    use = selected[later] & (reached >= 0) & selected[reached]
    steps = links[edge[first[use]]]
    return pl.DataFrame(
        {
            "row": pl.Series(number[later[use]], dtype=pl.UInt32),
            "parent": pl.Series(number[reached[use]], dtype=pl.UInt32),
            "choice": steps["choice"],
            "length": steps["length"],
            "status": links["status"].filter(pl.Series(use)),
        }
    ).cast({name: links.schema[name] for name in ("row", "parent")})
