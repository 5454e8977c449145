"""How OTLP requests are answered, a test a clause of the specification: https://opentelemetry.io/docs/specs/otlp. Section names are in the docstrings."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from google.protobuf import json_format
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from tests.collector.capture_process import trace_request
from tests.collector.otlp_calls import BODY, JSON, PROTOBUF, SERVICE, export, refused, spans, unpacked
from tests.collector.receivers import PATIENCE_S, Receivers, receivers

from spanloop_store.otlp.signals import Signal


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Receivers]:
    with receivers(tmp_path, min_free_bytes=0) as both:
        yield both


def with_bad_ids() -> bytes:
    request = trace_request("good", "zero", "short")
    found = request.resource_spans[0].scope_spans[0].spans
    found[1].trace_id, found[2].span_id = bytes(16), b"short"
    return request.SerializeToString()


# --- success ---------------------------------------------------------------------------------------------------------


def test_full_success_leaves_partial_success_unset(both: Receivers) -> None:
    """Full Success"""
    answer = both.post(body=BODY)
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, PROTOBUF, b"")
    assert export(both.grpc, trace_request("b").SerializeToString()) == b""
    assert len(both.logged()) == 2


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_the_response_has_the_content_type_of_the_request(both: Receivers, kind: str) -> None:
    """OTLP/HTTP Response: the very same, for an error too; parameters of the request's are no part of it."""
    good = BODY if kind == PROTOBUF else b'{"resourceSpans": []}'
    for body, status in ((good, 200), (b"\xff", 400)):
        answer = both.post(body=body, kind=f"{kind}; charset=utf-8; x=y")
        assert (answer.status, answer.headers["Content-Type"]) == (status, kind)


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/logs", "/v1/metrics"])
@pytest.mark.parametrize(("kind", "body"), [(PROTOBUF, b""), (JSON, b"{}")], ids=["protobuf", "json"])
def test_an_empty_request_succeeds_and_says_that_nothing_was_stored(
    both: Receivers, path: str, kind: str, body: bytes
) -> None:
    """Full Success: an empty request SHOULD succeed. A warning goes along, since a broken forwarder may have lost a body."""
    answer = both.post(path, body, kind)
    assert answer.status == 200
    if path != "/v1/metrics":
        assert b"nothing was stored" in answer.body
        response = ExportTraceServiceResponse()
        if kind == JSON:
            json_format.Parse(answer.body, response)
        else:
            response.ParseFromString(answer.body)
        assert response.partial_success.rejected_spans == 0
    assert both.logged() == []
    assert both.statistics.total("spanloop_requests_total", outcome="empty") == 1
    assert both.statistics.total("spanloop_items_acknowledged_total") == 0


def test_an_empty_grpc_request_succeeds(both: Receivers) -> None:
    """OTLP/gRPC, Full Success"""
    answer = ExportTraceServiceResponse.FromString(export(both.grpc, b""))
    assert answer.partial_success.rejected_spans == 0
    assert "nothing was stored" in answer.partial_success.error_message


def test_empty_envelopes_are_ignored(both: Receivers) -> None:
    """Empty Telemetry Envelopes: receivers MAY ignore them."""
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add()
    assert both.post(body=request.SerializeToString()).status == 200
    assert both.logged() == []


# --- partial success -------------------------------------------------------------------------------------------------


def test_partial_success_counts_what_was_rejected_and_says_why(both: Receivers) -> None:
    """Partial Success: HTTP 200, rejected_spans, an error message in English; the rest is stored."""
    answer = both.post(body=with_bad_ids())
    over_grpc = export(both.grpc, with_bad_ids().replace(b"good", b"gold"))
    assert answer.status == 200
    for body in (answer.body, over_grpc):
        partial = ExportTraceServiceResponse.FromString(body).partial_success
        assert partial.rejected_spans == 2
        assert "trace id of zeros" in partial.error_message
        assert "span id of 5 bytes" in partial.error_message
    assert [[span.name for span in spans(payload)] for payload in both.logged()] == [["good"], ["gold"]]


def test_partial_success_of_logs(both: Receivers) -> None:
    """Partial Success: rejected_log_records"""
    request = ExportLogsServiceRequest()
    records = request.resource_logs.add().scope_logs.add().log_records
    records.add(time_unix_nano=1).body.string_value = "kept"
    records.add(time_unix_nano=1, trace_id=b"odd").body.string_value = "left out"
    answer = both.post("/v1/logs", request.SerializeToString())
    partial = ExportLogsServiceResponse.FromString(answer.body).partial_success
    assert (answer.status, partial.rejected_log_records) == (200, 1)
    assert len(both.logged(Signal.LOGS)) == 1


