"""The engine's SQL and the Python fallback write identical rows, and both write what the upstream exporter writes."""

from __future__ import annotations

import contextlib
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from tests.helpers.examples import few

from spanloop_store import Engine
from spanloop_store.errors import SegmentRefused
from spanloop_store.otlp.check import check_json
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.hard import is_hard
from spanloop_store.otlp.insert import SegmentInserter, _encode_rows
from spanloop_store.otlp.queries import (
    PROTOBUF,
    ROWS_FORMAT,
    Reach,
    TimeRange,
    input_source,
    insert_query,
    structure,
)
from spanloop_store.otlp.signals import Signal, message_type

FIXTURES = Path(__file__).parents[2] / "fixtures"
RECORDINGS = sorted(path for path in FIXTURES.glob("*/*.json") if path.name != "MANIFEST.json")
_tokens = itertools.count()


def rows_by(
    client: Client, folder: Path, signal: Signal, fmt: str, *payloads: bytes, reach: Reach = Reach.ALL
) -> list[tuple[Any, ...]]:
    """The rows that one decoder alone makes of requests."""
    inserter = SegmentInserter(client, embedded=True, quarantine=folder)
    data = (
        b"".join(map(frame, payloads))
        if fmt == PROTOBUF
        else _encode_rows(signal, list(map(memoryview, payloads)))
    )
    client.command(f"TRUNCATE TABLE {signal.table}")
    inserter._transport.insert(signal, fmt, f"test-{next(_tokens)}", data, reach=reach)
    found = client.query(f"SELECT {_columns(client, signal)} FROM {signal.table}").result_rows
    return sorted(found, key=repr)


_known_columns: dict[Signal, str] = {}


def _columns(client: Client, signal: Signal) -> str:
    if signal not in _known_columns:
        # Pairs, since a Python dict would hide a key that comes twice.
        _known_columns[signal] = ", ".join(
            f"CAST(`{name}`, 'Array(Tuple(String, String))')"
            if kind.startswith("Map")
            else f"CAST(`{name}`, 'Array(Array(Tuple(String, String)))')"
            if kind.startswith("Array(Map")
            else f"toUnixTimestamp64Nano(`{name}`)"
            if kind == "DateTime64(9)"
            else f"`{name}`"
            for name, kind in client.query(
                "SELECT name, type FROM system.columns"
                f" WHERE table = '{signal.table}' AND database = currentDatabase()"
            ).result_rows
        )
    return _known_columns[signal]


def engine_may_decode(client: Client, folder: Path, signal: Signal, payload: bytes) -> bool:
    inserter = SegmentInserter(client, embedded=True, quarantine=folder)
    path = folder / "probe"
    path.write_bytes(frame(payload))
    ((_, hard),) = inserter._transport.hard(signal, path, [memoryview(payload)])
    return not hard


def test_recordings_are_there() -> None:
    assert len(RECORDINGS) > 50


@pytest.mark.parametrize("signal", list(Signal))
def test_recordings_give_the_same_rows_by_both_decoders(
    signal: Signal, client: Client, tmp_path: Path
) -> None:
    payloads, easy, items = [], [], 0
    for path in RECORDINGS:
        if path.name.endswith(".logs.json") != (signal is Signal.LOGS):
            continue
        checked = check_json(signal, path.read_bytes())
        assert checked.rejected == 0, path
        items += checked.items
        payloads.append(checked.payload)
        decodes = engine_may_decode(client, tmp_path, signal, checked.payload)
        assert decodes != is_hard(signal, message_type(signal).FromString(checked.payload)), path
        assert decodes or signal is Signal.LOGS, f"every recorded trace is decoded by the engine, not {path}"
        easy += [checked.payload] if decodes else []
    assert len(rows_by(client, tmp_path, signal, ROWS_FORMAT, *payloads)) == items > 0
    fallback = rows_by(client, tmp_path, signal, ROWS_FORMAT, *easy)
    for reach in Reach if easy else ():  # none of them reaches for what is uncommon
        assert rows_by(client, tmp_path, signal, PROTOBUF, *easy, reach=reach) == fallback


text = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.text("\x0b\x1f\x08ab\u2029/<", max_size=3)
    | st.sampled_from(
        ["", "<&>/\"\\'", "\x00\x07\x08\x0b\x0c\x1b\x1f\x7f", "\u2028\u2029é😀", "service.name"]
    )
)
scalars = st.one_of(
    st.builds(AnyValue),
    st.builds(AnyValue, string_value_strindex=st.integers(0, 3)),
    st.builds(AnyValue, string_value=text),
    st.builds(AnyValue, bool_value=st.booleans()),
    st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
    st.builds(AnyValue, double_value=st.floats() | st.sampled_from([1e20, 1e21, 1e-6, 9.9e-7, 5e-324, -0.0])),
    st.builds(AnyValue, bytes_value=st.binary(max_size=8)),
)


def nested(inner: st.SearchStrategy[AnyValue]) -> st.SearchStrategy[AnyValue]:
    members = st.lists(st.builds(KeyValue, key=text, value=inner), max_size=4)
    return st.builds(
        lambda values: AnyValue(array_value=ArrayValue(values=values)), st.lists(inner, max_size=4)
    ) | (st.builds(lambda values: AnyValue(kvlist_value=KeyValueList(values=values)), members))


values = st.recursive(scalars, nested, max_leaves=8)
attributes = st.lists(st.builds(KeyValue, key=text, value=values), max_size=40)
nanoseconds = st.integers(0, 2**64 - 1) | st.integers(1_700_000_000 * 10**9, 1_800_000_000 * 10**9)
ids = st.binary(max_size=16) | st.just(bytes(8)) | st.just(bytes(16))


@st.composite
def trace_requests(draw: st.DrawFn) -> bytes:
    request = ExportTraceServiceRequest()
    for _ in range(draw(st.integers(1, 2))):
        resource = request.resource_spans.add()
        resource.resource.attributes.extend(draw(attributes))
        scope = resource.scope_spans.add()
        scope.scope.name, scope.scope.version = draw(text), draw(text)
        for _ in range(draw(st.integers(0, 3))):
            span = scope.spans.add(
                trace_id=draw(ids),
                span_id=draw(ids),
                parent_span_id=draw(ids),
                trace_state=draw(text),
                name=draw(text),
                kind=draw(st.integers(0, 7)),  # type: ignore[arg-type]  # open enum: 6 and 7 are unknown kinds
                start_time_unix_nano=draw(nanoseconds),
                end_time_unix_nano=draw(nanoseconds),
                attributes=draw(attributes),
            )
            span.status.code = draw(st.integers(0, 4))  # type: ignore[assignment]  # open enum
            span.status.message = draw(text)
            for _ in range(draw(st.integers(0, 2))):
                span.events.add(
                    time_unix_nano=draw(nanoseconds), name=draw(text), attributes=draw(attributes)
                )
                span.links.add(
                    trace_id=draw(ids), span_id=draw(ids), trace_state=draw(text), attributes=draw(attributes)
                )
    return request.SerializeToString()


@st.composite
def log_requests(draw: st.DrawFn) -> bytes:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add(schema_url=draw(text))
    resource.resource.attributes.extend(draw(attributes))
    scope = resource.scope_logs.add(schema_url=draw(text))
    scope.scope.name, scope.scope.version = draw(text), draw(text)
    scope.scope.attributes.extend(draw(attributes))
    for _ in range(draw(st.integers(0, 3))):
        scope.log_records.add(
            time_unix_nano=draw(nanoseconds | st.just(0)),
            observed_time_unix_nano=draw(nanoseconds),
            severity_number=draw(st.integers(0, 30)),  # type: ignore[arg-type]  # open enum
            severity_text=draw(text),
            body=draw(values),
            attributes=draw(attributes),
            flags=draw(st.integers(0, 2**32 - 1)),
            trace_id=draw(ids),
            span_id=draw(ids),
            event_name=draw(text),
        )
    return request.SerializeToString()


