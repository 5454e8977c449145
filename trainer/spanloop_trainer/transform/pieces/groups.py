"""Groups of traces that nothing joins to each other, so that stage B can have one group after the other.

Whatever joins two calls in stage B, or a judgement to a call, is a key that both of their traces have: a response id, a session, a prompt
that goes on from an answer, … Traces with a key in common are in one group, and so are traces that only might be joined: a group that is
too large costs memory, one that is too small would cost a row. Small groups share a bin; most are a conversation, or the rollouts of a task.

Hashes stand for keys and traces: two that are the same by chance make a group larger and nothing wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from spanloop_trainer.transform.flavours import Flag

Codes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.uint32]
# A trace (or a judgement) and one of its keys.
_EDGES = pl.Schema({"node": pl.UInt64, "key": pl.UInt64})
_NODE = pl.col("trace_id").hash().alias("node")
_OF_JUDGEMENT = 0x6A7564676D656E74  # a seed, so that a judgement's number is no trace's


class Bins(NamedTuple):
    """Which traces and judgements are looked at together.

    Attributes:
        number: of bins.
        nodes: (n,) hashes of traces, ascending.
        bins: (n,) the bin of each.
        of_judgements: (judgements,) the bin of each, in their order.
    """

    number: int
    nodes: Codes
    bins: Places
    of_judgements: pl.Series

    def of(self, traces: pl.Series) -> pl.Series:
        """The bin of each trace; one without calls, of which nothing is asked, is in the first."""
        return pl.Series("bin", _found(self.nodes, self.bins, traces.hash().to_numpy()))


class _Read(NamedTuple):
    """What is asked of the pieces: columns of one of their tables at a time, as edges."""

    pieces: Sequence[Path]
    judgements: pl.DataFrame

    def edges(self, table: str, *ways: Callable[[pl.LazyFrame], pl.LazyFrame]) -> list[pl.DataFrame]:
        return [
            way(pl.scan_parquet(piece / f"{table}.parquet")).collect()
            for piece in self.pieces
            for way in ways
        ]

    def judged(self, key: pl.Expr) -> pl.DataFrame:
        return self.judgements.select(_judgement(), key.hash().alias("key")).drop_nulls()


def _judgement() -> pl.Expr:
    return pl.col("id").hash(seed=_OF_JUDGEMENT).alias("node")


def _keyed(key: pl.Expr, *where: pl.Expr) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    return lambda frame: frame.filter(key.is_not_null(), *where).select(_NODE, key.hash().alias("key"))


def closed_bins(pieces: Sequence[Path], judgements: pl.DataFrame, rows: int) -> Bins:
    """Put the traces of some pieces in bins.

    Args:
        pieces: folders of pieces, which together are a window.
        judgements: rows of table `rewards`.
        rows: of calls and of spans around them, about so many in a bin.
    """
    read = _Read(pieces, judgements)
    traces = pl.concat(
        [
            frame.unique()
            for table in ("calls", "gateway")
            for frame in read.edges(table, lambda frame: frame.select(_NODE).unique())
        ]
        + [judgements.select(_judgement())]
    )
    nodes: Codes = np.unique(traces["node"].to_numpy())
    labels: Places = np.arange(len(nodes), dtype=np.uint32)
    for edges in _edges(read):
        _join(labels, nodes, edges)
    weight = np.zeros(len(nodes), dtype=np.int64)
    for table in ("calls", "ancestors"):
        for frame in read.edges(table, lambda frame: frame.group_by(_NODE).len()):
            place, known = _places(nodes, frame["node"].to_numpy())
            weight[place[known]] += frame["len"].to_numpy()[known]
    of_groups = np.bincount(labels, weights=weight, minlength=len(nodes)) if len(nodes) else weight
    # Groups in order of their first trace; one that would overfill a bin begins the next.
    begun = (np.cumsum(of_groups) - of_groups) // rows
    heads = np.unique(labels)
    number = np.zeros(len(nodes), dtype=np.uint32)
    number[heads] = np.cumsum(np.diff(begun[heads], prepend=begun[heads[:1]]) > 0)
    bins = number[labels]
    of_judgements = _found(nodes, bins, judgements.select(_judgement())["node"].to_numpy())
    return Bins(int(bins.max(initial=0)) + 1, nodes, bins, pl.Series("bin", of_judgements))


def _found(nodes: Codes, bins: Places, asked: Codes) -> Places:
    place, known = _places(nodes, asked)
    found = np.zeros(len(asked), dtype=np.uint32)
    found[known] = bins[place[known]]
    return found


def _places(nodes: Codes, asked: Codes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Where each is among `nodes`, and whether it is."""
    place = np.searchsorted(nodes, asked)
    known = place < len(nodes)
    known[known] = nodes[place[known]] == asked[known]
    return place, known


