"""A small OTLP/HTTP receiver for tests: keeps the spans that arrive, as plain values."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from bench.gateway.process import serve
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


@dataclass(frozen=True)
class ReceivedSpan:
    """One span; ids in hex, attribute values as Python values."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    status: int
    service: str
    scope: str
    start: int  # nanoseconds since 1970
    end: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # name and attributes

    def json(self, key: str) -> Any:
        return json.loads(self.attributes[key])


@dataclass
class Receiver:
    """Refuses with 503 while `away` is set."""

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)  # the trace requests as they came, uncompressed
    away: bool = False
    refused: int = 0
    paths: set[str] = field(default_factory=set)
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.away:
            self.refused += 1
            return web.Response(status=503)
        self.paths.add(request.path)
        if request.path == "/v1/traces":
            body = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
            message = ExportTraceServiceRequest.FromString(body)
            with self._arrived:
                self.bodies.append(body)
                self.spans.extend(_spans(message))
                self._arrived.notify_all()
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    def wait(
        self, enough: Callable[[list[ReceivedSpan]], bool], timeout_s: float = 20.0
    ) -> list[ReceivedSpan]:
        """Block until `enough(spans)`; fails after `timeout_s` with what has come."""
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while not enough(self.spans):
                left = deadline - time.monotonic()
                assert left > 0, f"only {len(self.spans)} spans came: {[span.name for span in self.spans]}"
                self._arrived.wait(left)
            return list(self.spans)


def _spans(message: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource in message.resource_spans:
        service = _attributes(resource.resource.attributes).get("service.name", "")
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    kind=span.kind,
                    status=span.status.code,
                    service=service,
                    scope=scope.scope.name,
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                    events=[(event.name, _attributes(event.attributes)) for event in span.events],
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


@contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    """A running receiver; `receiver.url` is the OTLP endpoint (without /v1/traces)."""
    receiver = Receiver()
    app = web.Application(client_max_size=2**28)
    app.router.add_get("/healthz", _ok)
    app.router.add_post("/v1/{signal}", receiver.handle)
    with serve(app) as url:
        receiver.url = url
        yield receiver


async def _ok(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})
