"""Random traces with random judgements, beside a reference that walks from span to span."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.examples import few

from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.rewards import address, name_answers

T0 = datetime(2026, 1, 1)


class Node(NamedTuple):
    """A span; its id is its place in the list."""

    parent: int | None  # None: a root; may be any span, so that there are circles
    kind: str
    episode: int
    start: int


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[Node], list[tuple[int, int]]]:
    size = draw(st.integers(1, 14))
    nodes = []
    for number in range(size):
        # Mostly a tree from the top; sometimes anything.
        above = st.integers(0, number - 1) if number and draw(st.integers(0, 9)) else st.integers(0, size - 1)
        parent = draw(st.none() | above)
        kind = draw(st.sampled_from(["call", "call", "span", "tool"]))
        nodes.append(Node(parent, kind, draw(st.integers(0, 1)), draw(st.integers(1, 20))))
    judged = draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 30)), min_size=1, max_size=4))
    return nodes, judged


def above(nodes: list[Node], cut: set[int], number: int) -> list[int]:
    """The spans above, nearest first."""
    found: list[int] = []
    while number not in cut and (parent := nodes[number].parent) is not None and parent != number:
        found.append(parent)
        number = parent
    return found


def cycles(nodes: list[Node]) -> set[int]:
    """Of each circle the span with the first id, which becomes a root."""
    cut: set[int] = set()
    for start in range(len(nodes)):
        seen: list[int] = []
        at: int | None = start
        while at is not None and at not in seen:
            seen.append(at)
            at = nodes[at].parent
        if at is not None:
            cut.add(min(seen[seen.index(at) :], key=str))
    return cut


def expected(nodes: list[Node], span: int, time: int) -> tuple[str, int] | None:
    """`("call", span)`, `("episode", number)`, or None: by the trace, or by nothing."""
    cut = cycles(nodes)
    paths = {number: above(nodes, cut, number) for number in range(len(nodes))}
    calls = sorted(
        (n for n, node in enumerate(nodes) if node.kind == "call"), key=lambda n: (nodes[n].start, str(n))
    )
    if span in calls:
        return "call", span
    below = [n for n in calls if span in paths[n]]
    sizes = {e: sum(nodes[n].episode == e for n in calls) for e in (0, 1)}
    if below:
        episodes = {nodes[n].episode for n in below}
        if len(episodes) > 1:
            return None
        (episode,) = episodes
        return ("episode", episode) if len(below) == sizes[episode] else ("call", below[-1])
    shared = {n for n in range(len(nodes)) if n in calls or any(n in paths[call] for call in calls)}
    place = next((n for n in paths[span] if n in shared), None)
    if place is None:
        return by_trace(nodes, calls, time)
    way = [span, *paths[span]]
    branch = way[way.index(place) - 1]
    around = [n for n in calls if n == place or place in paths[n]]
    at = nodes[branch].start
    episodes = {nodes[n].episode for n in around}
    if len(episodes) > 1:
        return running(nodes, around, at) or by_trace(nodes, calls, time)
    (episode,) = episodes
    before = [n for n in around if nodes[n].start <= at]
    last = [n for n in calls if nodes[n].episode == episode][-1]
    outer = not before or before[-1] == last
    if outer and len(around) == sizes[episode] and place not in calls and nodes[branch].kind != "tool":
        return "episode", episode
    return ("call", before[-1]) if before else by_trace(nodes, calls, time)


def running(nodes: list[Node], calls: list[int], at: int) -> tuple[str, int] | None:
    """All calls take one second."""
    found = []
    for episode in (0, 1):
        own = [n for n in calls if nodes[n].episode == episode]
        if own and nodes[own[0]].start <= at <= max(nodes[n].start for n in own) + 1:
            found.append([n for n in own if nodes[n].start <= at][-1])
    return ("call", found[0]) if len(found) == 1 else None


def by_trace(nodes: list[Node], calls: list[int], time: int) -> tuple[str, int] | None:
    episodes = {nodes[n].episode for n in calls}
    if len(episodes) == 1:
        return "episode", episodes.pop()
    return running(nodes, calls, time) if calls else None


def frames(nodes: list[Node], judged: list[tuple[int, int]]) -> dict[str, pl.DataFrame]:
    def moment(second: int) -> datetime:
        return T0 + timedelta(seconds=second)

    text = dict.fromkeys(("agent_name", "agent_session", "rollout_above", "task_above"), pl.String)
    spans = pl.DataFrame(
        [
            ("t", str(n), "" if node.parent is None else str(node.parent), moment(node.start), False, node.kind == "tool", False)
            for n, node in enumerate(nodes)
        ],
        schema={
            "trace_id": pl.String, "span_id": pl.String, "parent_span_id": pl.String, "start": pl.Datetime("ns"),
            "is_agent": pl.Boolean, "is_tool": pl.Boolean, "is_chain": pl.Boolean,
        },
        orient="row",
    ).with_columns(pl.lit(None, dtype).alias(name) for name, dtype in text.items())  # fmt: skip
    kinds = pl.DataFrame(
        {
            "span_id": [str(n) for n in range(len(nodes))],
            "kind": [node.kind for node in nodes],
            "episode_id": [str(node.episode) for node in nodes],
        }
    )
    calls = (
        spans.select("trace_id", "span_id", "parent_span_id", "start")
        .join(kinds.filter(kind="call"), on="span_id", maintain_order="left")
        .sort("start", "span_id")
        .with_row_index("row")
        .with_columns(
            pl.lit(None, pl.String).alias("parent_episode_id"),
            pl.lit(None, pl.String).alias("session"),
            pl.lit(None, pl.String).alias("response_id"),
            pl.lit(1_000_000_000, pl.UInt64).alias("duration_ns"),
        )
    )
    judgements = pl.DataFrame(
        [(str(n), moment(time), "t", str(span), "", "", "r", float(n), "f", "e", "1") for n, (span, time) in enumerate(judged)],
        schema={
            "id": pl.String, "time": pl.Datetime("ns"), "trace_id": pl.String, "span_id": pl.String, "response_id": pl.String,
            "session_id": pl.String, "name": pl.String, "value": pl.Float64, "source": pl.String, "evaluator": pl.String,
            "version": pl.String,
        },
        orient="row",
    )  # fmt: skip
    return {"spans": spans, "calls": calls, "judgements": judgements}


def addressed(given: dict[str, pl.DataFrame]) -> tuple[dict[int, tuple[str, int]], int]:
    calls = given["calls"]
    gateway = pl.DataFrame(schema=dict.fromkeys(("trace_id", "span_id", "response_id"), pl.String))
    funnel = Funnel()
    named = name_answers(given["judgements"], calls, gateway, given["spans"])
    found = address(named, calls, given["spans"], funnel)
    spans = dict(calls.select("row", "span_id").rows())
    result: dict[int, tuple[str, Any]] = {
        int(value): ("call", int(spans[row])) for row, value in found.of_calls.select("row", "value").rows()
    }
    for episode, value in found.of_episodes.select("episode_id", "value").rows():
        assert int(value) not in result
        result[int(value)] = ("episode", int(episode))
    return result, funnel.counts["judgements_outside"]


@settings(deadline=None, max_examples=few(50))
@given(forests())
def test_every_judgement_is_where_the_reference_puts_it(
    drawn: tuple[list[Node], list[tuple[int, int]]],
) -> None:
    nodes, judged = drawn
    found, outside = addressed(frames(nodes, judged))
    wanted = {n: expected(nodes, *one) for n, one in enumerate(judged)}
    assert found == {n: where for n, where in wanted.items() if where is not None}
    assert outside == sum(where is None for where in wanted.values())


@settings(deadline=None, max_examples=few(20))
@given(forests(), st.randoms(use_true_random=False))
def test_the_order_of_spans_and_judgements_does_not_matter(
    drawn: tuple[list[Node], list[tuple[int, int]]], random: Any
) -> None:
    given_ = frames(*drawn)
    shuffled = {
        name: frame.sample(fraction=1.0, shuffle=True, seed=random.randrange(2**32))
        if name != "calls"
        else frame
        for name, frame in given_.items()
    }
    assert addressed(shuffled) == addressed(given_)
