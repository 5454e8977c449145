"""Model calls: read the request, plan, exchange, and one span with all that the call left behind."""

from __future__ import annotations

import asyncio
import time
from itertools import chain
from typing import Final

from aiohttp import web

from spanloop_collector.gateway.apis.base import Api
from spanloop_collector.gateway.apis.chat import Chat, Completions
from spanloop_collector.gateway.apis.embeddings import Embeddings
from spanloop_collector.gateway.apis.responses import Responses
from spanloop_collector.gateway.bodies import Bodies
from spanloop_collector.gateway.errors import ClientError, bad_request
from spanloop_collector.gateway.exchange import Exchange
from spanloop_collector.gateway.metrics import Metrics
from spanloop_collector.gateway.pausing import Gate
from spanloop_collector.gateway.planning import Planner, parse_body
from spanloop_collector.gateway.privacy import Privacy, is_held, texts_in
from spanloop_collector.gateway.proxy import request_headers
from spanloop_collector.gateway.record import MAX_ERROR_CHARS, Call
from spanloop_collector.gateway.spans import CallTracer, Span

APIS: Final[tuple[Api, ...]] = (Chat(), Completions(), Responses(), Embeddings())


class Calls:
    """Handles model calls; one for the life of the gateway."""

    def __init__(
        self,
        *,
        token: str | None,
        planner: Planner,
        exchange: Exchange,
        tracer: CallTracer,
        bodies: Bodies,
        gate: Gate,
        metrics: Metrics,
        privacy: Privacy,
    ) -> None:
        self._token = token
        self._planner = planner
        self._exchange = exchange
        self._tracer = tracer
        self._bodies = bodies
        self._gate = gate
        self._metrics = metrics
        self._privacy = privacy

    async def handle(self, request: web.Request, api: Api) -> web.StreamResponse:
        """Serve and record one call; a client that goes away cancels the back end's work too.

        Raises:
            ClientError: the request is none; nothing is recorded of it.
        """
        start_ns = time.time_ns()
        raw = await self._bodies.read(request)
        try:
            body = parse_body(raw)
            if not isinstance(body.get("stream", False), bool | None):
                raise bad_request('"stream" is true or false', "stream_invalid", "stream")
            return await self._recorded(request, api, raw, body, start_ns)
        finally:
            self._bodies.release(raw)

    async def _recorded(
        self, request: web.Request, api: Api, raw: bytes, body: dict[str, object], start_ns: int
    ) -> web.StreamResponse:
        call = Call(str(body["model"]), api.operation, start_ns=start_ns, stream=bool(body.get("stream")))
        span = self._tracer.start(request.headers)
        upstream = ""
        try:
            async with self._gate:
                plan = await self._planner.plan(api, call, raw, body, request.headers, span.trace_id)
                upstream = plan.pool.label
                headers = request_headers(request.headers, self._token, read=True)
                headers["accept-encoding"] = "identity"
                headers.update(span.headers())
                return await self._exchange.run(request, call, plan, headers)
        except ClientError as error:
            call.status = call.status or error.status
            call.fail(error.code, error.message)
            return error.response()
        except (asyncio.CancelledError, ConnectionError):
            # Cancelled, or writing to a client that has closed its end; aiohttp closes ours.
            call.fail("client_disconnected", "the client went away before the answer was complete")
            raise
        except Exception as error:
            call.fail(type(error).__name__, str(error))
            raise
        finally:
            call.end_ns = time.time_ns()
            self._record(call, span, body)
            self._metrics.calls[upstream, api.operation, str(call.status)] += 1
            if call.error_type is not None:
                self._metrics.errors[upstream, call.error_type] += 1

    def _record(self, call: Call, span: Span, body: dict[str, object]) -> None:
        if call.error is not None:
            call.error = self._privacy.text(call.error)[:MAX_ERROR_CHARS]
        secret = False
        if self._privacy.on and (
            call.prompt_token_ids is not None or any(choice.token_ids for choice in call.choices.values())
        ):
            said = ["".join(choice.text) for choice in call.choices.values()]
            secret = is_held(body) or self._privacy.holds_secrets(chain(texts_in(body), said))
        self._tracer.end(span, call, secret=secret)
