"""What a judgement judges where spans are nested, parallel, late, in circles or without a time: link, then subtree, then time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from tests.helpers.stores import laid

from spanloop_store import connect
from spanloop_trainer.config import Config
from spanloop_trainer.transform import Manifest, build, load_dataset

from .conftest import Agent, Row, insert, said, user

START = datetime.fromtimestamp(1_700_000_000, UTC)
EPOCH = datetime.fromtimestamp(0, UTC)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    opened = connect(laid(tmp_path_factory.mktemp("addressing") / "store"))
    yield opened
    opened.close()


Built = Callable[..., tuple[Manifest, dict[str, list[float]]]]


@pytest.fixture
def built(store: Client, tmp_path: Path) -> Built:
    """Builds from rows and judgements; gives the values that each span's row has, by span id."""

    def run(rows: list[Row], *judgements: dict[str, Any]) -> tuple[Manifest, dict[str, list[float]]]:
        for table in ("otel_traces", "rewards"):
            store.command(f"TRUNCATE TABLE {table}")
        insert(store, rows)
        for number, columns in enumerate(judgements):
            row = {
                "id": str(number),
                "name": "r",
                "value": float(number + 1),
                "source": "feedback",
                **columns,
            }
            row["time"] = START + timedelta(seconds=columns["time"]) if "time" in columns else LATE
            store.insert("rewards", [list(row.values())], column_names=list(row))
        build(store, tmp_path / "dataset", config=Config())
        manifest, frame = load_dataset(tmp_path / "dataset")
        values = pl.col("reward_parts").list.eval(pl.element().struct.field("value"))
        return manifest, dict(frame.select("span_id", values).rows())

    return run


LATE = datetime(2026, 1, 1, tzinfo=UTC)


def span(span_id: str, parent: str = "", *, at: float = 0, seconds: float = 1, **attributes: str) -> Row:
    """A span that is no model call."""
    return {
        **Agent().call([user("p")], said("a"), at=0),
        "Timestamp": int((START.timestamp() + at) * 1e9),
        "TraceId": "t",
        "SpanId": span_id,
        "ParentSpanId": parent,
        "SpanName": span_id,
        "SpanAttributes": {key.replace("__", "."): value for key, value in attributes.items()},
        "Duration": int(seconds * 1e9),
    }


def agent(span_id: str, parent: str = "", **more: Any) -> Row:
    return span(span_id, parent, gen_ai__operation__name="invoke_agent", gen_ai__agent__name=span_id, **more)


def tool(span_id: str, parent: str, **more: Any) -> Row:
    return span(span_id, parent, gen_ai__operation__name="execute_tool", **more)


def call(
    span_id: str, parent: str = "", *, at: float, trace: str = "t", seconds: float = 0.5, **attributes: str
) -> Row:
    row = Agent(span_id).call([user(f"prompt {span_id}")], said("a"), at=0, **attributes)
    return {
        **row,
        "Timestamp": int((START.timestamp() + at) * 1e9),
        "TraceId": trace,
        "SpanId": span_id,
        "ParentSpanId": parent,
        "Duration": int(seconds * 1e9),
    }


def two_agents() -> list[Row]:
    """Below one request, at the same time, each with two calls and a tool between them."""
    rows = [span("server", seconds=9)]
    for name, first in (("one", 0.0), ("two", 0.1)):
        rows += [
            agent(name, "server", at=first, seconds=8),
            call(f"{name}-1", name, at=first + 1),
            tool(f"{name}-tool", name, at=first + 2),
            call(f"{name}-2", name, at=first + 4),
            span(f"{name}-score", name, at=first + 6),
        ]
    return rows


def of(span_id: str, trace: str = "t", **more: Any) -> dict[str, Any]:
    return {"trace_id": trace, "span_id": span_id, **more}


def test_two_parallel_agents_have_their_own_rewards(built: Built) -> None:
    """Told apart by where they are: the agents' spans, and spans that an evaluator opened below them."""
    manifest, values = built(two_agents(), of("one"), of("two"), of("two-score"), of("one-score"))
    assert values == {"one-1": [1, 4], "one-2": [1, 4], "two-1": [2, 3], "two-2": [2, 3]}
    assert manifest.counts["judgements_outside"] == 0


def test_parallel_agents_are_told_apart_when_they_emit_events(built: Built, store: Client) -> None:
    """As `gen_ai.evaluation.result` events on their spans, through the store's own view."""
    rows = two_agents()
    for number, row in enumerate(rows):
        scored = row["SpanId"].endswith("-score")
        row["Events.Timestamp"] = [START + timedelta(seconds=6)] if scored else []
        row["Events.Name"] = ["gen_ai.evaluation.result"] if scored else []
        event = {"gen_ai.evaluation.name": "r", "gen_ai.evaluation.score.value": str(number)}
        row["Events.Attributes"] = [event] if scored else []
    _, values = built(rows)
    assert values == {"one-1": [5], "one-2": [5], "two-1": [10], "two-2": [10]}