def _join(labels: Places, nodes: Codes, edges: pl.DataFrame) -> None:
    """Give all traces of a key one label, the least of theirs; `labels` is changed."""
    edges = edges.filter(pl.col("key").is_duplicated())
    if edges.is_empty():
        return
    edges = edges.sort("key")
    place, known = _places(nodes, edges["node"].to_numpy())
    keys, place = edges["key"].to_numpy()[known], place[known]
    if not len(keys):
        return
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    sizes = np.diff(np.append(first, len(keys)))
    while True:
        own = labels[place]
        least = np.repeat(np.minimum.reduceat(own, first), sizes)
        if np.array_equal(own, least):
            return
        # A label is the place of the group's first trace, whose label is itself: groups are hung below others and then followed up.
        np.minimum.at(labels, own, least)
        while not np.array_equal(further := labels[labels], labels):
            labels[:] = further


def _edges(read: _Read) -> Iterable[pl.DataFrame]:
    """All that may join traces, a kind at a time."""
    none = _EDGES.to_frame()
    answer = pl.col("response_id")
    asked = read.judged(pl.when(answer != "").then(answer))
    yield pl.concat(
        [none, *read.edges("calls", _keyed(answer)), *read.edges("gateway", _keyed(answer)), asked]
    )
    # The stamps of the gateway are told apart by span.
    yield pl.concat([none, *read.edges("gateway", _keyed(pl.col("span_id")))])
    ids = [_keyed(pl.col(name)) for name in ("session", "rollout")]
    above = [_keyed(pl.col(name)) for name in ("agent_session", "rollout_above")]
    session = read.judged(pl.when(pl.col("session_id") != "").then("session_id"))
    yield pl.concat([none, *read.edges("calls", *ids), *read.edges("ancestors", *above), session])
    yield from _judged(read)
    yield from _chains(read)


def _judged(read: _Read) -> Iterable[pl.DataFrame]:
    """What judgements name by trace, or by span alone: they are looked at where that is."""
    if read.judgements.is_empty():
        return
    named = read.judged(pl.when(pl.col("trace_id") != "").then("trace_id"))
    yield pl.concat([named, named.select(pl.col("key").alias("node"), "key").unique()])
    alone = (pl.col("trace_id") == "") & (pl.col("span_id") != "")
    spans = read.judged(pl.when(alone).then("span_id"))
    if spans.height:
        wanted = spans["key"].unique().implode()
        having = _keyed(pl.col("span_id"), pl.col("span_id").hash().is_in(wanted))
        yield pl.concat(
            [
                spans,
                *(edge for table in ("calls", "gateway", "ancestors") for edge in read.edges(table, having)),
            ]
        )


def _chains(read: _Read) -> Iterable[pl.DataFrame]:
    """What `episodes.chains` and `calls.twins` compare: prompts, answers and what they do."""
    answers = pl.concat([_ANSWERS.to_frame(), *read.edges("calls", _answers)])
    goes_on = answers["code"].drop_nulls().unique().implode()
    prefixes = pl.concat(
        [_PREFIXES.to_frame(), *read.edges("calls", lambda frame: _prefixes(frame, goes_on))]
    )
    both = [frame.select("node", pl.col("code").alias("key")).drop_nulls() for frame in (answers, prefixes)]
    yield pl.concat(both)
    told = _told(answers, prefixes)
    del answers, prefixes, both
    yield from _rewritten(read, told)
    # The same prompt again, after a failure; or with the same answer, where no id says that it is another.
    has_prompt, act = pl.col("length") > 0, pl.col("answers").list.first().struct.field("act")
    failed = pl.col("status").is_in(["error", "truncated"])
    yield _with_one(read, pl.struct("instance", "prompt_code").hash(), failed, has_prompt)
    flags = pl.col("flags") & (Flag.END_NOT_RECORDED | Flag.ONLY_TEXT).value
    unsure = (flags == Flag.END_NOT_RECORDED.value) & pl.col("response_id").is_null()
    same = pl.struct("service", "prompt_code", act.alias("act")).hash()
    yield _with_one(read, same, unsure, has_prompt & act.is_not_null())