def assert_same(client: Client, folder: Path, signal: Signal, payload: bytes) -> None:
    if not payload:
        return
    easy = engine_may_decode(client, folder, signal, payload)
    assert easy != is_hard(signal, message_type(signal).FromString(payload)), "hard.sql and hard.py disagree"
    fallback = rows_by(client, folder, signal, ROWS_FORMAT, payload)
    if easy:
        assert rows_by(client, folder, signal, PROTOBUF, payload) == fallback
    else:
        with pytest.raises(SegmentRefused):
            rows_by(client, folder, signal, PROTOBUF, payload)
        assert client.query(f"SELECT count() FROM {signal.table}").result_rows == [(0,)]
    if signal is Signal.TRACES:
        with contextlib.suppress(SegmentRefused):
            assert rows_by(client, folder, signal, PROTOBUF, payload, reach=Reach.COMMON) == fallback


generated = settings(max_examples=few(15), deadline=None, suppress_health_check=list(HealthCheck))


@generated
@given(payload=trace_requests())
def test_generated_spans_give_the_same_rows(payload: bytes, engine: Engine, tmp_path_factory: Any) -> None:
    client = engine.client()
    assert_same(client, tmp_path_factory.mktemp("spans"), Signal.TRACES, payload)
    client.close()


@generated
@given(payload=log_requests())
def test_generated_log_records_give_the_same_rows(
    payload: bytes, engine: Engine, tmp_path_factory: Any
) -> None:
    client = engine.client()
    assert_same(client, tmp_path_factory.mktemp("logs"), Signal.LOGS, payload)
    client.close()


def _array(*values: AnyValue) -> AnyValue:
    return AnyValue(array_value=ArrayValue(values=values))


# What Go's pcommon.Value.AsString gives, from its source and its tests.
AS_STRING = [
    (AnyValue(), ""),
    (AnyValue(string_value=""), ""),
    (AnyValue(string_value="<a&b>"), "<a&b>"),
    (AnyValue(bool_value=False), "false"),
    (AnyValue(int_value=-9223372036854775808), "-9223372036854775808"),
    (AnyValue(double_value=1), "1"),
    (AnyValue(double_value=1.5), "1.5"),
    (AnyValue(double_value=1e21), "1e+21"),
    (AnyValue(double_value=1e20), "100000000000000000000"),
    (AnyValue(double_value=1e-7), "1e-7"),
    (AnyValue(double_value=1.25e-10), "1.25e-10"),
    (AnyValue(double_value=0.000001), "0.000001"),
    (AnyValue(double_value=-0.0), "-0"),
    (AnyValue(double_value=math.inf), "json: unsupported value: +Inf"),
    (AnyValue(double_value=math.nan), "json: unsupported value: NaN"),
    (AnyValue(bytes_value=b"\x00\xff"), "AP8="),
    (AnyValue(bytes_value=b""), ""),
    (AnyValue(string_value_strindex=1), ""),  # of profiles alone
    (_array(), "[]"),
    (AnyValue(kvlist_value=KeyValueList()), "{}"),
    (
        _array(AnyValue(string_value='</a>"\\\n\x01'), AnyValue(), AnyValue(bytes_value=b"a")),
        '["</a>\\"\\\\\\n\\u0001",null,"YQ=="]',
    ),
    (_array(AnyValue(string_value="\x0b\x1f\x7f\u2028/")), '["\\u000b\\u001f\x7f\\u2028/"]'),
    (_array(AnyValue(string_value="\b\f\n\r\t\x00\x19")), '["\\b\\f\\n\\r\\t\\u0000\\u0019"]'),
    (_array(AnyValue(double_value=math.nan)), ""),
    (_array(_array(AnyValue(int_value=1)), _array()), "[[1],[]]"),
    (
        AnyValue(
            kvlist_value=KeyValueList(
                values=[
                    KeyValue(key="b", value=AnyValue(bool_value=True)),
                    KeyValue(key="a", value=AnyValue(double_value=0.1)),
                    KeyValue(key="b", value=AnyValue(int_value=2)),
                ]
            )
        ),
        '{"a":0.1,"b":2}',
    ),
]


