"""The spans of all traces as one forest of numbers, so that what lies above a call is found by pointer doubling.

Every round doubles the distance that a pointer spans: a trace nested 10,000 deep takes 14 rounds over its spans, and an ordinary
one three. A parent that was never recorded makes its child a root; in a cycle of parents one span becomes the root.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

_KINDS = ("is_agent", "is_tool", "is_chain")
_NAMES = ("agent_name", "agent_session", "rollout_above", "task_above")


@dataclass(frozen=True)
class Tree:
    """A node a span, in no order that means anything.

    Attributes:
        spans: `trace_id`, `span_id`, and what `sql/ancestors.sql` says about the span.
        up: (nodes,) u32: the node above; a root points to itself.
    """

    spans: pl.DataFrame
    up: pl.Series

    def nearest(self, marked: pl.Series, nodes: pl.Series, *, strictly: bool = True) -> pl.Series:
        """The nearest marked node above each of `nodes` (or itself, if not `strictly`); null: none is marked.

        Args:
            marked: (nodes,) bool.
            nodes: u32, may hold nulls, which stay.
        """
        if not marked.any():
            return pl.repeat(None, nodes.len(), dtype=pl.UInt32, eager=True)
        own = pl.int_range(0, self.up.len(), dtype=pl.UInt32, eager=True)
        found = resolve(own.zip_with(marked, self.up))
        # A root that is not marked stands for "none".
        found = found.zip_with(marked.gather(found), pl.Series([None], dtype=pl.UInt32))
        if not strictly:
            return found.gather(nodes)
        above = self.up.gather(nodes)
        return found.gather(above).set(above == nodes, None)

    def topmost(self, marked: pl.Series, nodes: pl.Series) -> pl.Series:
        """The topmost marked node above each of `nodes`, or itself; null: none is marked."""
        own = pl.int_range(0, self.up.len(), dtype=pl.UInt32, eager=True)
        above = self.nearest(marked, own)
        top = resolve(above.zip_with(above.is_not_null(), own)).gather(nodes)
        return top.zip_with(marked.gather(top), pl.Series([None], dtype=pl.UInt32))

    def names(self, nodes: pl.Series) -> pl.Series:
        """`trace_id-span_id` of each of `nodes`; null where that is null."""
        ids = pl.DataFrame([self.spans[column].gather(nodes) for column in ("trace_id", "span_id")])
        return ids.select(pl.concat_str("trace_id", pl.lit("-"), "span_id").alias("name"))["name"]


def resolve(up: pl.Series) -> pl.Series:
    """Follow pointers (`up[i] == i`: the end) to the end of each; from a cycle they stay in it."""
    # NumPy: a tree of some thousand spans takes longer to be asked about than to be gone through.
    at = up.to_numpy()
    for _ in range(len(at).bit_length()):
        further = at[at]
        if np.array_equal(further, at):
            break
        at = further
    return pl.Series(up.name, at)


def said(name: str) -> pl.Expr:
    """An id or a name; null also where it is white space alone, which names nothing."""
    return pl.when(pl.col(name).str.strip_chars() != "").then(name).alias(name)


def read_tree(calls: pl.DataFrame, ancestors: pl.DataFrame) -> tuple[pl.DataFrame, Tree]:
    """The forest of all spans that are known.

    Args:
        calls: `trace_id`, `span_id`, `parent_span_id`.
        ancestors: spans of the traces in which calls have parents, the calls' own among them or not.

    Returns:
        The calls, in their order, with `node` (u32; a call whose trace is not known is a root alone), and the tree.
    """
    columns = ("trace_id", "span_id", "parent_span_id")
    key, above = (pl.struct("trace_id", name).hash() for name in ("span_id", "parent_span_id"))
    spans = ancestors.with_columns(key.alias("key"))
    own = calls.select(*columns, key.alias("key"))
    others = own.join(spans, on="key", how="anti")
    spans = pl.concat([spans, others], how="diagonal").with_row_index("node")
    nodes = spans.select("key", "node").unique("key", keep="first")
    up = (
        spans.select("node", above.alias("key"))
        .join(nodes.rename({"node": "up"}), on="key", how="left", maintain_order="left")
        .select(pl.coalesce("up", "node"))["up"]
    )
    node = own.select("key").join(nodes, on="key", how="left", maintain_order="left")["node"]
    facts = spans.select("trace_id", "span_id", pl.col(_KINDS).fill_null(value=False), *map(said, _NAMES))
    return calls.with_columns(node), Tree(facts, _without_cycles(up, spans))


def _without_cycles(up: pl.Series, spans: pl.DataFrame) -> pl.Series:
    """Make the first span (by id) of every cycle a root."""
    further = up
    for _ in range(max(up.len(), 2).bit_length()):
        doubled = further.gather(further)
        if doubled.equals(further):
            break  # all at a root; or in a cycle whose length is a power of two, which looks the same
        further = doubled
    # Now every pointer has gone further than any path is long: it is at a root, or in a cycle, and each span of one is pointed to.
    caught = further.filter(up.gather(further) != further).unique()
    if caught.is_empty():
        return up
    order = spans.select("trace_id", "span_id").with_row_index("node").sort("trace_id", "span_id")
    rank = order.with_row_index("rank").sort("node")["rank"]
    least, jump = rank, up
    for _ in range(max(up.len(), 2).bit_length()):
        least = pl.select(pl.min_horizontal(least, least.gather(jump))).to_series()
        jump = jump.gather(jump)
    roots = caught.filter((rank == least).gather(caught))
    own = pl.int_range(0, up.len(), dtype=pl.UInt32, eager=True)
    return up.zip_with(~own.is_in(roots.implode()), own)
