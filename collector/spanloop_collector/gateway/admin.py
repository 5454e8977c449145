"""What whoever runs the gateway asks of it: pause and resume, health, metrics, the spans on their way."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from spanloop_collector.gateway.auditing import Audit
from spanloop_collector.gateway.errors import ClientError
from spanloop_collector.gateway.metrics import CONTENT_TYPE, Metrics
from spanloop_collector.gateway.pausing import Gate
from spanloop_collector.gateway.proxy import shows
from spanloop_collector.gateway.spans import CallTracer
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import Versions

_log = logging.getLogger(__name__)


class Admin:
    """Serves the routes of operation; one for the life of the gateway."""

    def __init__(
        self,
        upstreams: Upstreams,
        versions: Versions,
        tracer: CallTracer,
        gate: Gate,
        metrics: Metrics,
        admin_token: str | None,
        audit: Audit | None,
        *,
        closed: bool,
    ) -> None:
        self._upstreams = upstreams
        self._versions = versions
        self._tracer = tracer
        self._gate = gate
        self._metrics = metrics
        self._token = admin_token
        self._audit = audit
        # Agents hold the other token, and no agent may stop all others.
        self._closed = closed

    async def health(self, _request: web.Request) -> web.Response:
        """State, registry and back ends, for whoever asks."""
        upstreams = [
            {
                "name": pool.label,
                "url": backend.shown,
                "gives_token_ids": backend.capable,
                "well": backend.well,
                "in_flight": backend.in_flight,
            }
            for pool in self._upstreams
            for backend in pool
        ]
        return web.json_response(
            {
                "status": "ok",
                "state": self._gate.state,
                "in_flight": self._gate.in_flight,
                "waiting": self._gate.waiting + sum(pool.waiting for pool in self._upstreams),
                "registry": self._versions.health(),
                "upstreams": upstreams,
            }
        )

    async def flush(self, _request: web.Request) -> web.Response:
        """Spans of answered calls are on their way to the collector when this answers."""
        sent = await asyncio.get_running_loop().run_in_executor(None, self._tracer.flush)
        return web.json_response({"sent": sent}, status=200 if sent else 504)

    async def metrics(self, _request: web.Request) -> web.Response:
        """For Prometheus."""
        text = self._metrics.text(
            self._upstreams,
            paused=self._gate.state != "running",
            in_flight=self._gate.in_flight,
            spans_waiting=self._tracer.sender.waiting,
            spans_lost=self._tracer.sender.lost,
        )
        return web.Response(body=text.encode(), headers={"content-type": CONTENT_TYPE})

    async def pause(self, request: web.Request) -> web.Response:
        """New calls wait from now on; answers when those in flight have ended."""
        await self._allow(request, "pause")
        _log.info("paused by request; %d calls in flight", self._gate.in_flight)
        self._gate.pause()
        await self._gate.drained()
        return self._state()

    async def resume(self, request: web.Request) -> web.Response:
        """Calls begin again."""
        await self._allow(request, "resume")
        _log.info("resumed by request; %d calls wait", self._gate.waiting)
        self._gate.resume()
        return self._state()

    def _state(self) -> web.Response:
        return web.json_response(
            {"state": self._gate.state, "in_flight": self._gate.in_flight, "waiting": self._gate.waiting}
        )

    async def _allow(self, request: web.Request, action: str) -> None:
        if "origin" in request.headers:
            # A page in this machine's browser reaches loopback, too, and shows no token.
            raise ClientError(
                403, "permission_error", "no browser may ask this: send it without Origin", "forbidden"
            )
        if self._closed or not shows(request.headers, self._token):
            raise ClientError(
                401,
                "authentication_error",
                "this wants the admin token. Next: set SPANLOOP_ADMIN_TOKEN where the gateway runs, and send its value "
                "as `Authorization: Bearer …`.",
                "invalid_api_key",
            )
        if self._audit is not None and self._token is not None:
            try:
                await asyncio.to_thread(self._audit, action, f"administrator@{request.remote}")
            except Exception as error:  # whatever the database driver raises
                _log.error("%s refused: it cannot be recorded (%s)", action, error)
                raise ClientError(
                    503,
                    "api_error",
                    f"{action} is not done, since it cannot be recorded: the store does not answer. "
                    "Next: `spanloop status` shows the store.",
                    "audit_unavailable",
                ) from error