def test_values_read_as_the_upstream_exporter_writes_them(client: Client, tmp_path: Path) -> None:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for index, (value, _) in enumerate(AS_STRING):
        spans.add(
            trace_id=b"t" * 16, span_id=bytes([index + 1] * 8), attributes=[KeyValue(key="k", value=value)]
        )
    path = tmp_path / "segment"
    path.write_bytes(b"".join(frame(_single(span)) for span in spans))
    inserted = SegmentInserter(client, embedded=True, quarantine=tmp_path).insert(path, Signal.TRACES)
    assert inserted.engine_rows + inserted.fallback_rows == len(AS_STRING)
    # The infinity, NaN, 1e21, and among the arrays and kvlists: bytes, two escapes with a letter, NaN, two deep, a key twice.
    assert inserted.fallback_rows == 8
    found = client.query("SELECT SpanAttributes['k'] FROM otel_traces ORDER BY SpanId").result_rows
    assert [text for (text,) in found] == [text for _, text in AS_STRING]


@pytest.mark.parametrize(
    ("value", "decoder"),
    [
        (AnyValue(string_value="x"), "engine"),
        (_array(AnyValue(string_value="stop")), "engine"),
        (
            AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="a", value=AnyValue(int_value=1))])),
            "engine",
        ),
        (_array(_array(AnyValue(int_value=1))), "fallback"),
        (AnyValue(double_value=math.nan), "fallback"),
    ],
    ids=["text", "array", "kvlist", "nested", "nan"],
)
def test_a_segment_that_is_tried_as_a_whole_has_the_rows_that_care_gives(
    value: AnyValue, decoder: str, client: Client, tmp_path: Path
) -> None:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"t" * 16, span_id=b"1" * 8, attributes=[KeyValue(key="k", value=value)])
    spans.add(trace_id=b"t" * 16, span_id=b"2" * 8)
    plain = ExportTraceServiceRequest()
    plain.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"3" * 8)
    inserter = SegmentInserter(client, embedded=True, quarantine=tmp_path)
    found = []
    for number, items in enumerate(
        (3, 3, 0)
    ):  # the second time the first is remembered; the third time nobody counted
        client.command("TRUNCATE TABLE otel_traces")
        path = tmp_path / f"{decoder}-{number}-{next(_tokens)}"
        path.write_bytes(frame(request.SerializeToString()) + frame(plain.SerializeToString()))
        done = inserter.insert(path, Signal.TRACES, items=items)
        assert (done.requests, done.rows, done.fallback_rows) == (2, 3, 2 if decoder == "fallback" else 0)
        found.append(
            client.query("SELECT SpanId, SpanAttributes FROM otel_traces ORDER BY SpanId").result_rows
        )
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3


def _single(span: Any) -> bytes:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.append(span)
    return request.SerializeToString()


@pytest.mark.parametrize("signal", list(Signal))
@pytest.mark.parametrize("fmt", [PROTOBUF, ROWS_FORMAT])
@pytest.mark.parametrize("missing", [None, [TimeRange(0, 10**18)]], ids=["all", "missing"])
@pytest.mark.parametrize("reach", list(Reach), ids=lambda reach: reach.name)
def test_the_query_for_a_server_parses(
    client: Client, signal: Signal, fmt: str, missing: list[TimeRange] | None, reach: Reach
) -> None:
    """Only that: the embedded engine takes no request bodies, so input() itself runs on a server alone."""
    source = input_source(structure(signal, fmt, reach))
    query = insert_query(signal, fmt, source, "token", local=False, missing=missing, reach=reach)
    assert "file(" not in query
    assert "InsertQuery" in client.raw_query(f"EXPLAIN AST {query} FORMAT {fmt}", fmt="TabSeparated").decode()