def metrics() -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    found = request.resource_metrics.add().scope_metrics.add().metrics
    found.add(name="calls").sum.data_points.add(as_int=1)
    found.add(name="load").gauge.data_points.add(as_double=0.5)
    found.add(name="time").histogram.data_points.add(count=1)
    return request


@pytest.mark.parametrize("way", ["protobuf", "json", "grpc"])
def test_metrics_are_answered_honestly(both: Receivers, way: str) -> None:
    """Partial Success: there is no table for them, so every point is rejected, and the sender hears so."""
    answer = ExportMetricsServiceResponse()
    if way == "grpc":
        answer.ParseFromString(export(both.grpc, metrics().SerializeToString(), "metrics"))
    elif way == "protobuf":
        answer.ParseFromString(both.post("/v1/metrics", metrics().SerializeToString()).body)
    else:
        body = json.dumps(json_format.MessageToDict(metrics())).encode()
        json_format.Parse(both.post("/v1/metrics", body, JSON).body, answer)
    assert answer.partial_success.rejected_data_points == 3
    assert "OTEL_METRICS_EXPORTER=none" in answer.partial_success.error_message


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/traces", b"\xff\xff no protobuf", PROTOBUF),
        ("/v1/traces", b"not json", JSON),
        ("/v1/traces", b"[1]", JSON),
        ("/v1/traces", b'{"resourceSpans": 3}', JSON),
        ("/v1/logs", b"\x0a\xff", PROTOBUF),
        ("/v1/metrics", b"\x0a\xff", PROTOBUF),
        ("/v1/metrics", b"{", JSON),
    ],
)
def test_bad_data_is_400_with_a_bad_request_in_the_status(
    both: Receivers, path: str, body: bytes, kind: str
) -> None:
    """Failures, Bad Data: a Status in the encoding of the request, details SHOULD have a BadRequest; final."""
    answer = both.post(path, body, kind)
    status = Status()
    if kind == JSON:
        json_format.Parse(answer.body, status)
    else:
        status.ParseFromString(answer.body)
    assert answer.status == 400
    assert status.message
    assert unpacked(status, BadRequest).field_violations[0].description == status.message
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize("signal", ["trace", "logs", "metrics"])
def test_bad_data_over_grpc_is_invalid_argument(both: Receivers, signal: str) -> None:
    """OTLP/gRPC, Failures: INVALID_ARGUMENT with BadRequest, and never INTERNAL for a body that does not decode."""
    code, status = refused(both.grpc, b"\x0a\xff", signal=signal)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert unpacked(status, BadRequest).field_violations


def test_every_error_is_a_status(both: Receivers) -> None:
    """Failures: the body of every 4xx MUST be a Status."""
    for answer, expected in (
        (both.post("/v1/traces", method="GET"), 405),
        (both.post("/v1development/profiles", BODY), 404),
        (both.post("/v1/traces/more", BODY), 404),
        (both.post(body=BODY, kind="text/plain"), 415),
        (both.post(body=BODY, kind=""), 415),
        (both.post(body=BODY, Content_Encoding="br"), 415),
    ):
        assert (answer.status, answer.headers["Content-Type"]) == (expected, PROTOBUF)
        assert Status.FromString(answer.body).message
    assert both.post("/v1/traces", method="GET").headers["Allow"] == "POST"
    assert "zstd" in both.post(body=BODY, Content_Encoding="br").headers["Accept-Encoding"]
    assert both.logged() == []


