"""OTLP over gRPC: the three collector services on grpc.aio. Requests stay the bytes that were sent."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from spanloop_collector.addresses import cannot_listen, reserve, shows_token
from spanloop_collector.answers import Refusal, accepted, encode, no_metrics, outcome, refusal_for
from spanloop_collector.http_receiver import MAX_BODY_BYTES
from spanloop_collector.intake import Intake
from spanloop_collector.tls import Tls
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

_SERVICES = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "traces",
    "opentelemetry.proto.collector.logs.v1.LogsService": "logs",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
}
# How gRPC carries a google.rpc.Status with details.
_DETAILS = "grpc-status-details-bin"


async def start_server(
    intake: Intake,
    host: str,
    port: int,
    *,
    token: str | None = None,
    tls: Tls | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> tuple[Any, int]:
    """A started grpc.aio server, and the port that it listens on.

    Args:
        intake: where requests go.
        host: address to listen on.
        port: 0 for any free one.
        token: what senders must show as `authorization: Bearer TOKEN`; None: nothing.
        tls: certificate and key; None: plain text.
        max_body_bytes: the most that a request may be, before and after unpacking.

    Raises:
        ListenError: the port is taken.
    """
    if port:
        # gRPC reports a port that is taken on standard error first, in words that help nobody.
        reserve(host, port, "--otlp-grpc-port").close()
    server = grpc.aio.server(
        options=[
            # gRPC's own 4 MiB would refuse one batch of long prompts.
            ("grpc.max_receive_message_length", max_body_bytes),
            # Without this a second process would share the port and take half of the spans.
            ("grpc.so_reuseport", 0),
        ],
        compression=grpc.Compression.NoCompression,
    )
    receiver = _Receiver(intake, token)
    for service, signal in _SERVICES.items():
        # No deserializer: the log keeps the bytes as they came, and a body that does not decode is INVALID_ARGUMENT, for
        # which gRPC itself would say INTERNAL.
        # As a stream, of which there is one message: it is read once the token is seen, and not before.
        handler = grpc.stream_unary_rpc_method_handler(receiver.export(signal))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = (
            server.add_insecure_port(address)
            if tls is None
            else server.add_secure_port(address, tls.for_grpc())
        )
    except RuntimeError as error:
        raise cannot_listen(host, port, "--otlp-grpc-port", OSError(str(error))) from error
    if not bound:
        raise cannot_listen(host, port, "--otlp-grpc-port", OSError("address already in use"))
    await server.start()
    return server, bound


class _Receiver:
    def __init__(self, intake: Intake, token: str | None) -> None:
        self._intake = intake
        self._token = token

    def export(self, signal: str) -> Callable[[AsyncIterator[bytes], Any], Awaitable[bytes]]:
        """The handler of one service's only method."""

        async def handle(bodies: AsyncIterator[bytes], context: Any) -> bytes:
            try:
                self._check_token(context)
                body = await anext(bodies, None)
                if body is None:
                    raise Refusal(
                        400, grpc.StatusCode.INVALID_ARGUMENT, "the call has no message", bad_data=True
                    )
                with self._intake.space.in_flight() as room:
                    room.grow(len(body))
                    return await self._take(signal, body)
            except Exception as error:
                refusal = refusal_for(error)
                if refusal.http == 500:
                    log.exception("gRPC %s failed", signal)
            log.warning("gRPC %s refused with %s: %s", signal, refusal.grpc.name, refusal)
            self._count(signal, "busy" if refusal.retryable else "refused")
            metadata = ((_DETAILS, refusal.status().SerializeToString()),)
            await context.abort(refusal.grpc, refusal.message, trailing_metadata=metadata)
            raise AssertionError("abort raises")

        return handle

    def _check_token(self, context: Any) -> None:
        metadata = dict(context.invocation_metadata() or ())
        if not shows_token(metadata.get("authorization"), self._token):
            raise Refusal(401, grpc.StatusCode.UNAUTHENTICATED, "this collector needs a bearer token")

    async def _take(self, signal: str, body: bytes) -> bytes:
        self._intake.statistics.add(
            "spanloop_received_bytes_total", len(body), signal=signal, protocol="grpc"
        )
        if signal == "metrics":
            answer = no_metrics(body, is_json=False)
            self._count(signal, "partial" if answer.partial_success.rejected_data_points else "empty")
            return encode(answer, is_json=False)
        taken = await self._intake.take(Signal(signal), body)
        self._count(signal, outcome(taken.checked))
        return encode(accepted(Signal(signal), taken.checked), is_json=False)

    def _count(self, signal: str, what: str) -> None:
        self._intake.statistics.add("spanloop_requests_total", signal=signal, protocol="grpc", outcome=what)
