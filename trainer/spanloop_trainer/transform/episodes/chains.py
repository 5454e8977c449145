"""Which call continues which: one call's messages plus its answer begin the next call's messages.

Every prompt has a code per prefix (a running sum of hashes of message and place), so continuing is a join on codes and
not a comparison of all pairs; with 64 bits, a million calls give a false match once in ten million builds. Identical
conversations (the same first prompt and the same answer without ids) are told apart by time: the k-th continuation takes
the k-th open call.

Two more things hold calls together where no prefix does: the same prompt sent again after a failure, and a history that was rewritten
(a clock in the system prompt, messages dropped or summed up) but still ends with the answer that the earlier call gave.
"""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

import polars as pl

# One number for `scope` and `code`: windows over two columns, one of them text, take several times as long.
_SCOPED = "scoped_code"
# A prompt that is sent again later than this after its failure is another run of the same task.
RETRY_AFTER = timedelta(minutes=1)


class Chains(NamedTuple):
    """Which call goes on from which.

    Attributes:
        links: `row` of the later call, `parent` (row of the call it continues), `choice` of the parent that was taken up,
            `length` (how many of its messages were there already), `status` of the later call. A parent is continued by at
            most one `ok` call: a second continuation is a fork and has no row here, so that no step counts twice.
        retries: `row` and `parent`: the first call of a run, sent again after it failed.
        edited: `row` and `parent`: the later call's history is another, but its last answer is the parent's; `compacted`: it
            has become no longer.
    """

    links: pl.DataFrame
    retries: pl.DataFrame
    edited: pl.DataFrame


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


def _apart(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows whose `scoped_code` no other has, and the rest, each in order."""
    again = frame[_SCOPED].is_duplicated()
    return frame.filter(~again), frame.filter(again)


def _match(children: pl.DataFrame, parents: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pair children with parents of equal `scoped_code`; also gives all children that had a parent to choose."""
    # Nearly all codes occur once, and a window over groups of one takes most of the time of this module.
    once, again = _apart(parents.sort("start", "row"))
    parents = pl.concat(
        [
            once.with_columns(pl.lit(1, pl.Int64).alias("rank")),
            again.with_columns(pl.int_range(1, pl.len() + 1).over(_SCOPED).alias("rank")),
        ]
    ).sort("start", "row")
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
    once, ok = _apart(seen.filter(pl.col("status") == "ok"))
    ok = ok.with_columns(pl.int_range(1, pl.len() + 1).over(_SCOPED).alias("turn"))
    ok = ok.with_columns(
        (pl.col("turn") + (pl.col("available") - pl.col("turn")).cum_min().clip(upper_bound=0))
        .over(_SCOPED)
        .alias("rank")
    )
    taken = ok.filter((pl.col("rank") > pl.col("rank").shift(1, fill_value=0)).over(_SCOPED)).drop("turn")
    taken = pl.concat([once.with_columns(pl.lit(1, pl.Int64).alias("rank")), taken])
    # A failed call is one more attempt at the same step: it joins the episode and leaves the parent open.
    failed = seen.filter(pl.col("status") != "ok").with_columns(pl.col("available").alias("rank"))
    links = pl.concat([taken, failed.select(taken.columns)]).join(
        parents.select(_SCOPED, "rank", pl.col("row").alias("parent"), "choice"), on=[_SCOPED, "rank"]
    )
    return links.select("row", "length", "status", "parent", "choice"), seen.select("row")


def link_calls(calls: pl.DataFrame) -> Chains:
    """Which call continues which.

    Args:
        calls: `row`, `start`, `duration_ns`, `instance`, `status`, `answers`, `prefixes`, `length`, `prompt_code`, `answered`,
            `asked`.
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
    elsewhere, known = _match(_scoped(rest, everywhere), _scoped(open_parents, everywhere))
    links = pl.concat([links, elsewhere]).sort("row")
    # A call whose history is known continues it, or is a fork of it.
    told = pl.concat([seen, known])["row"]
    new = calls.filter(~pl.col("row").is_in(told.implode()))
    return Chains(links, _retries(new), _edited(new, calls, links))


def _retries(calls: pl.DataFrame) -> pl.DataFrame:
    """Pair a failed first call with the next of the same prompt in its process."""
    first = calls.filter(pl.col("length") > 0).select(
        "row", "start", "status", (pl.col("start") + pl.duration(nanoseconds="duration_ns")).alias("end"),
        pl.struct("instance", "prompt_code").hash().alias("code"),
    )  # fmt: skip
    first = first.filter(pl.col("code").is_duplicated())
    failed = first.filter(pl.col("status").is_in(["error", "truncated"]))
    return (
        failed.select(pl.col("row").alias("parent"), "code", pl.col("end").alias("start"))
        .sort("start", "parent")
        .join_asof(
            first.sort("start", "row").select("row", "code", "start"), on="start", by="code",
            strategy="forward", tolerance=RETRY_AFTER, check_sortedness=False,
        )
        .filter(pl.col("row").is_not_null() & (pl.col("row") > pl.col("parent")))
        .sort("parent").unique("row", keep="last", maintain_order=True)
        .select("row", "parent")
    )  # fmt: skip


def _edited(new: pl.DataFrame, calls: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """Pair calls of unknown history with the latest open call of their process that gave the last answer in it.

    The answer must be tool calls, or text in a conversation that began with the same question. Examples in a prompt look like history
    too: the earlier call must not have had the same last answer before it.
    """
    later = new.filter(pl.col("answered").is_not_null() & (pl.col("status") != "invalid")).select(
        "row", "start", "length", "asked", "answered", pl.struct("instance", "answered").hash().alias("code")
    )
    if later.is_empty():
        return pl.DataFrame(schema={"row": pl.UInt32, "parent": pl.UInt32, "compacted": pl.Boolean})
    continued = links.filter(pl.col("status") == "ok")["parent"]
    earlier = (
        calls.filter((pl.col("status") == "ok") & ~pl.col("row").is_in(continued.implode()))
        .select("row", "start", "instance", "answers", "asked", pl.col("answered").alias("before"), "length")
        .explode("answers").unnest("answers")
        .select(
            "before", "tool_calls", pl.col("row").alias("parent"), pl.col("asked").alias("asked_before"),
            "act", "start", pl.col("length").alias("length_before"), pl.struct("instance", "act").hash().alias("code"),
        )
        .unique(["parent", "code"], keep="first", maintain_order=True)
    )  # fmt: skip
    return (
        later.sort("start", "row")
        .join_asof(
            earlier.sort("start", "parent"), on="start", by="code", strategy="backward", allow_exact_matches=False,
            check_sortedness=False,
        )
        .filter(
            pl.col("parent").is_not_null()
            & pl.col("before").ne_missing(pl.col("answered"))
            & ((pl.col("tool_calls") > 0) | (pl.col("asked") == pl.col("asked_before")).fill_null(value=False))
        )
        .sort("row").unique("parent", keep="first", maintain_order=True)
        .select("row", "parent", (pl.col("length") <= pl.col("length_before")).alias("compacted"))
    )  # fmt: skip
