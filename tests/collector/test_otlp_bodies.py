"""What OTLP requests may look like, a test a clause of the specification: https://opentelemetry.io/docs/specs/otlp. Section names are in the docstrings."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from backports import zstd
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from tests.collector.capture_process import trace_request
from tests.collector.otlp_calls import BODY, JSON, PROTOBUF, export, refused, spans
from tests.collector.receivers import PATIENCE_S, Receivers, receivers

from spanloop_store.otlp.signals import Signal


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Receivers]:
    with receivers(tmp_path, min_free_bytes=0) as both:
        yield both


# --- sizes -----------------------------------------------------------------------------------------------------------

LIMIT = 100_000
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receivers]:
    with receivers(tmp_path_factory.mktemp("limited"), max_body_bytes=LIMIT, min_free_bytes=0) as both:
        yield both


@pytest.mark.parametrize("encoding", PACKERS)
def test_what_unpacks_to_too_much_is_413(limited: Receivers, encoding: str) -> None:
    """OTLP/HTTP Request: the server MUST limit the size, after decompression too; 413, which is final."""
    body = trace_request("bomb", text="x" * LIMIT).SerializeToString()
    packed = PACKERS[encoding](body)
    assert len(packed) < LIMIT / 10
    answer = limited.post(body=packed, Content_Encoding=encoding)
    assert (answer.status, "Retry-After" in answer.headers) == (413, False)
    assert "OTEL_BSP_MAX_EXPORT_BATCH_SIZE" in Status.FromString(answer.body).message
    assert limited.logged() == []


def test_a_body_that_is_too_large_as_sent_is_413(limited: Receivers) -> None:
    body = trace_request("large", text="x" * LIMIT).SerializeToString()
    assert limited.post(body=body).status == 413
    # Without a length beforehand: in chunks.
    assert limited.post(body=iter([body[:50_000], body[50_000:]]), Transfer_Encoding="chunked").status == 413
    # The rest of it is not even read, so nobody asks whether it is gzip.
    chunks = iter([bytes(60_000), bytes(60_000)])
    answer = limited.post(body=chunks, Transfer_Encoding="chunked", Content_Encoding="gzip")
    assert answer.status == 413
    assert limited.logged() == []
    assert limited.intake.space.in_flight_bytes == 0


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_grpc_message_that_is_too_large_is_final(
    limited: Receivers, compression: grpc.Compression | None
) -> None:
    """OTLP/gRPC Request: RESOURCE_EXHAUSTED without RetryInfo, also for what unpacks to too much."""
    body = trace_request("large", text="x" * LIMIT).SerializeToString()
    code, status = refused(limited.grpc, body, compression=compression)
    assert (code, list(status.details)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, [])
    assert limited.logged() == []


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["", "identity", "GZIP", *PACKERS])
@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_http_bodies_may_be_packed(both: Receivers, encoding: str, kind: str) -> None:
    """Protocol Details: none and gzip MUST be supported; deflate and zstd are ours."""
    body = BODY if kind == PROTOBUF else json.dumps(document()).encode()
    packed = PACKERS.get(encoding.lower(), bytes)(body)
    assert both.post(body=packed, kind=kind, Content_Encoding=encoding).status == 200
    assert len(both.logged()) == 1


@pytest.mark.parametrize("encoding", PACKERS)
def test_a_body_that_is_not_what_its_encoding_says_is_400(both: Receivers, encoding: str) -> None:
    assert both.post(body=BODY, Content_Encoding=encoding).status == 400
    assert both.post(body=PACKERS[encoding](BODY)[:-5], Content_Encoding=encoding).status == 400


@pytest.mark.parametrize(
    "compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate]
)
def test_grpc_messages_may_be_packed(both: Receivers, compression: grpc.Compression) -> None:
    """Protocol Details: none and gzip MUST be supported."""
    body = trace_request("packed", text="x" * 5000).SerializeToString()
    export(both.grpc, body, compression=compression)
    assert both.logged() == [body]


# --- forwards compatibility, and JSON --------------------------------------------------------------------------------


def test_unknown_protobuf_fields_are_accepted_and_kept(both: Receivers) -> None:
    """Future Versions and Interoperability: fields that a newer OTLP adds, at the top and in a span."""
    unknown = b"\xfa\x3e\x03new"  # field 1007, three bytes
    request = trace_request("newer")
    request.resource_spans[0].scope_spans[0].spans[0].MergeFromString(unknown)
    body = request.SerializeToString() + unknown
    assert body.count(unknown) == 2
    assert both.post(body=body).status == 200
    export(both.grpc, body + unknown)
    assert both.logged() == [body, body + unknown]


def document(**span: Any) -> dict[str, Any]:
    found = {
        "traceId": "5B8EFFF798038103D269B633813FC60C",
        "spanId": "eee19b7ec3c1b174",
        "name": "json",
        "kind": 2,
        "startTimeUnixNano": "1750000000000000000",
    }
    return {"resourceSpans": [{"scopeSpans": [{"spans": [found | span]}]}]}


def json_span(both: Receivers, **span: Any) -> Any:
    """A span that was sent as JSON, as it came into the log."""
    before = len(both.logged())
    answer = both.post(body=json.dumps(document(**span)).encode(), kind=JSON)
    assert (answer.status, answer.body) == (200, b"{}")
    (found,) = spans(both.logged()[before])
    return found


def test_json_ids_are_hex_in_either_case(both: Receivers) -> None:
    """JSON Protobuf Encoding: trace and span ids are case-insensitive hex, of links and log records too."""
    link = {"traceId": "AB" * 16, "spanId": "cd" * 8}
    span = json_span(both, parentSpanId="EEE19B7EC3C1B173", links=[link])
    assert span.trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert (span.span_id.hex(), span.parent_span_id.hex()) == ("eee19b7ec3c1b174", "eee19b7ec3c1b173")
    assert (span.links[0].trace_id.hex(), span.links[0].span_id.hex()) == ("ab" * 16, "cd" * 8)
    record = {"timeUnixNano": 1, "traceId": "AB" * 16, "body": {"stringValue": "x"}}
    body = json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}).encode()
    assert both.post("/v1/logs", body, JSON).status == 200
    (payload,) = both.logged(Signal.LOGS)
    (found,) = ExportLogsServiceRequest.FromString(payload).resource_logs[0].scope_logs[0].log_records
    assert found.trace_id.hex() == "ab" * 16


def test_json_ids_in_base64_are_rejected(both: Receivers) -> None:
    """JSON Protobuf Encoding: they are not base64, as protobuf's own mapping would have them."""
    body = json.dumps(document(traceId=base64.b64encode(b"x" * 16).decode())).encode()
    answer = json.loads(both.post(body=body, kind=JSON).body)
    assert answer["partialSuccess"]["rejectedSpans"] == "1"
    assert "trace id" in answer["partialSuccess"]["errorMessage"]


