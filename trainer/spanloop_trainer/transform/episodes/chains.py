"""Which call continues which: one call's messages plus its answer begin the next call's messages.

Every prompt has a code per prefix (a running sum of hashes of message and place), so continuing is a join on codes and
not a comparison of all pairs; with 64 bits, a million calls give a false match once in ten million builds. Identical
conversations (the same first prompt and the same answer without ids) are told apart by trace, then by process, then by time: a call goes
on from the one that ended last before it and is still open. One that was given up long ago is thus not taken up by another run.

Two more things hold calls together where no prefix does: the same prompt sent again after a failure, and a history that was rewritten
(a clock in the system prompt, messages dropped or summed up) but still ends with the answer that the earlier call gave.
"""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

import numpy as np
import polars as pl

# A prompt that is sent again later than this after its failure is another run of the same task.
RETRY_AFTER = timedelta(minutes=1)
_IN_TRACE = ("trace_id", "code")
# A conversation may move between replicas with every call: its own process comes first, and then any.
_ANYWHERE = (("instance", "code"), ("code",))
# What tells an earlier call of a rewritten history, best first; the last two where the first question is gone, and of tool calls only.
# Ids of tool calls are in a key, but not every framework makes them unique.
_EDITED = (
    ("instance", "trace_id", "key", "asked"),
    ("instance", "key", "asked"),
    ("instance", "trace_id", "act", "asked"),
    ("instance", "act", "asked"),
    # Replicas share a session.
    ("session", "key", "asked"),
    ("session", "act", "asked"),
    ("instance", "trace_id", "act"),
    ("instance", "key"),
)
_PAIRS = pl.Schema({"row": pl.UInt32, "parent": pl.UInt32})


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


def _end() -> pl.Expr:
    return (pl.col("start") + pl.duration(nanoseconds="duration_ns")).alias("end")


def _parents(calls: pl.DataFrame) -> pl.DataFrame:
    """`code` of prompt plus answer, for every answer of a call that may be continued."""
    return (
        calls.filter(pl.col("status") == "ok")
        .select(pl.col("row").alias("parent"), "start", _end(), "instance", "trace_id", "answers")
        .explode("answers").unnest("answers")
        # n equal answers: the first stands for them.
        .sort("parent", "choice").unique(["parent", "code"], keep="first", maintain_order=True)
        .select("parent", "choice", "start", "end", "instance", "trace_id", "code")
    )  # fmt: skip


def _children(calls: pl.DataFrame) -> pl.DataFrame:
    """`code` of every prefix that ends with an assistant message; `length` is that prefix's number of messages."""
    return (
        calls.filter((pl.col("status") != "invalid") & (pl.col("prefixes").list.len() > 0))
        .select("row", "start", "instance", "trace_id", "status", "prefixes").explode("prefixes").unnest("prefixes")
        .select("row", "length", "start", "instance", "trace_id", "status", "code")
    )  # fmt: skip