def test_a_judgement_of_both_agents_is_of_neither(built: Built) -> None:
    manifest, values = built(two_agents(), of("server"), {"trace_id": "t"})
    assert set(map(tuple, values.values())) == {()}
    assert manifest.counts["judgements_outside"] == 2


def test_a_reward_emitted_after_the_next_call_started(built: Built) -> None:
    """By the tool whose result was slow to be judged, and by one that names the call."""
    rows = [*two_agents(), span("slow-judge", "one-tool", at=7)]
    first = rows[2]["SpanAttributes"]["gen_ai.response.id"]
    _, values = built(rows, of("slow-judge", time=7), of("", response_id=first, time=7.5))
    assert values == {"one-1": [1, 2], "one-2": [], "two-1": [], "two-2": []}


def test_a_reward_that_starts_before_its_call_ended(built: Built) -> None:
    """A judge that reads the stream: beside the second call, and while it runs."""
    rows = [
        agent("a", seconds=9),
        call("c1", "a", at=1),
        call("c2", "a", at=2, seconds=3),
        tool("judge", "a", at=3),
        call("c3", "a", at=6),
    ]
    assert built(rows, of("judge", time=3))[1] == {"c1": [], "c2": [1], "c3": []}


def test_two_rewards_on_one_run(built: Built) -> None:
    """Both count: that of a step at the step, that of the end for the whole run."""
    rows = [
        agent("a", seconds=9), call("c1", "a", at=1), span("score1", "a", at=2), call("c2", "a", at=3), span("score2", "a", at=4),
    ]  # fmt: skip
    assert built(rows, of("score1"), of("score2"))[1] == {"c1": [2, 1], "c2": [2]}
    assert built(rows, of("a", name="x"), of("a", name="x"))[1] == {"c1": [1, 2], "c2": [1, 2]}


def test_an_explicit_link_to_an_earlier_call(built: Built) -> None:
    """Wherever the judgement itself was made."""
    rows = two_agents()
    links = {
        row["SpanId"]: row["SpanAttributes"]["gen_ai.response.id"] for row in rows if "-1" in row["SpanId"]
    }
    _, values = built(rows, of("two-score", response_id=links["one-1"]), of("two-1"))
    assert values == {"one-1": [1], "one-2": [], "two-1": [2], "two-2": []}


def test_a_response_id_of_two_answers_is_looked_for_in_the_trace(built: Built) -> None:
    """Some servers number from 1 again."""
    same = {"gen_ai.response.id": "chatcmpl-1"}
    rows = [
        call("c1", at=0, trace="t1", **same),
        {**agent("a"), "TraceId": "t2"}, call("c2", "a", at=100, trace="t2", **same), call("c3", "a", at=101, trace="t2"),
    ]  # fmt: skip
    # That without a trace may be of either, and is of none.
    manifest, values = built(
        rows, {"response_id": "chatcmpl-1", "trace_id": "t2"}, {"response_id": "chatcmpl-1"}
    )
    assert (values, manifest.counts["judgements_outside"]) == ({"c1": [], "c2": [1], "c3": []}, 1)


def test_missing_timestamps(built: Built) -> None:
    """Where nothing is before or after, a branch still says which agent; and a tool's is of the last call there."""
    rows = [row | {"Timestamp": 0, "Duration": 0} for row in two_agents()]
    _, values = built(rows, of("one"), of("two-score"), of("one-tool"))
    assert values == {"one-1": [1], "one-2": [1, 3], "two-1": [2], "two-2": [2]}


def test_a_judgement_without_a_time_came_late(built: Built, store: Client) -> None:
    _, values = built(two_agents(), of("one-score") | {"time": -START.timestamp()})
    assert values["one-1"] == values["one-2"] == [1]


def test_a_parent_cycle(built: Built) -> None:
    """Spans that are each other's parents end nothing and lose nothing beside them."""
    rows = [
        *two_agents(),
        span("x", "y"), span("y", "z"), span("z", "x"), call("in-circle", "x", at=20), span("self", "self"),
    ]  # fmt: skip
    manifest, values = built(rows, of("one"), of("in-circle"), of("y"), of("self"))
    assert values["one-1"] == values["one-2"] == [1]
    assert values["in-circle"] == [3, 2]  # of the run, since all of its calls lie there, and of the call
    assert manifest.counts["judgements_outside"] == 1


