"""OTLP over HTTP: protobuf and JSON, compressed or not, and the collector's own /healthz, /metrics, /flush."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError

from spanloop_collector import encodings
from spanloop_collector.addresses import shows_token
from spanloop_collector.answers import Refusal, accepted, encode, no_metrics, outcome, refusal_for
from spanloop_collector.feedback.route import FeedbackRoute
from spanloop_collector.health import gauges, look
from spanloop_collector.intake import Intake
from spanloop_collector.space import InFlight
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

MAX_BODY_BYTES = (
    64 << 20
)  # as sent and unpacked; the specification recommends 20 MiB, and prompts are longer than metrics
_PROTOBUF = "application/x-protobuf"
_JSON = "application/json"
_ENCODINGS = "gzip, deflate, zstd, lz4"
_IDLE_S = 30.0  # without a byte of a body: its sender is gone, and what it sent takes room
_FLUSHES = 4  # that wait at once; more wait for those
REPEATED_HEADER = "X-Spanloop-Repeated"  # `true`: the request was logged before
_TOO_LARGE = "lower OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# What HTTP itself refuses, before a handler sees it, in gRPC's words.
_GRPC_CODES = {404: grpc.StatusCode.UNIMPLEMENTED, 405: grpc.StatusCode.UNIMPLEMENTED}


def make_receiver(
    intake: Intake,
    *,
    quarantine: Path,
    token: str | None = None,
    read_token: str | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> web.Application:
    """The receiver's routes. Run it with `auto_decompress=False`: bodies are unpacked here, with a limit.

    Args:
        intake: where requests go.
        quarantine: the folder that /healthz and /metrics count.
        token: what senders must show as a bearer token; None: nothing.
        read_token: what those must show who ask for /metrics; None: nothing.
        max_body_bytes: the most that a request may be, before and after unpacking.
    """
    receiver = _Receiver(intake, quarantine, token, read_token, max_body_bytes)
    app = web.Application(client_max_size=max_body_bytes, middlewares=[_with_status])
    app.router.add_post("/v1/traces", receiver.traces)
    app.router.add_post("/v1/logs", receiver.logs)
    app.router.add_post("/v1/metrics", receiver.metrics)
    app.router.add_get("/healthz", receiver.health)
    app.router.add_get("/metrics", receiver.prometheus)
    app.router.add_post("/flush", receiver.flush)
    FeedbackRoute(intake, receiver.body, max_body_bytes).add_to(app)
    return app


@web.middleware
async def _with_status(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every 4xx and 5xx of an OTLP path is a google.rpc.Status in the encoding that was asked in ("Failures")."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400 or not request.path.startswith("/v1"):
            raise
        code = _GRPC_CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT)
        answer = _refused(
            request, Refusal(error.status, code, f"{request.method} {request.path}: {error.reason}")
        )
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer


class _Receiver:
    def __init__(
        self,
        intake: Intake,
        quarantine: Path,
        token: str | None,
        read_token: str | None,
        max_body_bytes: int,
    ) -> None:
        self._intake = intake
        self._quarantine = quarantine
        self._token = token
        self._read_token = read_token
        self._max_body_bytes = max_body_bytes
        # Not the loop's threads: flushes of an absent store would keep them from all others, the stop included.
        self._flushes = ThreadPoolExecutor(_FLUSHES, "spanloop-flush")

    async def traces(self, request: web.Request) -> web.Response:
        return await self._export(request, Signal.TRACES)

    async def logs(self, request: web.Request) -> web.Response:
        return await self._export(request, Signal.LOGS)

    async def metrics(self, request: web.Request) -> web.Response:
        is_json = _is_json(request)
        try:
            with self._intake.space.in_flight() as room:
                body = await self.body(request, room)
                if is_json:
                    answer = await self._intake.parse_json(no_metrics, body, is_json=True)
                else:
                    answer = no_metrics(body, is_json=False)
        except Exception as error:
            return self._failed(request, "metrics", error)
        self._count("metrics", "partial" if answer.partial_success.rejected_data_points else "empty")
        return _answer(answer, is_json)

    async def _export(self, request: web.Request, signal: Signal) -> web.Response:
        is_json = _is_json(request)
        try:
            with self._intake.space.in_flight() as room:
                body = await self.body(request, room)
                taken = await self._intake.take(signal, body, is_json=is_json)
        except Exception as error:
            return self._failed(request, signal.value, error)
        what = outcome(taken.checked)
        if what == "empty":
            log.warning("an empty %s request from %s: nothing to store", signal.value, request.remote)
        self._count(signal.value, what)
        response = _answer(accepted(signal, taken.checked), is_json)
        if taken.repeated:
            response.headers[REPEATED_HEADER] = "true"
        return response

    async def body(
        self,
        request: web.Request,
        room: InFlight,
        *,
        kinds: Sequence[str] = (_PROTOBUF, _JSON),
        limit: int | None = None,
        advice: str = _TOO_LARGE,
    ) -> bytes:
        """A request's body, unpacked, from a sender who shows the token.

        Args:
            request: whose body is read.
            room: for the bytes that it takes.
            kinds: content types that are taken.
            limit: of bytes, before and after unpacking; the receiver's own when None.
            advice: what to do where it is larger.

        Raises:
            Refusal: it is not taken.
        """
        if not shows_token(request.headers.get("Authorization"), self._token):
            raise Refusal(
                401,
                grpc.StatusCode.UNAUTHENTICATED,
                "this collector needs a token: OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer TOKEN'",
            )
        if request.content_type not in kinds:
            raise Refusal(
                415,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"content type {request.content_type!r} is not taken by {request.path}; send {' or '.join(kinds)}",
            )
        limit = self._max_body_bytes if limit is None else limit
        too_large = Refusal(
            413, grpc.StatusCode.RESOURCE_EXHAUSTED, f"the body is larger than {limit} bytes; {advice}"
        )
        if (request.content_length or 0) > limit:
            raise too_large
        raw = bytearray()
        try:
            while True:
                async with asyncio.timeout(_IDLE_S):
                    chunk = await request.content.readany()
                if not chunk:
                    break
                room.grow(len(chunk))
                raw += chunk
                if len(raw) > limit:
                    raise too_large
        except TimeoutError as error:
            raise Refusal(
                408, grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing of the body came for {_IDLE_S:g} s"
            ) from error
        except (ConnectionError, PayloadEncodingError, web.RequestPayloadError) as error:
            raise Refusal(
                400, grpc.StatusCode.INVALID_ARGUMENT, f"the body ended early: {error}", bad_data=True
            ) from error
        try:
            body = encodings.decode(bytes(raw), request.headers.get("Content-Encoding", ""), limit)
        except encodings.TooLarge as error:
            raise Refusal(413, grpc.StatusCode.RESOURCE_EXHAUSTED, f"{error}; {advice}") from error
        except encodings.UnknownEncoding as error:
            raise Refusal(415, grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        except encodings.BadEncoding as error:
            raise Refusal(400, grpc.StatusCode.INVALID_ARGUMENT, str(error), bad_data=True) from error
        room.grow(len(body))
        signal = request.path.rpartition("/")[2]
        self._intake.statistics.add(
            "spanloop_received_bytes_total", len(body), signal=signal, protocol="http"
        )
        return body

    def _failed(self, request: web.Request, signal: str, error: Exception) -> web.Response:
        refusal = refusal_for(error)
        if refusal.http == 500:
            log.exception("%s %s failed", request.method, request.path)
        self._count(signal, "busy" if refusal.retryable else "refused")
        return _refused(request, refusal)

    def _count(self, signal: str, what: str) -> None:
        self._intake.statistics.add("spanloop_requests_total", signal=signal, protocol="http", outcome=what)

    async def health(self, request: web.Request) -> web.Response:
        """200 while requests are taken, 503 while they are not; the text says what is wrong or will soon be."""
        del request
        health = look(self._intake, self._quarantine)
        return web.json_response(health.as_json(), status=200 if health.accepting else 503)

    async def prometheus(self, request: web.Request) -> web.Response:
        if not shows_token(request.headers.get("Authorization"), self._read_token):
            return web.json_response(
                {
                    "error": "metrics need the bearer token SPANLOOP_READ_TOKEN, or SPANLOOP_TOKEN where that is not set"
                },
                status=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        text = self._intake.statistics.prometheus(gauges(self._intake, self._quarantine))
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
        done = await asyncio.get_running_loop().run_in_executor(
            self._flushes, self._intake.writer.flush, min(max(timeout_s, 0.0), 3600.0)
        )
        counts = {"acknowledged": acknowledged, "inserted": statistics.total("spanloop_items_inserted_total")}
        if not done:
            why = self._intake.writer.last_error or "not done in time"
            return web.json_response({**counts, "error": why}, status=504)
        return web.json_response(counts)


def _is_json(request: web.Request) -> bool:
    return request.content_type == _JSON


def _answer(message: Any, is_json: bool) -> web.Response:
    # Without a charset: the specification asks for the very content type of the request.
    return web.Response(body=encode(message, is_json=is_json), content_type=_JSON if is_json else _PROTOBUF)


def _refused(request: web.Request, refusal: Refusal) -> web.Response:
    log.warning("%s %s refused with %d: %s", request.method, request.path, refusal.http, refusal)
    response = _answer(refusal.status(), _is_json(request))
    response.set_status(refusal.http)
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.http == 415:
        response.headers["Accept-Encoding"] = _ENCODINGS  # RFC 9110, 15.5.16
    if refusal.http == 408:
        response.force_close()
    if refusal.http == 401:
        response.headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, 11.6.1
    return response
