"""The capture process with real exporters in front and the real engine behind it."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from backports import zstd
from google.rpc.status_pb2 import Status
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from tests.collector.capture_process import Capture, command, running, trace_request

PROTOBUF = "application/x-protobuf"


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capture]:
    with running(tmp_path_factory.mktemp("capture")) as capture:
        yield capture
        assert capture.stop() == 0


def post(url: str, body: bytes, kind: str = PROTOBUF, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": kind, **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def stored(capture: Capture, name: str) -> int:
    capture.flush()
    ((count,),) = capture.query(f"SELECT count() FROM otel_traces WHERE SpanName = '{name}'")
    return int(count)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_spans_of_the_real_sdk_arrive_as_rows(capture: Capture, protocol: str) -> None:
    exporter = (
        HttpExporter(endpoint=f"{capture.otlp_http}/v1/traces")
        if protocol == "http"
        else GrpcExporter(endpoint=capture.otlp_grpc, insecure=True)
    )
    provider = TracerProvider(resource=Resource.create({"service.name": f"sdk-{protocol}"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test-scope", "1.2")
    with tracer.start_as_current_span("parent", kind=trace.SpanKind.CLIENT) as parent:
        parent.set_attributes({"text": "héllo", "number": 3, "ratio": 0.5, "flag": True, "list": ["a", "b"]})
        with tracer.start_as_current_span("child") as child:
            child.record_exception(ValueError("broken"))
    provider.shutdown()
    capture.flush()
    rows = capture.query(
        "SELECT SpanName, SpanKind, TraceId, ParentSpanId, SpanAttributes, Events.Name, ScopeName, ScopeVersion,"
        f" StatusCode FROM otel_traces WHERE ServiceName = 'sdk-{protocol}' ORDER BY SpanName"
    )
    context = parent.get_span_context()
    assert [row[:4] for row in rows] == [
        ("child", "Internal", f"{context.trace_id:032x}", f"{context.span_id:016x}"),
        ("parent", "Client", f"{context.trace_id:032x}", ""),
    ]
    assert rows[1][4] == {"text": "héllo", "number": "3", "ratio": "0.5", "flag": "true", "list": '["a","b"]'}
    assert rows[0][5] == ["exception"]
    assert rows[0][6:] == ("test-scope", "1.2", "Unset")


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("", lambda body: body),
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("zstd", zstd.compress),
    ],
)
def test_encodings(capture: Capture, encoding: str, pack: Any) -> None:
    name = f"encoding-{encoding or 'none'}"
    body = trace_request(name, name).SerializeToString()
    status, _, answer = post(f"{capture.otlp_http}/v1/traces", pack(body), **{"Content-Encoding": encoding})
    assert (status, answer) == (200, b"")
    assert stored(capture, name) == 2


def test_json_has_hex_ids(capture: Capture) -> None:
    span = {
        "traceId": "5B8EFFF798038103D269B633813FC60C",
        "spanId": "eee19b7ec3c1b174",
        "name": "json",
        "kind": 2,
    }
    span |= {
        "attributes": [{"key": "n", "value": {"intValue": "7"}}],
        "startTimeUnixNano": "1750000000000000000",
    }
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span], "unknown": 1}]}]}).encode()
    assert post(f"{capture.otlp_http}/v1/traces", body, "application/json; charset=utf-8")[::2] == (
        200,
        b"{}",
    )
    capture.flush()
    assert capture.query(
        "SELECT TraceId, SpanId, SpanKind, SpanAttributes FROM otel_traces WHERE SpanName = 'json'"
    ) == [("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", "Server", {"n": "7"})]


def test_logs_arrive(capture: Capture) -> None:
    request = ExportLogsServiceRequest()
    record = (
        request.resource_logs.add()
        .scope_logs.add()
        .log_records.add(
            observed_time_unix_nano=1_750_000_000_000_000_000,
            severity_text="INFO",
            event_name="gen_ai.evaluation.result",
        )
    )
    record.body.string_value = "fine"
    assert post(f"{capture.otlp_http}/v1/logs", request.SerializeToString())[0] == 200
    capture.flush()
    assert capture.query("SELECT Body, EventName, toUnixTimestamp(Timestamp) FROM otel_logs") == [
        ("fine", "gen_ai.evaluation.result", 1_750_000_000)
    ]


def test_spans_with_bad_ids_are_reported_and_the_rest_is_kept(capture: Capture) -> None:
    request = trace_request("mixed", "mixed", "mixed", "mixed")
    spans = request.resource_spans[0].scope_spans[0].spans
    spans[1].trace_id = bytes(16)
    spans[3].span_id = b"short"
    status, _, answer = post(f"{capture.otlp_http}/v1/traces", request.SerializeToString())
    partial = ExportTraceServiceResponse.FromString(answer).partial_success
    assert (status, partial.rejected_spans) == (200, 2)
    assert "trace id of zeros" in partial.error_message
    assert "span id of 5 bytes" in partial.error_message
    assert stored(capture, "mixed") == 2


def test_an_undecodable_body_is_400_with_a_status(capture: Capture) -> None:
    status, headers, answer = post(f"{capture.otlp_http}/v1/traces", b"\xff\xff not protobuf")
    assert (status, headers["Content-Type"]) == (400, PROTOBUF)
    assert "ExportTraceServiceRequest" in Status.FromString(answer).message
    status, headers, answer = post(
        f"{capture.otlp_http}/v1/traces", b'{"resourceSpans": 3}', "application/json"
    )
    assert status == 400
    assert "resourceSpans" in json.loads(answer)["message"]
    assert post(f"{capture.otlp_http}/v1/traces", b"not gzip", **{"Content-Encoding": "gzip"})[0] == 400
    half = gzip.compress(b"x" * 1000)[:-12]
    assert post(f"{capture.otlp_http}/v1/traces", half, **{"Content-Encoding": "gzip"})[0] == 400


def test_other_content_types_and_bombs_are_refused(capture: Capture) -> None:
    assert post(f"{capture.otlp_http}/v1/traces", b"{}", "text/plain")[0] == 415
    for encoding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstd.compress)):
        bomb = pack(bytes(80 << 20))
        assert post(f"{capture.otlp_http}/v1/traces", bomb, **{"Content-Encoding": encoding})[0] == 413


def test_grpc_takes_more_than_4_mib_and_refuses_bad_ids(capture: Capture) -> None:
    request = trace_request("large", "large", text="x" * (3 << 20))
    request.resource_spans[0].scope_spans[0].spans[1].span_id = b""
    with grpc.insecure_channel(capture.otlp_grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        answer = TraceServiceStub(channel).Export(request, timeout=30)  # type: ignore[no-untyped-call]  # generated
    assert answer.partial_success.rejected_spans == 1
    assert stored(capture, "large") == 1


def test_metrics_are_answered_honestly(capture: Capture) -> None:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="calls")
    metric.sum.data_points.add(as_int=1)
    metric.sum.data_points.add(as_int=2)
    status, _, answer = post(f"{capture.otlp_http}/v1/metrics", request.SerializeToString())
    partial = ExportMetricsServiceResponse.FromString(answer).partial_success
    assert (status, partial.rejected_data_points) == (200, 2)
    assert "OTEL_METRICS_EXPORTER=none" in partial.error_message


def test_health_and_metrics(capture: Capture) -> None:
    with urllib.request.urlopen(f"{capture.otlp_http}/healthz") as answer:
        assert json.load(answer)["status"] == "ok"
    capture.flush()
    with urllib.request.urlopen(f"{capture.otlp_http}/metrics") as answer:
        text = answer.read().decode()
    assert 'spanloop_items_inserted_total{decoder="engine",signal="traces"}' in text
    assert "spanloop_log_bytes 0" in text


def test_deep_values_take_the_fallback_beside_the_engine(capture: Capture) -> None:
    request = trace_request("deep")
    value = request.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="deep").value
    value.array_value.values.add().array_value.values.add().kvlist_value.values.add(
        key="k"
    ).value.int_value = 1
    easy = trace_request("easy")
    for body in (request, easy):
        assert post(f"{capture.otlp_http}/v1/traces", body.SerializeToString())[0] == 200
    capture.flush()
    assert capture.query(
        "SELECT SpanName, SpanAttributes FROM otel_traces WHERE SpanName IN ('deep', 'easy') ORDER BY 1"
    ) == [
        ("deep", {"deep": '[[{"k":1}]]'}),
        ("easy", {}),
    ]
    decoders = dict(capture.query("SELECT decoder, sum(rows) FROM ingest_segments GROUP BY decoder"))
    assert decoders["fallback"] == 1
    assert decoders["engine"] > 10


def test_owner_file_is_private_and_goes_away(tmp_path: Path) -> None:
    with running(tmp_path, "--gateway", "http://127.0.0.1:8080") as capture:
        owner_file = tmp_path / "owner.json"
        assert owner_file.stat().st_mode & 0o777 == 0o600
        owner = json.loads(owner_file.read_text())
        assert owner["pid"] == capture.process.pid
        assert owner["otlp_http"] == capture.otlp_http
        assert owner["gateway"] == "http://127.0.0.1:8080"
        assert capture.stop() == 0
        assert not owner_file.exists()


def test_stopping_inserts_what_was_acknowledged(tmp_path: Path) -> None:
    with running(tmp_path) as capture:
        assert post(f"{capture.otlp_http}/v1/traces", trace_request("last").SerializeToString())[0] == 200
        assert capture.stop() == 0
        assert list((tmp_path / "log").glob("*.otlp")) == []
        assert capture.query("SELECT SpanName FROM otel_traces") == [("last",)]


def test_a_second_one_on_the_store_harms_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as capture:
        second = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert f"already open in process {capture.process.pid}" in second.stderr
        assert "Traceback" not in second.stderr
        assert post(f"{capture.otlp_http}/v1/traces", trace_request("still").SerializeToString())[0] == 200
        assert stored(capture, "still") == 1
        assert (tmp_path / "owner.json").exists()


@pytest.mark.parametrize("option", ["--otlp-http-port", "--otlp-grpc-port", "--clickhouse-port"])
def test_a_port_in_use_is_one_clear_error(tmp_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            command(tmp_path, option, str(port)), capture_output=True, text=True, timeout=60
        )
    assert result.returncode == 1
    assert f"127.0.0.1:{port} ({option})" in result.stderr
    assert "Traceback" not in result.stderr


def test_other_addresses_need_a_token(tmp_path: Path) -> None:
    refused = subprocess.run(
        command(tmp_path, "--host", "0.0.0.0"), capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 1
    assert "SPANLOOP_TOKEN is not set" in refused.stderr
    with running(tmp_path, "--host", "0.0.0.0", SPANLOOP_TOKEN="s3cret") as capture:
        body = trace_request("secret").SerializeToString()
        address = capture.otlp_http.replace("0.0.0.0", "127.0.0.1")
        assert post(f"{address}/v1/traces", body)[0] == 401
        assert post(f"{address}/v1/traces", body, Authorization="Bearer wrong")[0] == 401
        assert post(f"{address}/v1/traces", body, Authorization="Bearer s3cret")[0] == 200
        grpc_address = capture.otlp_grpc.replace("0.0.0.0", "127.0.0.1")
        with grpc.insecure_channel(grpc_address) as channel:
            stub = TraceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            with pytest.raises(grpc.RpcError) as caught:
                stub.Export(trace_request("x"), timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            stub.Export(trace_request("x"), timeout=10, metadata=(("authorization", "Bearer s3cret"),))


def test_a_server_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(tmp_path, "--store", "clickhouse://127.0.0.1:1/db", "--log", str(log)) as capture:
        assert post(f"{capture.otlp_http}/v1/traces", trace_request("a").SerializeToString())[0] == 200
        capture.kill()
    kept = [path.read_bytes() for path in log.rglob("traces-*.otlp")]
    assert len(kept) == 1
    assert trace_request("a").SerializeToString() in kept[0]
