"""What a receiver says to an export request, in HTTP's words and in gRPC's (OTLP specification, "OTLP/HTTP Response", "OTLP/gRPC Response")."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from spanloop_collector.errors import Busy, Throttled
from spanloop_store.errors import InvalidOtlp
from spanloop_store.otlp.check import Checked, read_document
from spanloop_store.otlp.signals import Signal

METRICS_NOT_STORED = "metrics are not stored by Spanloop; set OTEL_METRICS_EXPORTER=none"
# An empty message is valid and answered with success. But no SDK sends one, and a forwarder that retries with an empty
# body (rotel 0.0.1a15 after a 500) must not read it as "your spans are stored".
NOTHING_IN_IT = "the request carried no data, so nothing was stored; if spans were meant, send them again"


@dataclass(eq=False)  # not frozen: an exception gets its traceback while it is raised
class Refusal(Exception):
    """A request that is not taken.

    Args:
        http: the HTTP status. 429, 502, 503 and 504 ask the sender to try again, all others are final.
        grpc: the gRPC status. UNAVAILABLE, and RESOURCE_EXHAUSTED with a RetryInfo, ask the sender to try again.
        message: why, and what to do.
        retry_after_s: when to try again, in seconds; None: it is final, or the sender's own back-off decides.
        bad_data: the body itself is wrong.
    """

    http: int
    grpc: grpc.StatusCode
    message: str
    retry_after_s: int | None = None
    bad_data: bool = False

    def __str__(self) -> str:
        return self.message

    @property
    def retryable(self) -> bool:
        """Whether the sender is asked to send the same again."""
        return self.http in (429, 502, 503, 504)

    def status(self) -> Status:
        """The google.rpc.Status that both protocols carry, with RetryInfo or BadRequest in its details."""
        status = Status(code=self.grpc.value[0], message=self.message)
        if self.retry_after_s is not None:
            info = RetryInfo()
            info.retry_delay.seconds = self.retry_after_s
            status.details.add().Pack(info)
        if self.bad_data:
            violation = BadRequest.FieldViolation(field="body", description=self.message)
            status.details.add().Pack(BadRequest(field_violations=[violation]))
        return status


def refusal_for(error: Exception) -> Refusal:
    """The answer to what the intake raised.

    An unforeseen failure is answered with 500, which is final: to try the same again would fail the same way. Not so where
    the machine failed: no memory, no descriptors, a disk that is gone.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InvalidOtlp):
        return Refusal(400, grpc.StatusCode.INVALID_ARGUMENT, f"{error.message}; {error.hint}", bad_data=True)
    if isinstance(error, Throttled):
        return Refusal(429, grpc.StatusCode.RESOURCE_EXHAUSTED, error.message, error.retry_after_s)
    if isinstance(error, Busy):
        return Refusal(503, grpc.StatusCode.UNAVAILABLE, error.message, error.retry_after_s)
    if isinstance(error, MemoryError):
        return Refusal(503, grpc.StatusCode.UNAVAILABLE, "the collector is out of memory", 5)
    if isinstance(error, OSError):
        return Refusal(
            503, grpc.StatusCode.UNAVAILABLE, f"the collector's machine fails: {error.strerror}", 10
        )
    return Refusal(500, grpc.StatusCode.INTERNAL, "the collector failed; its log says why")


def accepted(signal: Signal, checked: Checked) -> ExportTraceServiceResponse | ExportLogsServiceResponse:
    """The answer to an export that was taken: what was left out, and why; `partial_success` is unset when all was taken."""
    empty = not checked.items and not checked.rejected
    if signal is Signal.TRACES:
        traces = ExportTraceServiceResponse()
        if checked.rejected or empty:
            traces.partial_success.rejected_spans = checked.rejected
            traces.partial_success.error_message = NOTHING_IN_IT if empty else checked.reason
        return traces
    logs = ExportLogsServiceResponse()
    if checked.rejected or empty:
        logs.partial_success.rejected_log_records = checked.rejected
        logs.partial_success.error_message = NOTHING_IN_IT if empty else checked.reason
    return logs


def outcome(checked: Checked) -> str:
    """What `spanloop_requests_total` calls it."""
    return "partial" if checked.rejected else "ok" if checked.items else "empty"


def no_metrics(body: bytes, *, is_json: bool) -> ExportMetricsServiceResponse:
    """The answer to metrics, for which there is no table: all points are rejected, and the sender hears so.

    Raises:
        Refusal: the body is no metrics request.
    """
    request = ExportMetricsServiceRequest()
    try:
        if is_json:
            json_format.ParseDict(read_document(body), request, ignore_unknown_fields=True)
        else:
            request.ParseFromString(body)
    except (DecodeError, json_format.ParseError, UnicodeError, RecursionError) as error:
        raise Refusal(
            400,
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the body is no ExportMetricsServiceRequest: {error}",
            bad_data=True,
        ) from error
    answer = ExportMetricsServiceResponse()
    if points := _points(request):
        answer.partial_success.rejected_data_points = points
        answer.partial_success.error_message = METRICS_NOT_STORED
    return answer


def _points(request: ExportMetricsServiceRequest) -> int:
    points = 0
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                if kind is not None:
                    points += len(getattr(metric, kind).data_points)
    return points


def encode(message: Any, *, is_json: bool) -> bytes:
    """A protobuf message in the encoding of the request."""
    if is_json:
        return json.dumps(json_format.MessageToDict(message), ensure_ascii=False).encode()
    data: bytes = message.SerializeToString()
    return data
