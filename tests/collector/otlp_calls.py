"""OTLP requests of these very bytes over gRPC, and what is in the answers of both protocols."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.collector.capture_process import trace_request
from tests.collector.receivers import PATIENCE_S

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
SERVICE = "opentelemetry.proto.collector.{0}.v1.{1}Service"
BODY = trace_request("a").SerializeToString()
Metadata = tuple[tuple[str, str], ...]


def export(
    address: str,
    body: bytes,
    signal: str = "trace",
    compression: grpc.Compression | None = None,
    metadata: Metadata = (),
) -> bytes:
    """One gRPC call with these very bytes."""
    name = SERVICE.format(signal, {"trace": "Trace", "logs": "Logs", "metrics": "Metrics"}[signal])
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(f"/{name}/Export")
        answer: bytes = call(body, timeout=PATIENCE_S, compression=compression, metadata=metadata)
        return answer


def refused(address: str, body: bytes, **more: Any) -> tuple[grpc.StatusCode, Status]:
    """Code and details of a gRPC call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        export(address, body, **more)
    error: Any = caught.value
    details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    return error.code(), Status.FromString(details)


def unpacked(status: Status, kind: Any) -> Any:
    (detail,) = status.details
    found = kind()
    assert detail.Unpack(found), detail.type_url
    return found


def spans(payload: bytes) -> list[Any]:
    request = ExportTraceServiceRequest.FromString(payload)
    return [
        span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans
    ]
