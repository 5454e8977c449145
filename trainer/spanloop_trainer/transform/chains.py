"""Which call continues which: one call's messages plus its answer begin the next call's messages.

Every prompt has a code per prefix (a running sum of hashes of message and place), so continuing is a join on codes and
not a comparison of all pairs; with 64 bits, a million calls give a false match once in ten million builds. Identical
conversations (the same first prompt and the same answer without ids) are told apart by time: the k-th continuation takes
the k-th open call.
"""

from __future__ import annotations

import polars as pl

# One number for `scope` and `code`: windows over two columns, one of them text, take several times as long.
_SCOPED = "scoped_code"


def _scoped(frame: pl.DataFrame, scope: pl.Expr) -> pl.DataFrame:
    return frame.with_columns(pl.struct(scope, "code").hash().alias(_SCOPED))


def _parents(calls: pl.DataFrame) -> pl.DataFrame:
    """`code` of prompt plus answer, for every answer of a call that may be continued."""
    return (
        calls.filter(pl.col("status") == "ok").select("row", "start", "instance", "answers")
        .explode("answers").unnest("answers")
        # n equal answers: the first stands for them.
        .sort("row", "choice").unique(["row", "code"], keep="first", maintain_order=True)
        .select("row", "choice", "start", "instance", "code")
    )  # fmt: skip


def _children(calls: pl.DataFrame) -> pl.DataFrame:
    """`code` of every prefix that ends with an assistant message; `length` is that prefix's number of messages."""
    return (
        calls.filter((pl.col("status") != "invalid") & (pl.col("prefixes").list.len() > 0))
        .select("row", "start", "instance", "status", "prefixes").explode("prefixes").unnest("prefixes")
        .select("row", "length", "start", "instance", "status", "code")
    )  # fmt: skip


def _match(children: pl.DataFrame, parents: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pair children with parents of equal `scoped_code`; also gives all children that had a parent to choose."""
    parents = parents.sort("start", "row").with_columns(
        pl.int_range(1, pl.len() + 1).over(_SCOPED).alias("rank")
    )
    seen = (
        children.sort("start", "row")
        .join_asof(
            parents.select(_SCOPED, "start", pl.col("rank").alias("available")),
            on="start", by=_SCOPED, strategy="backward", allow_exact_matches=False, check_sortedness=False,
        )
        .filter(pl.col("available").is_not_null())
        # The longest known prefix is the call that was continued.
        .sort("row", "length").unique("row", keep="last", maintain_order=True)
        .sort("start", "row")
    )  # fmt: skip
    # A queue, without a loop: the j-th child is served if, at some point up to it, a parent was still open.
    # served_j = j + min(0, min over i <= j of (available_i - i)).
    ok = seen.filter(pl.col("status") == "ok").with_columns(
        pl.int_range(1, pl.len() + 1).over(_SCOPED).alias("turn")
    )
    ok = ok.with_columns(
        (pl.col("turn") + (pl.col("available") - pl.col("turn")).cum_min().clip(upper_bound=0))
        .over(_SCOPED)
        .alias("rank")
    )
    taken = ok.filter((pl.col("rank") > pl.col("rank").shift(1, fill_value=0)).over(_SCOPED))
    # A failed call is one more attempt at the same step: it joins the episode and leaves the parent open.
    failed = seen.filter(pl.col("status") != "ok").with_columns(pl.col("available").alias("rank"))
    links = pl.concat([taken.drop("turn"), failed.select(taken.drop("turn").columns)]).join(
        parents.select(_SCOPED, "rank", pl.col("row").alias("parent"), "choice"), on=[_SCOPED, "rank"]
    )
    return links.select("row", "length", "status", "parent", "choice"), seen.select("row")


def link_calls(calls: pl.DataFrame) -> pl.DataFrame:
    """Which call continues which.

    Args:
        calls: `row`, `start`, `instance`, `status`, `answers`, `prefixes`.

    Returns:
        `row` of the later call, `parent` (row of the call it continues), `choice` of the parent that was taken up,
        `length` (how many of its messages were there already), `status` of the later call. A parent is continued by at
        most one `ok` call: a second continuation is a fork and has no row here, so that no step counts twice.
    """
    children, parents = _children(calls), _parents(calls)
    # Calls of the same process first: equal conversations elsewhere must not be mixed in. Then anywhere, for a
    # conversation that moved to another replica.
    links, seen = _match(
        _scoped(children, pl.col("instance")),
        _scoped(parents, pl.col("instance")),
    )
    rest = children.join(seen, on="row", how="anti")
    open_parents = parents.join(
        links.filter(pl.col("status") == "ok"), left_on="row", right_on="parent", how="anti"
    )
    everywhere = pl.lit("").alias("instance")
    elsewhere, _ = _match(_scoped(rest, everywhere), _scoped(open_parents, everywhere))
    return pl.concat([links, elsewhere]).sort("row")