def _match(children: pl.DataFrame, parents: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pair children with parents of equal `code`; also gives all children that had a parent to choose."""
    begun = parents.group_by("code").agg(pl.col("start").min().alias("begun"))
    seen = (
        children.join(begun, on="code")
        .filter(pl.col("begun") <= pl.col("start"))
        # The longest known prefix is the call that was continued.
        .sort("row", "length", "code").unique("row", keep="last", maintain_order=True)
    )  # fmt: skip
    attempts = seen.filter(pl.col("status") != "ok")
    pairs = _taken(seen.filter(pl.col("status") == "ok"), parents)
    # A failed call is one more attempt at the same step: it joins the episode and leaves the parent open.
    pairs = pl.concat([pairs, _latest(attempts, parents, (_IN_TRACE, *_ANYWHERE))])
    links = pairs.join(seen.select("row", "length", "status", "code"), on="row").join(
        parents.select("parent", "choice", "code"), on=["parent", "code"]
    )
    # Of several answers one goes on; whoever takes up another is a fork.
    links = links.sort("row")
    first = (pl.col("status") != "ok") | pl.struct("parent", pl.col("status") == "ok").is_first_distinct()
    return links.filter(first).select("row", "length", "status", "parent", "choice"), seen.select("row")


def _taken(children: pl.DataFrame, parents: pl.DataFrame) -> pl.DataFrame:
    """`row` and `parent` of all children that find an open parent of their `code`."""
    parents = parents.join(children, on="code", how="semi")
    # Nearly all codes occur once, and then there is nothing to choose.
    again = pl.col("code").is_duplicated()
    several = pl.concat([frame.filter(again).select("code") for frame in (children, parents)])
    alone = children.join(several, on="code", how="anti").join(parents, on="code").select("row", "parent")
    if several.is_empty():
        return alone
    children, parents = (frame.join(several, on="code", how="semi") for frame in (children, parents))
    in_trace, rest, still_open = _open(children, parents, _IN_TRACE)
    # One whose own trace has such a parent, which another took, is a fork of it.
    known = parents.group_by(_IN_TRACE).agg(pl.col("start").min().alias("begun"))
    forks = rest.join(known, on=_IN_TRACE).filter(pl.col("begun") <= pl.col("start"))
    rest, found = rest.join(forks, on="row", how="anti"), [alone, in_trace]
    for key in _ANYWHERE:
        pairs, rest, still_open = _open(rest, still_open, key)
        found.append(pairs)
    return pl.concat(found)


def _open(
    children: pl.DataFrame, parents: pl.DataFrame, key: tuple[str, ...]
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Pairs of equal `key`, and the children and parents that are left."""
    pairs = _PAIRS.to_frame()
    # The span of a stream may end long after the answer was there: what had begun is the second choice.
    for ready in ("end", "start"):
        if children.is_empty() or parents.is_empty():
            break
        number = pl.struct(key).hash().alias("key")
        found = _last_open(
            children.select("row", "start", number),
            parents.select("parent", pl.col(ready).alias("at"), number),
        )
        children, parents = (
            children.join(found, on="row", how="anti"),
            parents.join(found, on="parent", how="anti"),
        )
        pairs = pl.concat([pairs, found])
    return pairs, children, parents


def _last_open(children: pl.DataFrame, parents: pl.DataFrame) -> pl.DataFrame:
    """Pair each child, in order of time, with the last parent of its `key` before it that no child has yet.

    Without a loop, as brackets are matched: a parent opens one, a child closes one, and the two of a pair stand at the same level with none
    of that level between.

    Args:
        children: `row`, `start`, `key`.
        parents: `parent`, `at` (from then on it can be taken), `key`.
    """
    events = pl.concat(
        [
            parents.select("key", "at", pl.col("parent").alias("call"), pl.lit(1, pl.Int64).alias("opens")),
            children.select("key", pl.col("start").alias("at"), pl.col("row").alias("call"), pl.lit(-1, pl.Int64).alias("opens")),
        ]
    ).sort("key", "at", "call", "opens")  # fmt: skip
    opens, call, number = events["opens"].to_numpy(), events["call"], events["key"].rle_id().to_numpy()
    # Each key starts deeper than the one before it can have gone, so that the lowest level so far is its own.
    begins = number.astype(np.int64) * -(2 * len(opens) + 2)
    depth = np.cumsum(opens)
    first = np.flatnonzero(np.diff(number, prepend=-1))
    depth = depth - (depth - opens)[first][number] + begins
    low = np.minimum(np.minimum.accumulate(depth), begins)
    # Where nothing is open, the level falls below zero, which counts as zero from there on.
    closes = opens < 0
    nothing = closes & (low < np.where(np.isin(np.arange(len(low)), first), begins, np.roll(low, 1)))
    level = depth - low + closes
    order = np.lexsort((level, number))
    order = order[~nothing[order]]
    ends = np.flatnonzero(closes[order])
    return pl.DataFrame([call.gather(order[ends]).alias("row"), call.gather(order[ends - 1]).alias("parent")])


def _latest(children: pl.DataFrame, parents: pl.DataFrame, keys: tuple[tuple[str, ...], ...]) -> pl.DataFrame:
    """`row` of children and the `parent` that began last before each, by the first of the keys that finds one."""
    pairs = _PAIRS.to_frame()
    for key in keys:
        if children.is_empty():
            break
        number = pl.struct(key).hash().alias("key")
        found = (
            children.select("row", "start", number).sort("start", "row")
            .join_asof(
                parents.select("parent", "start", number).sort("start", "parent"), on="start", by="key",
                strategy="backward", check_sortedness=False,
            )
            .filter(pl.col("parent") < pl.col("row")).select("row", "parent")
        )  # fmt: skip
        children = children.join(found, on="row", how="anti")
        pairs = pl.concat([pairs, found])
    return pairs


def link_calls(calls: pl.DataFrame) -> Chains:
    """Which call continues which.

    Args:
        calls: `row`, `start`, `duration_ns`, `instance`, `session`, `trace_id`, `status`, `answers`, `prefixes`, `length`, `prompt_code`, `answered`,
            `answered_key`, `asked`.
    """
    links, seen = _match(_children(calls), _parents(calls))
    # A call whose history is known continues it, or is a fork of it.
    new = calls.filter(~pl.col("row").is_in(seen["row"].implode()))
    return Chains(links, _retries(new), _edited(new, calls, links))


def _retries(calls: pl.DataFrame) -> pl.DataFrame:
    """Pair a failed first call with the next of the same prompt in its trace, else in its process."""
    first = calls.filter(pl.col("length") > 0).select(
        "row",
        "start",
        "status",
        _end(),
        "trace_id",
        pl.struct("instance", "prompt_code").hash().alias("code"),
    )
    first = first.filter(pl.col("code").is_duplicated())
    # Not itself, where no time has passed.
    after = pl.max_horizontal("end", pl.col("start") + pl.duration(nanoseconds=1))
    failed = first.filter(pl.col("status").is_in(["error", "truncated"])).select(
        pl.col("row").alias("parent"), "trace_id", "code", after.alias("start")
    )
    pairs = _PAIRS.to_frame()
    for key in (("trace_id", "code"), ("code",)):
        if failed.is_empty():
            break
        number = pl.struct(key).hash().alias("key")
        found = (
            failed.select("parent", "start", number).sort("start", "parent")
            .join_asof(
                first.join(pairs, on="row", how="anti").select("row", "start", number).sort("start", "row"),
                on="start", by="key", strategy="forward", tolerance=RETRY_AFTER, check_sortedness=False,
            )
            .filter(pl.col("row").is_not_null())
            .sort("parent").unique("row", keep="last", maintain_order=True)
            .select("row", "parent")
        )  # fmt: skip
        failed = failed.join(found, on="parent", how="anti")
        pairs = pl.concat([pairs, found])
    return pairs


def _edited(new: pl.DataFrame, calls: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """Pair calls of unknown history with the last open call that gave the last answer in it (see `_EDITED`).

    The answer must be tool calls, or text in a conversation that began with the same question. Examples in a prompt look like history
    too: the earlier call must not have had the same last answer before it, but for tool calls of a history that grows.
    """
    later = new.filter(pl.col("answered").is_not_null() & (pl.col("status") != "invalid")).select(
        "row", "start", "status", "instance", "session", "trace_id", "length", "asked",
        pl.col("answered").alias("act"), pl.col("answered_key").alias("key"),
    )  # fmt: skip
    if later.is_empty():
        return pl.DataFrame(schema={**_PAIRS, "compacted": pl.Boolean})
    continued = links.filter(pl.col("status") == "ok")["parent"]
    same_before = pl.col("before").eq_missing(pl.col("act"))
    earlier = (
        calls.filter((pl.col("status") == "ok") & ~pl.col("row").is_in(continued.implode()))
        .select(
            pl.col("row").alias("parent"), "start", _end(), "instance", "session", "trace_id", "asked", "answers",
            pl.col("answered").alias("before"), pl.col("length").alias("length_before"),
        )
        .explode("answers").unnest("answers")
        .filter(~same_before | (pl.col("tool_calls") > 0))
        .join(later, on="act", how="semi")
        .sort("parent", "choice").unique(["parent", "key"], keep="first", maintain_order=True)
    )  # fmt: skip
    pairs = _PAIRS.to_frame()
    children, parents, ok = later.join(earlier, on="act", how="semi"), earlier, pl.col("status") == "ok"
    for key in _EDITED:
        known = pl.all_horizontal(pl.col(name).is_not_null() for name in key)
        fits = known if "asked" in key else known & (pl.col("tool_calls") > 0)
        found, _, _ = _open(
            children.filter(known & ok),
            parents.filter(fits).unique(["parent", *key], keep="first", maintain_order=True),
            key,
        )
        # A failed call leaves its parent open for the attempt that works.
        attempts = _latest(children.filter(known & ~ok), earlier.filter(fits), (key,))
        pairs = pl.concat([pairs, found, attempts])
        children = children.join(pairs, on="row", how="anti")
        parents = parents.join(found, on="parent", how="anti")
    acts = earlier.unique(["parent", "act"], keep="first", maintain_order=True)
    return (
        pairs.sort("row")
        .join(later.select("row", "length", "act", "status"), on="row", maintain_order="left")
        .join(
            acts.select("parent", "act", "before", "length_before"),
            on=["parent", "act"],
            maintain_order="left",
        )
        .filter(~same_before | (pl.col("length") > pl.col("length_before")))
        .filter(~ok | pl.struct("parent", ok).is_first_distinct())
        .select("row", "parent", (pl.col("length") <= pl.col("length_before")).alias("compacted"))
    )
