"""OTLP over HTTP (OTLP 1.7): protobuf and JSON, compressed or not, and the collector's own /healthz, /metrics, /flush."""

from __future__ import annotations

import asyncio
import json
import logging
import math

from aiohttp import web
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from spanloop_collector import encodings
from spanloop_collector.addresses import shows_token
from spanloop_collector.errors import Busy
from spanloop_collector.intake import Intake
from spanloop_store.errors import InvalidOtlp
from spanloop_store.otlp.check import Checked
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 20  # unpacked; the OpenTelemetry Collector's own limit is 20 MiB, and prompts are long
_PROTOBUF = "application/x-protobuf"
_JSON = "application/json"
# Codes of google.rpc.Code that belong to the HTTP statuses we give.
_CODES = {400: 3, 401: 16, 413: 8, 415: 3, 503: 14}
METRICS_NOT_STORED = "metrics are not stored by Spanloop; set OTEL_METRICS_EXPORTER=none"


class Refusal(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


def make_receiver(
    intake: Intake, *, token: str | None = None, max_body_bytes: int = MAX_BODY_BYTES
) -> web.Application:
    """The receiver's routes. Run it with `auto_decompress=False`: bodies are unpacked here, with a limit.

    Args:
        intake: where requests go.
        token: what senders must show as a bearer token; None: nothing.
        max_body_bytes: the most that a request may be, before and after unpacking.
    """
    receiver = _Receiver(intake, token, max_body_bytes)
    app = web.Application(client_max_size=max_body_bytes)
    app.router.add_post("/v1/traces", receiver.traces)
    app.router.add_post("/v1/logs", receiver.logs)
    app.router.add_post("/v1/metrics", receiver.metrics)
    app.router.add_get("/healthz", receiver.health)
    app.router.add_get("/metrics", receiver.prometheus)
    app.router.add_post("/flush", receiver.flush)
    return app


class _Receiver:
    def __init__(self, intake: Intake, token: str | None, max_body_bytes: int) -> None:
        self._intake = intake
        self._token = token
        self._max_body_bytes = max_body_bytes

    async def traces(self, request: web.Request) -> web.Response:
        return await self._export(request, Signal.TRACES)

    async def logs(self, request: web.Request) -> web.Response:
        return await self._export(request, Signal.LOGS)

    async def metrics(self, request: web.Request) -> web.Response:
        try:
            is_json, body = await self._body(request)
            message = ExportMetricsServiceRequest()
            if is_json:
                json_format.Parse(body, message, ignore_unknown_fields=True)
            else:
                message.ParseFromString(body)
        except Refusal as refusal:
            return self._refuse(request, refusal)
        except (DecodeError, json_format.ParseError, UnicodeDecodeError) as error:
            return self._refuse(request, Refusal(400, f"the body is no ExportMetricsServiceRequest: {error}"))
        answer = ExportMetricsServiceResponse()
        answer.partial_success.rejected_data_points = count_points(message)
        answer.partial_success.error_message = METRICS_NOT_STORED
        self._intake.statistics.add(
            "spanloop_requests_total", signal="metrics", protocol="http", outcome="refused"
        )
        return _answer(answer, is_json)

    async def health(self, request: web.Request) -> web.Response:
        """200 while requests are taken; the text says whether the store keeps up."""
        del request
        error = self._intake.writer.last_error
        return web.json_response({"status": "degraded" if error else "ok", "store": error or "ok"})

    async def prometheus(self, request: web.Request) -> web.Response:
        del request
        text = self._intake.statistics.prometheus({"spanloop_log_bytes": self._intake.backlog_bytes})
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def flush(self, request: web.Request) -> web.Response:
        """All that was acknowledged before the call is queryable once this answers 200."""
        if not shows_token(request.headers.get("Authorization"), self._token):
            return web.json_response({"error": "this collector needs a token"}, status=401)
        try:
            timeout_s = float(request.query.get("timeout_s", "30"))
            if not math.isfinite(timeout_s):
                raise ValueError(timeout_s)
        except ValueError:
            return web.json_response({"error": "timeout_s is no number"}, status=400)
        statistics = self._intake.statistics
        acknowledged = statistics.total("spanloop_items_acknowledged_total")
        done = await asyncio.to_thread(self._intake.writer.flush, min(max(timeout_s, 0.0), 3600.0))
        counts = {"acknowledged": acknowledged, "inserted": statistics.total("spanloop_items_inserted_total")}
        if not done:
            why = self._intake.writer.last_error or "not done in time"
            return web.json_response({**counts, "error": why}, status=504)
        return web.json_response(counts)

    async def _export(self, request: web.Request, signal: Signal) -> web.Response:
        try:
            is_json, body = await self._body(request)
            checked = await self._take(signal, body, is_json)
        except Refusal as refusal:
            self._count(signal, "refused")
            return self._refuse(request, refusal)
        self._count(signal, "partial" if checked.rejected else "ok")
        return _answer(response_for(signal, checked), is_json)

    async def _take(self, signal: Signal, body: bytes, is_json: bool) -> Checked:
        try:
            return await self._intake.take(signal, body, is_json=is_json)
        except InvalidOtlp as error:
            raise Refusal(400, f"{error.message}; {error.hint}") from error
        except Busy as error:
            raise Refusal(503, error.message, error.retry_after_s) from error

    async def _body(self, request: web.Request) -> tuple[bool, bytes]:
        if not shows_token(request.headers.get("Authorization"), self._token):
            raise Refusal(
                401, "this collector needs a token: OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer TOKEN'"
            )
        if request.content_type not in (_PROTOBUF, _JSON):
            raise Refusal(
                415, f"content type {request.content_type!r} is not OTLP; send {_PROTOBUF} or {_JSON}"
            )
        limit = self._max_body_bytes
        if (request.content_length or 0) > limit:
            raise Refusal(413, f"the body is larger than {limit} bytes; lower OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise Refusal(
                413, f"the body is larger than {limit} bytes; lower OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
            ) from error
        try:
            body = encodings.decode(raw, request.headers.get("Content-Encoding", ""), limit)
        except encodings.TooLarge as error:
            raise Refusal(413, f"{error}; lower OTEL_BSP_MAX_EXPORT_BATCH_SIZE") from error
        except encodings.BadEncoding as error:
            raise Refusal(400, str(error)) from error
        return request.content_type == _JSON, body

    def _count(self, signal: Signal, outcome: str) -> None:
        self._intake.statistics.add(
            "spanloop_requests_total", signal=signal.value, protocol="http", outcome=outcome
        )

    def _refuse(self, request: web.Request, refusal: Refusal) -> web.Response:
        """google.rpc.Status in the encoding that was asked in (OTLP/HTTP, "Failures")."""
        log.warning("%s %s refused with %d: %s", request.method, request.path, refusal.status, refusal)
        status = Status(code=_CODES[refusal.status], message=str(refusal))
        response = _answer(status, request.content_type == _JSON)
        response.set_status(refusal.status)
        if refusal.retry_after_s is not None:
            response.headers["Retry-After"] = str(refusal.retry_after_s)
        return response


def response_for(signal: Signal, checked: Checked) -> ExportTraceServiceResponse | ExportLogsServiceResponse:
    """The answer to an export: what was left out, and why; empty when all was taken."""
    if signal is Signal.TRACES:
        traces = ExportTraceServiceResponse()
        if checked.rejected:
            traces.partial_success.rejected_spans = checked.rejected
            traces.partial_success.error_message = checked.reason
        return traces
    logs = ExportLogsServiceResponse()
    if checked.rejected:
        logs.partial_success.rejected_log_records = checked.rejected
        logs.partial_success.error_message = checked.reason
    return logs


def count_points(request: ExportMetricsServiceRequest) -> int:
    """Data points of all kinds in a metrics request."""
    points = 0
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                if kind is not None:
                    points += len(getattr(metric, kind).data_points)
    return points


def _answer(message: object, is_json: bool) -> web.Response:
    if is_json:
        text = json.dumps(json_format.MessageToDict(message))  # type: ignore[arg-type]  # any generated message
        return web.Response(text=text, content_type=_JSON)
    return web.Response(body=message.SerializeToString(), content_type=_PROTOBUF)  # type: ignore[attr-defined]  # ditto