def test_json_bytes_other_than_ids_are_base64(both: Receivers) -> None:
    value = {"bytesValue": base64.b64encode(b"\x00\xff").decode()}
    span = json_span(both, attributes=[{"key": "raw", "value": value}])
    assert span.attributes[0].value.bytes_value == b"\x00\xff"


@pytest.mark.parametrize("number", [1750000000000000001, "1750000000000000001"], ids=["number", "string"])
def test_json_64_bit_integers_are_strings_or_numbers(both: Receivers, number: Any) -> None:
    """JSON Protobuf Encoding: either is accepted when decoding, and no digit is lost."""
    span = json_span(both, startTimeUnixNano=number, attributes=[{"key": "n", "value": {"intValue": number}}])
    assert span.start_time_unix_nano == span.attributes[0].value.int_value == 1750000000000000001


def test_json_enums_are_integers_and_unknown_ones_pass(both: Receivers) -> None:
    """JSON Protobuf Encoding: senders use integers. A name is taken too: to refuse what is understood helps nobody."""
    assert json_span(both, kind=3, status={"code": 2}).kind == 3
    assert json_span(both, kind=77).kind == 77
    assert json_span(both, kind="SPAN_KIND_CLIENT").kind == 3


def test_json_fields_of_unknown_names_are_ignored(both: Receivers) -> None:
    """JSON Protobuf Encoding: receivers MUST ignore them, wherever they stand."""
    body: dict[str, Any] = document(newField={"deep": [1, {"x": None}]}, name="known")
    body["new"] = body["resourceSpans"][0]["new"] = [1]
    body["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"] = [
        {"key": "k", "value": {"stringValue": "v", "newKind": 1}}
    ]
    assert both.post(body=json.dumps(body).encode(), kind=JSON).status == 200
    (span,) = spans(both.logged()[0])
    assert (span.name, span.attributes[0].value.string_value) == ("known", "v")


def test_protobuf_and_json_share_a_port(both: Receivers) -> None:
    """OTLP/HTTP Connection: the content type decides, also within one kept connection."""
    assert both.post(body=BODY, kind=PROTOBUF).status == 200
    assert both.post(body=json.dumps(document()).encode(), kind=JSON).status == 200
    assert both.post(body=BODY, kind=JSON).status == 400
    assert len(both.logged()) == 2


def test_a_sender_that_goes_away_half_way_stores_nothing(both: Receivers) -> None:
    host, port = both.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as sender:
        head = (
            f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: {PROTOBUF}\r\nContent-Length: 99\r\n\r\n"
        )
        sender.sendall(head.encode() + BODY[:10])
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as sender:
        head = f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: {PROTOBUF}\r\nTransfer-Encoding: chunked\r\n\r\n"
        sender.sendall(head.encode() + b"not a chunk\r\n")
        assert b" 400 Bad Request" in sender.recv(100)
    assert both.post(body=BODY).status == 200
    assert len(both.logged()) == 1
