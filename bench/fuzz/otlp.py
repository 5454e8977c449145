"""Mutated OTLP requests over HTTP and gRPC: what is sent, which answers are right, and which rows must follow from them."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import lz4.frame
from backports import zstd
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from hypothesis import strategies as st
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

from bench.fuzz.mutate import mutated, mutated_document
from bench.fuzz.served import Served, Wire
from spanloop_store.otlp.check import check_json, check_protobuf
from spanloop_store.otlp.signals import Signal

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures"
_LARGEST_SEED = 20_000  # bytes; a mutation in a small request does more
PROTOBUF, JSON = "application/x-protobuf", "application/json"
_RESPONSES: dict[str, Any] = {
    "traces": ExportTraceServiceResponse,
    "logs": ExportLogsServiceResponse,
    "metrics": ExportMetricsServiceResponse,
}
# 401 needs a token and 503 a full disk: neither is here, so both are wrong.
_RIGHT_STATUSES = frozenset({200, 400, 413, 415})
_RIGHT_CODES = frozenset(
    {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
)
_PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda body: body,
    "identity": lambda body: body,
    "gzip": lambda body: gzip.compress(body, 1, mtime=0),
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "lz4": lz4.frame.compress,
}


@dataclass(frozen=True)
class Export:
    """One request.

    Args:
        signal: traces, logs or metrics.
        kind: its Content-Type; `grpc` for gRPC.
        encoding: its Content-Encoding.
        body: as it is sent, packed already.
        plain: before packing; None where the packing is broken on purpose.
        headers: more of them.
    """

    signal: str
    kind: str
    encoding: str
    body: bytes
    plain: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@cache
def documents(signal: str) -> tuple[Any, ...]:
    """Recorded requests of real SDKs as OTLP/JSON, small ones, and one that nests."""
    pattern = "*.logs.json" if signal == "logs" else "*.json"
    found = []
    for path in sorted(FIXTURES.rglob(pattern)):
        text = path.read_text(encoding="utf-8")
        if ("resourceLogs" if signal == "logs" else "resourceSpans") in text[:200]:
            document = json.loads(text)
            found += [part for part in _parts(document) if len(json.dumps(part)) < _LARGEST_SEED]
    return tuple(found[:60])


def _parts(document: Any) -> list[Any]:
    """One document a resource, since one recording may be large."""
    (key,) = document
    return [{key: [item]} for item in document[key]]


@cache
def messages(signal: str) -> tuple[bytes, ...]:
    """The same as protobuf, and some requests with every field set."""
    if signal == "metrics":
        request = ExportMetricsServiceRequest()
        metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="calls")
        metric.sum.data_points.add(as_int=1)
        return (request.SerializeToString(),)
    kind = Signal.TRACES if signal == "traces" else Signal.LOGS
    seeds = [check_json(kind, json.dumps(document)).payload for document in documents(signal)]
    return (*seeds, _full_trace() if signal == "traces" else _full_log())


def _full_trace() -> bytes:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add(schema_url="https://example.org/1")
    resource.resource.attributes.add(key="service.name").value.string_value = "fuzz"
    scope = resource.scope_spans.add()
    scope.scope.name, scope.scope.version = "scope", "1"
    span = scope.spans.add(name="all", kind=3, trace_id=b"t" * 16, span_id=b"s" * 8, parent_span_id=b"p" * 8)
    span.trace_state = "a=b"
    span.start_time_unix_nano = 1_790_000_000_000_000_000
    span.end_time_unix_nano = 1_790_000_000_000_000_009
    _values(span.attributes)
    event = span.events.add(name="event", time_unix_nano=1_790_000_000_000_000_001)
    _values(event.attributes)
    link = span.links.add(trace_id=b"l" * 16, span_id=b"k" * 8, trace_state="x=y")
    _values(link.attributes)
    span.status.code = 2  # type: ignore[assignment]  # an enum's number
    span.status.message = "failed"
    return request.SerializeToString()


def _full_log() -> bytes:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add(schema_url="https://example.org/1")
    _values(resource.resource.attributes)
    record = resource.scope_logs.add().log_records.add(time_unix_nano=1, severity_number=9, event_name="e")
    record.body.kvlist_value.values.add(key="a").value.array_value.values.add().double_value = 0.5
    _values(record.attributes)
    record.trace_id, record.span_id = b"t" * 16, b"s" * 8
    record.flags = 1
    return request.SerializeToString()


def _values(attributes: Any) -> None:
    attributes.add(key="text").value.string_value = 'a"b\\c\u2028'
    attributes.add(key="flag").value.bool_value = False
    attributes.add(key="whole").value.int_value = -(2**63)
    attributes.add(key="part").value.double_value = 1e300
    attributes.add(key="raw").value.bytes_value = b"\x00\xff"
    array = attributes.add(key="array").value.array_value
    array.values.add().string_value = "x"
    array.values.add().double_value = 2.5
    attributes.add(key="map").value.kvlist_value.values.add(key="k").value.int_value = 1
    attributes.add(key="empty")


@st.composite
def exports(draw: st.DrawFn) -> Export:
    """Requests that are right in most of their parts and wrong in some."""
    signal = draw(st.sampled_from(("traces", "traces", "traces", "logs", "metrics")))
    kind = draw(st.sampled_from((PROTOBUF, PROTOBUF, JSON, "grpc")))
    if kind == JSON and signal != "metrics":
        document = draw(mutated_document(documents(signal)))
        plain = json.dumps(document).encode("utf-8", "surrogatepass")
        if draw(st.booleans()):
            plain = draw(mutated((plain,), 2))
    else:
        plain = draw(mutated(messages(signal)))
    if kind == "grpc":
        return Export(signal, kind, "", plain, plain)
    encoding = draw(st.sampled_from(("", "", "", *_PACK)))
    body = _PACK[encoding](plain)
    headers: list[tuple[str, bytes]] = []
    how = draw(st.integers(0, 9))
    if how == 0:  # packed, and broken after that
        return Export(signal, kind, encoding, draw(mutated((body,), 3)), None)
    if how == 1:  # it says what it is not
        encoding = draw(st.sampled_from(("br", "gzip", "zstd", "deflate", "GZIP", "gzip, zstd", "\x7f")))
        return Export(signal, kind, encoding, body, None)
    if how == 2:
        kind = draw(st.sampled_from(("text/plain", "", f"{kind}; charset=utf-8", kind.upper(), ";", "x/y/z")))
    if how == 3:
        name = draw(st.sampled_from(("Authorization", "Expect-Nothing", "Accept", "traceparent")))
        headers.append((name, draw(st.binary(max_size=20).map(_header_value))))
    return Export(signal, kind, encoding, body, plain, tuple(headers))


def _header_value(data: bytes) -> bytes:
    return bytes(byte for byte in data if byte not in b"\r\n\0")


class Receivers:
    """Sends exports, judges the answers, and keeps account of the rows that must be in the tables."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._http = Wire(served.otlp_http)
        self._channel = grpc.insecure_channel(
            served.otlp_grpc, options=[("grpc.max_send_message_length", 128 << 20)]
        )
        self._seen: set[tuple[str, bytes]] = set()
        self.spans: Counter[tuple[str, str]] = Counter()
        self.records = 0
        self.answers: Counter[str] = Counter()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()
        self._channel.close()

    def check(self, export: Export) -> None:
        """Sends one.

        Raises:
            AssertionError: the answer is none that a sender may get.
        """
        if export.kind == "grpc":
            self._check_grpc(export)
            return
        headers: list[tuple[bytes | str, bytes | str]] = [("Content-Type", export.kind)]
        if export.encoding:
            headers.append(("Content-Encoding", export.encoding))
        headers += export.headers
        reply = self._http.send("POST", f"/v1/{export.signal}", export.body, headers)
        self.answers[f"HTTP {reply.status}"] += 1
        assert reply.status in _RIGHT_STATUSES, (reply, export)
        is_json = reply.headers.get("content-type", "").startswith(JSON)
        if reply.status != 200:
            # OTLP 1.7, "Failures": the body is a Status that says why; a body of broken HTTP has aiohttp's own.
            if not reply.headers.get("content-type", "").startswith("text/plain"):
                status = json.loads(reply.body) if is_json else Status.FromString(reply.body)
                assert status["message"] if is_json else status.message, (reply, export)
            return
        answer = _RESPONSES[export.signal]()
        if is_json:
            json_format.Parse(reply.body, answer)
        else:
            answer.ParseFromString(reply.body)
        self._account(export, answer, is_json=is_json)

    def _check_grpc(self, export: Export) -> None:
        singular = "trace" if export.signal == "traces" else export.signal
        service = {"trace": "Trace", "logs": "Logs", "metrics": "Metrics"}[singular]
        method = f"/opentelemetry.proto.collector.{singular}.v1.{service}Service/Export"
        try:
            data = self._channel.unary_unary(method)(export.body, timeout=60)
        except grpc.RpcError as error:
            refusal: Any = error  # a Call too
        else:
            self.answers["gRPC OK"] += 1
            self._account(export, _RESPONSES[export.signal].FromString(data), is_json=False)
            return
        self.answers[f"gRPC {refusal.code().name}"] += 1
        assert refusal.code() in _RIGHT_CODES, (refusal.code(), refusal.details(), export)

    def _account(self, export: Export, answer: Any, *, is_json: bool) -> None:
        if export.signal == "metrics":
            return
        signal = Signal.TRACES if export.signal == "traces" else Signal.LOGS
        plain = export.plain if export.plain is not None else _unpack(export)
        checked = check_json(signal, plain) if is_json else check_protobuf(signal, plain)
        assert _rejected(answer) == checked.rejected, (answer, checked, export)
        # The same request again is the same rows; but log records without any time may be as many events.
        key = (export.signal, sha256(checked.payload).digest())
        again = key in self._seen
        self._seen.add(key)
        if signal is Signal.LOGS:
            logs = ExportLogsServiceRequest.FromString(checked.payload).resource_logs
            records = [record for one in logs for scope in one.scope_logs for record in scope.log_records]
            timed = all(record.time_unix_nano or record.observed_time_unix_nano for record in records)
            self.records += 0 if again and timed else len(records)
            return
        if again:
            return
        for resource in ExportTraceServiceRequest.FromString(checked.payload).resource_spans:
            for scope in resource.scope_spans:
                self.spans.update((span.trace_id.hex(), span.span_id.hex()) for span in scope.spans)

    def compare(self) -> None:
        """Every row of an acknowledged request is there, and no other.

        Raises:
            AssertionError: a row is missing or too many, or something acknowledged had to be quarantined.
        """
        self.served.flush()
        rows = self.served.query("SELECT TraceId, SpanId, count() FROM otel_traces GROUP BY TraceId, SpanId")
        found = Counter({(trace, span): count for trace, span, count in rows})
        wrong = {"missing": self.spans - found, "too many": found - self.spans}
        if failures := self._failed_inserts():
            # What is tried again is inserted by ids; and mutations of one request are other requests with the same ids.
            assert found.keys() == self.spans.keys(), {**wrong, "failed inserts": failures}
            assert not wrong["too many"], {**wrong, "failed inserts": failures}
        else:
            assert found == self.spans, wrong
        ((records,),) = self.served.query("SELECT count() FROM otel_logs")
        assert records == self.records, {"log records": records, "acknowledged": self.records}
        assert not list((self.served.folder / "quarantine").iterdir())

    def _failed_inserts(self) -> int:
        text = self._http.send("GET", "/metrics", b"", []).body.decode()
        match = re.search(r"^spanloop_insert_failures_total (\d+)", text, re.MULTILINE)
        return int(match[1]) if match else 0


def _unpack(export: Export) -> bytes:
    from spanloop_collector.encodings import decode

    return decode(export.body, export.encoding, 1 << 30)


def _rejected(answer: Any) -> int:
    partial = answer.partial_success
    return int(
        partial.rejected_spans
        if isinstance(answer, ExportTraceServiceResponse)
        else partial.rejected_log_records
    )
