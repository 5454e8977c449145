"""The look at a request before it is acknowledged."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from spanloop_store.errors import InvalidOtlp
from spanloop_store.otlp.check import check_json, check_protobuf
from spanloop_store.otlp.signals import Signal


def request(*ids: tuple[bytes, bytes]) -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    for trace_id, span_id in ids:
        spans.add(trace_id=trace_id, span_id=span_id)
    return message


GOOD = (b"t" * 16, b"s" * 8)


def test_a_clean_request_keeps_its_very_bytes() -> None:
    # A field that this version of OTLP does not have: field 999, varint 1.
    body = request(GOOD, GOOD).SerializeToString() + b"\xb8\x3e\x01"
    checked = check_protobuf(Signal.TRACES, body)
    assert (checked.payload, checked.items, checked.rejected, checked.reason) == (body, 2, 0, "")


@pytest.mark.parametrize("body", [b"plain words", b"\xb8\x3e\x01"])
def test_unknown_fields_alone_are_no_request(body: bytes) -> None:
    """Both are valid protobuf; taken, they would be acknowledged and nothing of them kept."""
    with pytest.raises(InvalidOtlp, match="no field of"):
        check_protobuf(Signal.TRACES, body)
    assert check_protobuf(Signal.TRACES, b"").items == 0


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ((b"t" * 15, b"s" * 8), "1 with a trace id of 15 bytes"),
        ((b"", b"s" * 8), "1 with a trace id of 0 bytes"),
        ((bytes(16), b"s" * 8), "1 with a trace id of zeros"),
        ((b"t" * 16, b"s" * 9), "1 with a span id of 9 bytes"),
        ((b"t" * 16, bytes(8)), "1 with a span id of zeros"),
    ],
)
def test_a_bad_id_costs_its_span_and_no_other(ids: tuple[bytes, bytes], reason: str) -> None:
    checked = check_protobuf(Signal.TRACES, request(GOOD, ids, GOOD).SerializeToString())
    assert (checked.items, checked.rejected, checked.reason) == (2, 1, reason)
    assert checked.payload == request(GOOD, GOOD).SerializeToString()


def test_nothing_left_is_nothing_to_log() -> None:
    assert check_protobuf(Signal.TRACES, request((b"", b"")).SerializeToString()).payload == b""
    assert check_protobuf(Signal.TRACES, b"").payload == b""
    assert check_json(Signal.LOGS, b"{}").payload == b""


def test_a_log_record_needs_no_ids_but_whole_ones() -> None:
    message = ExportLogsServiceRequest()
    records = message.resource_logs.add().scope_logs.add().log_records
    records.add(severity_text="free")
    records.add(trace_id=b"t" * 16, span_id=b"s" * 8)
    records.add(trace_id=b"t")
    checked = check_protobuf(Signal.LOGS, message.SerializeToString())
    assert (checked.items, checked.rejected) == (2, 1)


@given(st.binary())
def test_any_bytes_are_a_request_or_a_clear_error(body: bytes) -> None:
    for signal in Signal:
        try:
            checked = check_protobuf(signal, body)
        except InvalidOtlp:
            continue
        assert bool(checked.payload) == (checked.items > 0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["resourceSpans", "scopeSpans", "spans", "traceId", "spanId", "attributes", "key", "x"]
            ),
            inner,
        )
    ),
)


@given(json_values)
def test_any_json_is_a_request_or_a_clear_error(document: object) -> None:
    try:
        check_json(Signal.TRACES, json.dumps(document))
    except InvalidOtlp as error:
        assert error.message  # noqa: PT017  # both outcomes are right
