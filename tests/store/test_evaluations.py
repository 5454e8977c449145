"""Evaluation events become rewards: whoever inserts them, once, and where the rows were there before the views."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.stores import laid
from tests.store.evaluation_events import LABEL, NAME, SCORE, T0, log_event, rewards, span_event

from spanloop_store import Engine, evaluations
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal, message_type

DAY = 86_400 * 10**9
TABLES = ("otel_traces", "otel_traces_trace_id_ts", "otel_logs", "rewards", "ingest_segments")


@pytest.fixture(scope="module", autouse=True)
def kept_for_ever() -> Iterator[None]:
    """T0 will be more than a year ago one day."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPANLOOP_RETENTION_DAYS", "0")
        yield


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(laid(tmp_path_factory.mktemp("evaluations") / "s")) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine) -> Iterator[Any]:
    with contextlib.closing(engine.client()) as client:
        for table in TABLES:
            client.command(f"TRUNCATE TABLE {table}")
        yield client


def test_a_log_event_is_a_reward_with_all_that_it_says(client: Any) -> None:
    said = {
        NAME: "quality",
        SCORE: "0.25",
        LABEL: "poor",
        "gen_ai.evaluation.explanation": "too long",
        "gen_ai.response.id": "r1",
        "session.id": "s1",
        "spanloop.evaluator": "judge",
        "spanloop.evaluator.version": "3",
        "spanloop.evaluation.id": "key",
        "user.id": "u1",
    }
    log_event(client, said, TraceId="t", SpanId="s", ServiceName="agent")
    columns = (
        "id, toUnixTimestamp64Nano(time), trace_id, span_id, response_id, session_id, name, value, label, explanation,"
        " source, evaluator, evaluator_version, attributes, received > '2026-01-01'"
    )
    assert rewards(client, columns) == [
        ("key", T0, "t", "s", "r1", "s1", "quality", 0.25, "poor", "too long", "event", "judge", "3", {"user.id": "u1"}, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("score", "value"),
    [("0.5", 0.5), ("-3", -3.0), ("1e5", 1e5), ("0", 0.0), ("true", 1.0), ("false", 0.0)],
)
def test_numbers_and_truth_values_are_scores(client: Any, score: str, value: float) -> None:
    log_event(client, {NAME: "n", SCORE: score})
    span_event(client, {NAME: "n", SCORE: score})
    assert rewards(client, "value") == [(value,), (value,)]


@pytest.mark.parametrize(
    "said",
    [{NAME: "n", SCORE: score} for score in ("NaN", "Inf", "-Inf", "+Inf", "inf", "1e999", "good", "0.5 of 1", "0x10", "1,5")]
    + [{SCORE: "1"}, {NAME: "", SCORE: "1"}, {NAME: "n"}, {NAME: "n", SCORE: "much", LABEL: "good"}, {}],
    ids=lambda said: " ".join(said.values()) or "nothing",
)  # fmt: skip
def test_anything_else_makes_no_reward_and_the_event_stays(client: Any, said: dict[str, str]) -> None:
    log_event(client, said)
    span_event(client, said, {NAME: "beside", SCORE: "1"})
    assert rewards(client) == [("beside", 1.0)]
    assert client.command("SELECT count() FROM otel_logs") == 1
    for signal in Signal:
        found = evaluations.unusable(client, signal, 20_000)
        assert (found.events, found.name, found.score) == (1, said.get(NAME, ""), said.get(SCORE, ""))


def test_a_label_alone_is_unscored_and_a_failed_evaluation_is_nobodys_mistake(client: Any) -> None:
    log_event(client, {NAME: "n", LABEL: "good"})
    log_event(client, {NAME: "n", "error.type": "timeout"})
    assert rewards(client, "value, label") == [(None, "good")]
    assert evaluations.unusable(client, Signal.LOGS, 20_000).events == 0


def test_an_events_name_may_be_an_attribute(client: Any) -> None:
    log_event(client, {"event.name": evaluations.EVENT, NAME: "n", SCORE: "1"}, EventName="")
    log_event(client, {NAME: "n", SCORE: "1"}, EventName="something.else")
    log_event(client, {NAME: "n", SCORE: "1"}, EventName="")
    assert rewards(client) == [("n", 1.0)]


def test_events_of_a_span_judge_the_span(client: Any) -> None:
    span_event(
        client,
        {NAME: "first", SCORE: "1"},
        {NAME: "no evaluation", SCORE: "1"},
        {NAME: "second", SCORE: "0", "gen_ai.response.id": "r2", "session.id": "s2"},
        names=[evaluations.EVENT, "gen_ai.choice", evaluations.EVENT],
        SpanAttributes={"gen_ai.response.id": "r1", "gen_ai.conversation.id": "c1"},
        ServiceName="agent",
    )
    assert rewards(client, "name, trace_id, span_id, response_id, session_id, source, evaluator") == [
        ("first", "t", "s", "r1", "c1", "event", "agent"),
        ("second", "t", "s", "r2", "s2", "event", "agent"),
    ]


def test_a_span_that_only_carries_a_judgement_judges_the_one_above(client: Any) -> None:
    judgement = {NAME: "n", SCORE: "1"}
    span_event(client, judgement, ParentSpanId="above", SpanName="evaluate n", ScopeName="spanloop")
    span_event(client, judgement, SpanId="s2", ParentSpanId="above", SpanName="evaluate n", ScopeName="other")
    span_event(client, judgement, SpanId="s3", ParentSpanId="above", SpanName="chat", ScopeName="spanloop")
    assert sorted(rewards(client, "span_id")) == [("above",), ("s2",), ("s3",)]


def test_what_is_sent_again_is_one_fact_and_what_differs_is_another(client: Any) -> None:
    judgement = {NAME: "n", SCORE: "1"}
    for body in ("first", "again"):  # or the engine would know the block
        log_event(client, judgement, TraceId="t", SpanId="s", Body=body)
    span_event(client, judgement)  # the same judgement by the other way
    assert client.query("SELECT count(), uniqExact(id) FROM rewards").result_rows == [(3, 1)]
    others: list[tuple[dict[str, str], dict[str, Any]]] = [
        ({}, {"Timestamp": T0 + 1}),
        ({}, {"TraceId": "t2"}),
        ({}, {"SpanId": "s2"}),
        ({SCORE: "0"}, {}),
        ({NAME: "m"}, {}),
        ({"gen_ai.response.id": "r"}, {}),
        ({"spanloop.evaluator": "e"}, {}),
        ({"spanloop.evaluator.version": "2"}, {}),
    ]
    for attributes, columns in others:
        log_event(client, {**judgement, **attributes}, **{"TraceId": "t", "SpanId": "s", **columns})
    assert client.command("SELECT uniqExact(id) FROM rewards") == 1 + len(others)


def segment(folder: Path, signal: Signal, days: int = 3, *scores: float) -> tuple[Path, int]:
    """A judgement a day, on spans or as log records, and one for each of `scores`."""
    request = message_type(signal)()
    events = [(T0 + day * DAY, 0.25 * day) for day in range(days)] + [
        (T0 + n, s) for n, s in enumerate(scores, 1)
    ]
    for number, (time, score) in enumerate(events, 1):
        if signal is Signal.LOGS:
            item = request.resource_logs.add().scope_logs.add().log_records.add(event_name=evaluations.EVENT)
        else:
            span = request.resource_spans.add().scope_spans.add().spans.add()
            span.trace_id, span.span_id = bytes([number]) * 16, bytes([number]) * 8
            span.start_time_unix_nano = time
            item = span.events.add(name=evaluations.EVENT)
        item.time_unix_nano = time
        item.attributes.add(key=NAME).value.string_value = "n"
        item.attributes.add(key=SCORE).value.double_value = score
    path = folder / f"{signal.value}-segment"
    path.write_bytes(frame(request.SerializeToString()))
    return path, len(events)


@pytest.mark.parametrize("signal", Signal)
def test_a_segment_that_is_inserted_again_doubles_nothing(
    client: Any, tmp_path: Path, signal: Signal
) -> None:
    path, items = segment(tmp_path, signal)
    inserter = SegmentInserter(client, embedded=True, quarantine=tmp_path / "q")
    for again in (False, False, True, True):
        inserter.insert(path, signal, items=items, again=again)
        assert rewards(client, "value") == [(0.0,), (0.25,), (0.5,)]


@pytest.mark.parametrize("lost", ["rewards", "rows", "all"])
@pytest.mark.parametrize("signal", Signal)
def test_what_a_crash_took_comes_with_the_next_attempt(
    client: Any, tmp_path: Path, signal: Signal, lost: str
) -> None:
    """A process killed between the parts of an insert leaves any of them, and the tokens of all."""
    path, items = segment(tmp_path, signal)
    inserter = SegmentInserter(client, embedded=True, quarantine=tmp_path / "q")
    inserter.insert(path, signal, items=items)
    partition = f"'{client.command('SELECT min(toDate(time)) FROM rewards')}'"
    for table in (["rewards"] if lost != "rows" else []) + ([signal.table] if lost != "rewards" else []):
        client.command(f"ALTER TABLE {table} DROP PARTITION {partition}")
    inserter.insert(path, signal, items=items, again=True)
    assert client.command(f"SELECT count() FROM {signal.table}") == 3
    assert client.query("SELECT value FROM rewards ORDER BY time LIMIT 1 BY id").result_rows == [
        (0.0,),
        (0.25,),
        (0.5,),
    ]


@pytest.mark.parametrize("signal", Signal)
def test_a_judgement_that_python_decodes_is_one_too(client: Any, tmp_path: Path, signal: Signal) -> None:
    """NaN and infinities are what the engine's own decoder leaves to Python."""
    path, items = segment(tmp_path, signal, 1, float("nan"), float("inf"), 0.75)
    done = SegmentInserter(client, embedded=True, quarantine=tmp_path / "q").insert(path, signal, items=items)
    assert (done.fallback_rows, done.quarantined_rows) == (items, 0)
    assert rewards(client, "value") == [(0.0,), (0.75,)]
    assert evaluations.unusable(client, signal, 20_000).events == 2