def test_an_unknown_service_is_unimplemented(both: Receivers) -> None:
    """OTLP/gRPC, Failures: final."""
    with grpc.insecure_channel(both.grpc) as channel:
        call = channel.unary_unary(
            "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export"
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_without_the_token_requests_are_unauthenticated(tmp_path: Path) -> None:
    with receivers(tmp_path, token="s3cret", min_free_bytes=0) as both:
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            answer = both.post(body=BODY, **wrong)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert Status.FromString(answer.body).code == grpc.StatusCode.UNAUTHENTICATED.value[0]
        assert both.post(body=BODY, Authorization="Bearer s3cret").status == 200
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            assert refused(both.grpc, BODY, metadata=metadata)[0] is grpc.StatusCode.UNAUTHENTICATED
        export(both.grpc, BODY, metadata=(("authorization", "Bearer s3cret"),))
        assert both.post("/v1/metrics", b"").status == 401
        assert refused(both.grpc, b"", signal="metrics")[0] is grpc.StatusCode.UNAUTHENTICATED


def test_the_token_is_asked_for_before_a_message_is_read(tmp_path: Path) -> None:
    """Else whoever reaches the port fills the memory: here nothing is sent before the answer."""
    answered = threading.Event()

    def body() -> Iterator[bytes]:
        answered.wait(PATIENCE_S)
        yield BODY

    with (
        receivers(tmp_path, token="s3cret", min_free_bytes=0) as both,
        grpc.insecure_channel(both.grpc) as channel,
    ):
        call = channel.stream_unary(f"/{SERVICE.format('trace', 'Trace')}/Export")
        with pytest.raises(grpc.RpcError) as caught:
            call(body(), timeout=PATIENCE_S / 2)
        answered.set()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_call_without_a_message_is_invalid(both: Receivers) -> None:
    with grpc.insecure_channel(both.grpc) as channel:
        call = channel.stream_unary(f"/{SERVICE.format('trace', 'Trace')}/Export")
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(()), timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_machine_that_fails_is_retryable(both: Receivers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures: 500 would be final, and the disk may come back."""

    def gone(folder: Path) -> os.statvfs_result:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("spanloop_collector.space.os.statvfs", gone)
        answer = both.post(body=BODY)
        code, status = refused(both.grpc, BODY)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
    assert (code, unpacked(status, RetryInfo).retry_delay.seconds) == (grpc.StatusCode.UNAVAILABLE, 10)
    assert both.post(body=BODY).status == 200


# --- throttling ------------------------------------------------------------------------------------------------------


def test_back_pressure_is_retryable_and_says_when(tmp_path: Path) -> None:
    """OTLP/HTTP Throttling: 503 with Retry-After. OTLP/gRPC Throttling: UNAVAILABLE with RetryInfo."""
    with receivers(tmp_path, max_log_bytes=10, min_free_bytes=0) as both:
        assert both.post(body=BODY).status == 200
        other = trace_request("other").SerializeToString()
        answer = both.post(body=other)
        assert answer.status == 503
        seconds = int(answer.headers["Retry-After"])
        status = Status.FromString(answer.body)
        assert unpacked(status, RetryInfo).retry_delay.seconds == seconds > 0
        code, status = refused(both.grpc, other)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert unpacked(status, RetryInfo).retry_delay.seconds == seconds
        assert len(both.logged()) == 1
        assert both.statistics.total("spanloop_requests_total", outcome="busy") == 2


def test_too_many_bytes_at_once_are_retryable(tmp_path: Path) -> None:
    """OTLP/HTTP Throttling: 429. OTLP/gRPC: RESOURCE_EXHAUSTED is retryable only with RetryInfo."""
    with receivers(tmp_path, max_in_flight_bytes=4000, min_free_bytes=0) as both:
        with both.intake.space.in_flight() as another:
            another.grow(3999)
            answer = both.post(body=BODY)
            code, status = refused(both.grpc, BODY)
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert unpacked(status, RetryInfo).retry_delay.seconds == 1
        assert both.post(body=BODY).status == 200
        # Alone, a request of any permitted size fits.
        assert both.post(body=trace_request("large", text="x" * 5000).SerializeToString()).status == 200
        assert both.intake.space.in_flight_bytes == 0


def test_a_body_that_does_not_go_on_gives_its_room_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender is gone without a word; a few such would keep all others out for the hours that TCP takes to notice."""
    with receivers(tmp_path, max_in_flight_bytes=4000, min_free_bytes=0) as both:
        address = urlsplit(both.http)
        with (
            monkeypatch.context() as patch,
            socket.create_connection((str(address.hostname), int(address.port or 0)), PATIENCE_S) as sender,
        ):
            patch.setattr("spanloop_collector.http_receiver._IDLE_S", 0.05)
            head = f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: {PROTOBUF}\r\nContent-Length: 5000\r\n\r\n"
            sender.sendall(head.encode() + bytes(3999))
            assert sender.recv(100).startswith(b"HTTP/1.1 408 ")
        assert both.intake.space.in_flight_bytes == 0
        assert both.post(body=BODY).status == 200
