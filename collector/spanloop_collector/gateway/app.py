"""The gateway's web application: routes, the token check, start and stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiohttp import web

from spanloop_collector.gateway.admin import Admin
from spanloop_collector.gateway.apis.base import Api
from spanloop_collector.gateway.auditing import Audit
from spanloop_collector.gateway.bodies import Bodies
from spanloop_collector.gateway.calls import APIS, Calls
from spanloop_collector.gateway.connections import Busy
from spanloop_collector.gateway.errors import ClientError, no_upstream
from spanloop_collector.gateway.exchange import Exchange
from spanloop_collector.gateway.metrics import Metrics
from spanloop_collector.gateway.models import list_models
from spanloop_collector.gateway.openapi import document
from spanloop_collector.gateway.pausing import Gate
from spanloop_collector.gateway.planning import Planner
from spanloop_collector.gateway.privacy import OPEN, Privacy
from spanloop_collector.gateway.prompts import Prompts
from spanloop_collector.gateway.proxy import inner_path, pass_through, request_headers, shows
from spanloop_collector.gateway.settings import GatewaySettings
from spanloop_collector.gateway.spans import CallTracer
from spanloop_collector.gateway.timing import Clock
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import Versions

_log = logging.getLogger(__name__)

# Below the 5 s after which uvicorn (vLLM's server) closes an idle connection: a request sent into a closing
# connection fails, and a POST is not repeated by the client library.
UPSTREAM_KEEPALIVE_S: Final = 4.0
# Open to everybody, or to the administrator alone.
_OTHERWISE: Final = frozenset({"/healthz", "/pause", "/resume"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Settings:
    """What the gateway is started with."""

    upstreams: Upstreams
    # demanded of clients when set (bearer token, or the x-spanloop-token header beside an upstream's own key)
    token: str | None = None
    # demanded of whoever pauses; None: `token` is
    admin_token: str | None = None
    # demanded for /metrics where `token` is set; None: `token` is
    read_token: str | None = None
    limits: GatewaySettings = field(default_factory=GatewaySettings)
    # puts promoted system prompts in place
    prompts: Prompts | None = None
    privacy: Privacy = OPEN
    # records (action, who) wherever the admin token was shown; None: nothing does
    audit: Audit | None = None


class Gateway:
    """Holds what lives as long as the process, and knows which part serves which route."""

    def __init__(self, settings: Settings, versions: Versions, tracer: CallTracer) -> None:
        self._settings = settings
        self._versions = versions
        self._tracer = tracer
        self._gate = Gate(settings.limits.max_waiting, settings.limits.max_wait_s)
        self._metrics = Metrics()
        self.busy = Busy()  # connections with a request in work
        self._session: aiohttp.ClientSession | None = None
        self._calls: Calls | None = None
        self._admin = Admin(
            settings.upstreams,
            versions,
            tracer,
            self._gate,
            self._metrics,
            settings.admin_token,
            settings.audit,
            closed=settings.token is not None and settings.admin_token is None,
        )

    def application(self) -> web.Application:
        """The routes, ready for `aiohttp.web.AppRunner(app, handler_cancellation=True)`."""
        app = web.Application(
            client_max_size=self._settings.limits.max_body_bytes, middlewares=[self._answer_errors]
        )
        for api in APIS:
            app.router.add_post(f"/v1{api.path}", self._handler(api))
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)
        app.router.add_route("*", "/v1/{path:.*}", self._other)
        app.router.add_get("/healthz", self._admin.health)
        app.router.add_get("/metrics", self._admin.metrics)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_post("/flush", self._admin.flush)
        app.router.add_post("/pause", self._admin.pause)
        app.router.add_post("/resume", self._admin.resume)
        app.cleanup_ctx.append(self._life)
        return app

    async def _life(self, _app: web.Application) -> AsyncIterator[None]:
        settings, limits = self._settings, self._settings.limits
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=UPSTREAM_KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            # All other limits are those of `Clock`, which knows how far an answer is.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_timeout_s),
            auto_decompress=False,
            # What a client did not send is not added: an upstream that hears of gzip might answer in it.
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )
        self._calls = Calls(
            token=settings.token,
            planner=Planner(settings.upstreams, self._versions, limits, settings.prompts),
            exchange=Exchange(self._session, limits, self._metrics, keep_texts=settings.privacy.on),
            tracer=self._tracer,
            bodies=Bodies(limits.max_body_bytes),
            gate=self._gate,
            metrics=self._metrics,
            privacy=settings.privacy,
        )
        self._versions.start()
        if settings.prompts is not None:
            settings.prompts.start()
        probes = [asyncio.create_task(pool.look_after(self._session)) for pool in settings.upstreams]
        yield
        for probe in probes:
            probe.cancel()
        for probe in probes:
            with suppress(asyncio.CancelledError):
                await probe
        self._versions.stop()
        if settings.prompts is not None:
            settings.prompts.stop()
        await self._session.close()

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = self.busy.begin(request)
        try:
            if self._settings.token is not None and request.path not in _OTHERWISE:
                self._check_token(request)
            return await handler(request)
        except ClientError as error:
            return error.response()
        except web.HTTPException as error:
            kind, message = "invalid_request_error", f"{request.method} {request.path}: {error.reason}"
            if error.status == web.HTTPNotFound.status_code:
                message += ". Next: end the client's base URL with /v1."
            response = ClientError(error.status, kind, message, "http_error").response()
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            return response
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            _log.exception("%s %s failed in a way that we did not foresee", request.method, request.path)
            if request.writer.output_size:
                raise  # the answer has begun: aiohttp cuts the connection
            message = "the gateway failed in a way that we did not foresee. Next: its log has the reason."
            return ClientError(500, "api_error", message, "internal_error").response()
        finally:
            self.busy.end(transport)

    def _check_token(self, request: web.Request) -> None:
        settings = self._settings
        reads = request.path == "/metrics" and settings.read_token is not None
        if not shows(request.headers, settings.read_token if reads else settings.token):
            how = (
                "send the value of SPANLOOP_READ_TOKEN as bearer token."
                if reads
                else "set OPENAI_API_KEY to the value of SPANLOOP_TOKEN there, or send it as x-spanloop-token beside "
                "the upstream's own key."
            )
            message = f"this gateway wants its token. Next: {how}"
            raise ClientError(401, "authentication_error", message, "invalid_api_key")

    def _handler(self, api: Api) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            assert self._calls is not None, "set when the application starts"
            return await self._calls.handle(request, api)

        return handle

    async def _other(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None, "set when the application starts"
        path = inner_path(request)
        pool = self._settings.upstreams.default
        if pool is None:
            raise no_upstream(f"{request.method} {request.path} (only the default upstream serves it)")
        limits = self._settings.limits
        headers = request_headers(request.headers, self._settings.token)
        async with self._gate:
            backend = await pool.take((), limits.max_in_flight, limits.max_waiting, limits.max_wait_s)
            try:
                end = asyncio.get_running_loop().time() + limits.total_timeout_s
                clock = Clock(limits.first_byte_timeout_s, limits.idle_timeout_s, end)
                return await pass_through(request, backend, self._session, path, headers, clock)
            finally:
                pool.release(backend)

    async def _model(self, request: web.Request) -> web.StreamResponse:
        for model in await self._listed(request):
            if model["id"] == request.match_info["name"]:
                return web.json_response(model)
        return await self._other(request)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": await self._listed(request)})

    async def _listed(self, request: web.Request) -> list[dict[str, Any]]:
        assert self._session is not None, "set when the application starts"
        authorization = request_headers(request.headers, self._settings.token).get("authorization")
        return await list_models(self._settings.upstreams, self._versions, self._session, authorization)

    async def _openapi(self, _request: web.Request) -> web.Response:
        return web.json_response(document(self._settings.token is not None))