@pytest.mark.parametrize("depth", [1_100, 10_000])
def test_a_deep_chain(built: Built, depth: int) -> None:
    """Every tenth span a call; judged are the top, one in the middle, and a leaf that is no call."""
    rows = [agent("0", seconds=depth)]
    for number in range(1, depth):
        made = call if number % 10 == 0 else span
        rows.append(made(str(number), str(number - 1), at=number))
    leaf = str(depth - 1)
    manifest, values = built(rows, of("0"), of(str(depth // 2)), of(leaf))
    calls = [str(number) for number in range(10, depth, 10)]
    assert manifest.counts["judgements_outside"] == 0
    assert {name: values[name] for name in calls} == {
        name: [1, *([2] if name == str(depth // 2) else []), *([3] if name == calls[-1] else [])]
        for name in calls
    }


def test_a_hosted_api_without_token_ids(built: Built, tmp_path: Path) -> None:
    """Neither tokens nor a response id: the span is enough."""
    rows = [agent("a", seconds=9), call("c1", "a", at=1, **{"gen_ai.response.id": ""})]
    _, values = built(rows, of("c1"), of("a"))
    assert values == {"c1": [2, 1]}
    _, frame = load_dataset(tmp_path / "dataset")
    assert frame.select("completion_ids", "response_id", "reward").row(0) == (None, None, 3.0)


def test_a_sub_agent_called_as_a_tool(built: Built) -> None:
    """The whole is judged at the top, the part at its own span."""
    rows = [
        agent("boss", seconds=20), call("plan", "boss", at=1),
        tool("ask", "boss", at=2, seconds=5), agent("helper", "ask", at=2.5, seconds=4), call("help", "helper", at=3),
        call("close", "boss", at=8),
    ]  # fmt: skip
    _, values = built(rows, of("boss"), of("helper"), {"trace_id": "t"})
    assert values == {"plan": [1, 3], "close": [1, 3], "help": [2]}


def test_a_span_above_some_calls_of_an_episode_is_of_the_last_of_them(built: Built) -> None:
    """A turn of a conversation, each a request of its own."""
    session = {"session.id": "s"}
    rows = []
    for turn in (1, 2):
        rows.append({**span(f"turn{turn}", at=10 * turn, seconds=5), "TraceId": f"t{turn}"})
        for step in (1, 2):
            made = call(f"{turn}-{step}", f"turn{turn}", at=10 * turn + step, trace=f"t{turn}", **session)
            made["ResourceAttributes"] = {"service.instance.id": "i"}
            rows.append(made)
    _, values = built(rows, of("turn1", trace="t1"), {"session_id": "s"})
    assert values == {"1-1": [2], "1-2": [2, 1], "2-1": [2], "2-2": [2]}


def test_the_time_tells_which_of_two_runs_of_a_trace_is_judged(built: Built) -> None:
    rows = [
        agent("one", "server", at=0, seconds=4), call("one-1", "one", at=1, seconds=2),
        agent("two", "server", at=5, seconds=4), call("two-1", "two", at=6, seconds=2),
    ]  # fmt: skip
    _, values = built(rows, {"trace_id": "t", "time": 2}, {"trace_id": "t", "time": 7})
    assert values == {"one-1": [1], "two-1": [2]}
    manifest, values = built(rows, {"trace_id": "t", "time": 4.5}, {"trace_id": "t", "time": 100})
    assert values == {"one-1": [], "two-1": []}
    assert manifest.counts["judgements_outside"] == 2


def test_a_judgement_of_a_call_that_is_left_out_goes_to_no_other(built: Built) -> None:
    """It has no content; the call before it did nothing to be judged for."""
    empty = call("empty", "a", at=2, **{"gen_ai.response.id": "gone"})
    for name in ("gen_ai.input.messages", "gen_ai.output.messages"):
        del empty["SpanAttributes"][name]
    rows = [agent("a", seconds=9), call("c1", "a", at=1), empty, call("c3", "a", at=3)]
    manifest, values = built(rows, of("empty"), of("", response_id="gone"), {"response_id": "gone"})
    assert values == {"c1": [], "c3": []}
    assert manifest.counts["judgements_outside"] == 3
    # An answer of which nobody sent a span is no call that was left out: its trace is what is known.
    assert built(rows, of("", response_id="never"))[1] == {"c1": [1], "c3": [1]}


def test_a_span_below_a_call_is_of_the_call(built: Built) -> None:
    rows = [agent("a", seconds=9), call("c1", "a", at=1), span("http", "c1", at=1.1), call("c2", "a", at=3)]
    assert built(rows, of("http"))[1] == {"c1": [1], "c2": []}


def test_a_span_that_was_never_sent_is_known_by_its_children(built: Built) -> None:
    rows = [call("c1", "gone", at=1), call("c2", "another", at=2)]
    manifest, values = built(rows, of("gone"), of("another"), of("never"))
    assert values == {"c1": [1], "c2": [2]}
    assert manifest.counts["judgements_outside"] == 1