def _rewritten(read: _Read, told: pl.Series) -> Iterable[pl.DataFrame]:
    """Histories that end with an answer that was given: of calls whose history is not known."""

    def later(calls: pl.LazyFrame) -> pl.LazyFrame:
        unknown = pl.col("answered").is_not_null() & ~_CALL.is_in(told.implode())
        return calls.filter(unknown).select(
            _NODE, "instance", "asked", pl.col("answered").alias("act"), pl.col("answered_key").alias("key")
        )

    def given(calls: pl.LazyFrame) -> pl.LazyFrame:
        return (
            calls.select(_NODE, "instance", "asked", "answers")
            .explode("answers", empty_as_null=False)
            .unnest("answers")
            .select("node", "instance", "asked", "act", "key")
        )

    for same in (("instance", "key"), ("instance", "act", "asked"), ("instance", "act")):
        key = pl.struct(same).hash().alias("key")
        # What was asked may come from a twin, where a span does not tell.
        where = pl.lit(value=True) if len(same) == 3 or "key" in same else pl.col("asked").is_null()
        asking = (later,) if "act" not in same or "asked" in same else (later, given)
        wanted = _distinct(read, *(_keys(of, key, where) for of in asking)).implode()
        if wanted.list.len().item():
            among = pl.col("key").is_in(wanted)
            yield pl.concat(read.edges("calls", *(_keys(of, key, among) for of in (later, given))))


def _keys(
    of: Callable[[pl.LazyFrame], pl.LazyFrame], key: pl.Expr, where: pl.Expr
) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    return lambda frame: of(frame).select("node", "asked", key).filter(where).select("node", "key")


def _with_one(read: _Read, key: pl.Expr, one: pl.Expr, where: pl.Expr) -> pl.DataFrame:
    """Edges of calls by a key that one call of some kind has."""
    wanted = _distinct(
        read, lambda frame: frame.filter(one & where).select(_NODE, key.alias("key"))
    ).implode()

    def having(calls: pl.LazyFrame) -> pl.LazyFrame:
        return calls.filter(where).select(_NODE, key.alias("key")).filter(pl.col("key").is_in(wanted))

    return pl.concat([_EDGES.to_frame(), *(read.edges("calls", having) if wanted.list.len().item() else [])])


def _distinct(read: _Read, *edges: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.Series:
    found = [frame["key"] for frame in read.edges("calls", *edges)]
    return pl.concat([pl.Series("key", dtype=pl.UInt64), *found]).unique()


def _answers(calls: pl.LazyFrame) -> pl.LazyFrame:
    """`_ANSWERS`: a row an answer, or one of a call that has none."""
    response = pl.when(pl.col("response_id").is_not_null()).then(pl.col("response_id").hash())
    return (
        calls.select(
            _NODE,
            _CALL,
            "start",
            response.alias("response"),
            ((pl.col("status") == "ok") & pl.col("has_content")).alias("open"),
            pl.col("answers").list.first().struct.field("act").alias("act"),
            _codes("answers"),
        )
        .explode("code", empty_as_null=True)
        .select(_ANSWERS.names())
    )


def _prefixes(calls: pl.LazyFrame, answers: pl.Series) -> pl.LazyFrame:
    """`_PREFIXES`: those that end with one of these answers."""
    return (
        calls.select(_NODE, _CALL, "start", _codes("prefixes"))
        .explode("code", empty_as_null=False)
        .filter(pl.col("code").is_in(answers))
        .select(_PREFIXES.names())
    )


def _codes(of: str) -> pl.Expr:
    return pl.col(of).list.eval(pl.element().struct.field("code")).alias("code")


def _told(answers: pl.DataFrame, prefixes: pl.DataFrame) -> pl.Series:
    """Calls of which `chains` is sure to find the call before: nothing else is looked for then.

    It finds that call if nothing can have made it the twin of another one, which might stay in its place.
    """
    calls = answers.unique(["call", "start", "act"]).with_columns(
        # Sent twice with two starts, or beside an equal answer of its trace, or with a response id that others have.
        pl.col("call").is_duplicated().alias("twice"),
        (pl.struct("node", "act").is_duplicated() | pl.col("act").is_null().any().over("node")).alias(
            "inside"
        ),
        (pl.col("response").is_not_null() & pl.col("response").is_duplicated()).alias("again"),
    )
    doubtful = calls.filter(pl.col("twice") | pl.col("inside") | pl.col("again"))["call"]
    sure = answers.filter(pl.col("open") & ~pl.col("call").is_in(doubtful.unique().implode()))
    first = sure.group_by("code").agg(pl.col("start").min().alias("begun"))
    found = prefixes.join(first, on="code").filter(pl.col("begun") < pl.col("start"))
    twice = calls.filter("twice")["call"].unique()
    return found.filter(~pl.col("call").is_in(twice.implode()))["call"].unique()


_CALL = pl.struct("trace_id", "span_id").hash().alias("call")
_OF_PREFIX: dict[str, pl.DataType | type[pl.DataType]] = {
    "node": pl.UInt64, "call": pl.UInt64, "code": pl.UInt64, "start": pl.Datetime("ns"),
}  # fmt: skip
_PREFIXES = pl.Schema(_OF_PREFIX)
# Null `code`: of a call without an answer; null `response`: it has no id; `open`: it may be gone on from.
_ANSWERS = pl.Schema({**_OF_PREFIX, "response": pl.UInt64, "open": pl.Boolean, "act": pl.UInt64})
