"""What is refused as expired is what the engine would delete, whatever the TTL says; nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.helpers.stores import laid

from spanloop_store import Engine
from spanloop_store.expiry import Expiry, read_expiry
from spanloop_store.otlp.check import check_protobuf
from spanloop_store.otlp.signals import Signal
from spanloop_store.retention import set_retention

DAY_NS = 86_400 * 10**9
NOW_NS = 20_000 * DAY_NS
OLD = Expiry(((10_000 * DAY_NS, 19_900 * DAY_NS), (60_000 * DAY_NS, 61_000 * DAY_NS)), 100, NOW_NS)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with Engine(laid(tmp_path_factory.mktemp("expiry") / "s")) as engine:
        yield engine.client()


def at(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY_NS


CLAUSES = {
    "30 days": "",
    "the one of older stores": "if(Timestamp < toDateTime('2000-01-01'), toDate('2149-06-06'), toDate(Timestamp) + toIntervalDay(30))",
    "a stock collector's": "toDateTime(Timestamp) + toIntervalDay(30)",
}


@pytest.mark.parametrize("clause", CLAUSES)
def test_it_is_what_the_engine_deletes(client: Any, clause: str) -> None:
    set_retention(client, 30)
    if CLAUSES[clause]:
        client.command(f"ALTER TABLE otel_traces MODIFY TTL {CLAUSES[clause]}")
    expiry = read_expiry(client)[Signal.TRACES]
    assert expiry.days == 30
    client.command("TRUNCATE TABLE otel_traces")
    today = datetime.now(UTC).date()
    days = [today - timedelta(days=days) for days in (-40, 0, 28, 32, 400, 5000)]
    days += [date(1970, 1, 1), date(1970, 1, 20), date(1999, 12, 30), date(2000, 1, 2), date(2107, 1, 1)]
    days += [date(2149, 1, 1), date(2149, 6, 1), date(2149, 7, 1), date(2200, 1, 1)]
    for day in days:
        client.command(
            f"INSERT INTO otel_traces (Timestamp, SpanName) SELECT fromUnixTimestamp64Nano({at(day)}), '{day}'"
        )
    client.command("OPTIMIZE TABLE otel_traces FINAL")
    left = {name for (name,) in client.query("SELECT SpanName FROM otel_traces").result_rows}
    assert {str(day) for day in days if not expiry.why(at(day))} == left
    assert str(today) in left


def test_what_is_kept_for_ever_refuses_nothing(client: Any) -> None:
    set_retention(client, 30)
    assert read_expiry(client).keys() == set(Signal)
    set_retention(client, None)
    assert read_expiry(client) == {}


def test_a_ttl_over_other_columns_refuses_nothing(client: Any) -> None:
    set_retention(client, 30)
    client.command(
        "ALTER TABLE otel_traces MODIFY TTL toDateTime(Timestamp) + toIntervalDay(3) WHERE ServiceName = 'x'"
    )
    client.command("ALTER TABLE otel_logs MODIFY TTL TimestampTime + toIntervalDay(3)")
    assert read_expiry(client).keys() == {Signal.LOGS}


def request(*times_ns: int) -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    for number, time_ns in enumerate(times_ns, 1):
        spans.add(trace_id=b"t" * 16, span_id=number.to_bytes(8, "big"), start_time_unix_nano=time_ns)
    return message


def test_expired_spans_are_left_out_and_the_rest_is_kept() -> None:
    times = (NOW_NS, 19_900 * DAY_NS - 1, 19_900 * DAY_NS, 10_000 * DAY_NS, 60_000 * DAY_NS, 62_000 * DAY_NS)
    body = request(*times)
    body.resource_spans[0].scope_spans[0].spans.add(trace_id=b"short", start_time_unix_nano=10_000 * DAY_NS)
    checked = check_protobuf(Signal.TRACES, body.SerializeToString(), OLD)
    kept = ExportTraceServiceRequest.FromString(checked.payload).resource_spans[0].scope_spans[0].spans
    assert [span.start_time_unix_nano for span in kept] == [times[0], times[2], times[5]]
    assert (checked.items, checked.rejected, checked.expired) == (3, 4, 3)
    assert checked.reason == (
        "2 with a time before 2024-06-26, and the store keeps 100 days;"
        " 1 with a time from 2134-04-11 on, and the store would delete them at once; 1 with a trace id of 5 bytes;"
        " `spanloop store retention --days N`, or --off, keeps more"
    )


def test_no_time_at_all_is_kept_where_the_store_keeps_it() -> None:
    """A clock that was never set says nothing of an age; so does a time that Go would read as one before 1970."""
    body = request(0, 1, 2**63, 2**64 - 1).SerializeToString()
    assert check_protobuf(Signal.TRACES, body, OLD).payload == body


def test_a_log_record_without_a_time_is_as_old_as_its_observation() -> None:
    message = ExportLogsServiceRequest()
    records = message.resource_logs.add().scope_logs.add().log_records
    records.add(observed_time_unix_nano=NOW_NS)
    records.add(observed_time_unix_nano=19_000 * DAY_NS)
    records.add(time_unix_nano=19_000 * DAY_NS, observed_time_unix_nano=NOW_NS)
    records.add()
    checked = check_protobuf(Signal.LOGS, message.SerializeToString(), OLD)
    assert (checked.items, checked.expired) == (2, 2)


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(9_000, 63_000).map(lambda day: day * DAY_NS)))
def test_the_quick_look_and_the_exact_one_agree(times_ns: list[int]) -> None:
    checked = check_protobuf(Signal.TRACES, request(*times_ns).SerializeToString(), OLD)
    signed = [time_ns - 2**64 if time_ns >= 2**63 else time_ns for time_ns in times_ns]
    assert checked.expired == sum(bool(OLD.why(time_ns)) for time_ns in signed)
    assert checked.items == len(times_ns) - checked.expired
