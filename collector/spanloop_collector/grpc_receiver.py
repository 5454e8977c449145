"""OTLP over gRPC: the three collector services on grpc.aio."""

from __future__ import annotations

from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from spanloop_collector.addresses import cannot_listen, reserve, shows_token
from spanloop_collector.errors import Busy
from spanloop_collector.http_receiver import MAX_BODY_BYTES, METRICS_NOT_STORED, count_points, response_for
from spanloop_collector.intake import Intake
from spanloop_store.errors import InvalidOtlp
from spanloop_store.otlp.signals import Signal


async def start_server(intake: Intake, host: str, port: int, *, token: str | None = None) -> tuple[Any, int]:
    """A started grpc.aio server, and the port that it listens on.

    Args:
        intake: where requests go.
        host: address to listen on.
        port: 0 for any free one.
        token: what senders must show as `authorization: Bearer TOKEN`; None: nothing.

    Raises:
        ListenError: the port is taken.
    """
    if port:
        # gRPC reports a port that is taken on standard error first, in words that help nobody.
        reserve(host, port, "--otlp-grpc-port").close()
    server = grpc.aio.server(
        options=[
            # gRPC's own 4 MiB would refuse one batch of long prompts.
            ("grpc.max_receive_message_length", MAX_BODY_BYTES),
            # Without this a second process would share the port and take half of the spans.
            ("grpc.so_reuseport", 0),
        ],
        compression=grpc.Compression.NoCompression,
    )
    add_TraceServiceServicer_to_server(_Traces(intake, token), server)  # type: ignore[no-untyped-call]  # generated
    add_LogsServiceServicer_to_server(_Logs(intake, token), server)  # type: ignore[no-untyped-call]  # generated
    add_MetricsServiceServicer_to_server(_Metrics(intake, token), server)  # type: ignore[no-untyped-call]  # generated
    shown = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{shown}:{port}")
    except RuntimeError as error:
        raise cannot_listen(host, port, "--otlp-grpc-port", OSError(str(error))) from error
    if not bound:
        raise cannot_listen(host, port, "--otlp-grpc-port", OSError("address already in use"))
    await server.start()
    return server, bound


class _Service:
    def __init__(self, intake: Intake, token: str | None) -> None:
        self._intake = intake
        self._token = token

    async def _check_token(self, context: Any) -> None:
        metadata = dict(context.invocation_metadata() or ())
        if not shows_token(metadata.get("authorization"), self._token):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this collector needs a bearer token")

    async def _take(self, signal: Signal, request: Any, context: Any) -> Any:
        await self._check_token(context)
        outcome = "refused"
        try:
            # gRPC has parsed the message already; its bytes are what the log keeps.
            checked = await self._intake.take(signal, request.SerializeToString())
            outcome = "partial" if checked.rejected else "ok"
            return response_for(signal, checked)
        except InvalidOtlp as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{error.message}; {error.hint}")
        except Busy as error:
            # UNAVAILABLE without details asks the sender to try again with its own back-off.
            await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
        finally:
            self._intake.statistics.add(
                "spanloop_requests_total", signal=signal.value, protocol="grpc", outcome=outcome
            )


class _Traces(_Service, TraceServiceServicer):
    async def Export(self, request: Any, context: Any) -> Any:
        return await self._take(Signal.TRACES, request, context)


class _Logs(_Service, LogsServiceServicer):
    async def Export(self, request: Any, context: Any) -> Any:
        return await self._take(Signal.LOGS, request, context)


class _Metrics(_Service, MetricsServiceServicer):
    async def Export(self, request: Any, context: Any) -> Any:
        await self._check_token(context)
        answer = ExportMetricsServiceResponse()
        answer.partial_success.rejected_data_points = count_points(request)
        answer.partial_success.error_message = METRICS_NOT_STORED
        return answer
