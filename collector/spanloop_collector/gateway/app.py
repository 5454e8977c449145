"""The gateway's web application: routes, the token check, start and stop."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from spanloop_collector.gateway.chat import Chat
from spanloop_collector.gateway.errors import ClientError, no_upstream
from spanloop_collector.gateway.proxy import TOKEN_HEADER, bearer, pass_through, secrets
from spanloop_collector.gateway.spans import CallTracer
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import Versions

_log = logging.getLogger(__name__)

# Long agent histories with images inside; aiohttp's own limit is 1 MiB.
MAX_REQUEST_BYTES = 64 * 2**20
# Below the 5 s after which uvicorn (vLLM's server) closes an idle connection: a request sent into a closing
# connection fails, and a POST is not repeated by the client library.
UPSTREAM_KEEPALIVE_S = 4.0
UPSTREAM_CONNECT_S = 10.0
# Not in vLLM's list nor OpenAI's: a gateway must not pass for a back end that can give token ids.
OWNER = "spanloop-gateway"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Settings:
    """What the gateway is started with."""

    upstreams: Upstreams
    # demanded of clients when set (bearer token, or the x-spanloop-token header beside an upstream's own key)
    token: str | None = None


class Gateway:
    """Holds what lives as long as the process, and serves the routes that need no recording."""

    def __init__(self, settings: Settings, versions: Versions, tracer: CallTracer) -> None:
        self._settings = settings
        self._versions = versions
        self._tracer = tracer
        self._session: aiohttp.ClientSession | None = None
        self._chat: Chat | None = None

    def application(self) -> web.Application:
        """The routes, ready for `aiohttp.web.AppRunner(app, handler_cancellation=True)`."""
        app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=[self._answer_errors])
        app.router.add_get("/healthz", self._health)
        app.router.add_post("/flush", self._flush)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._completions)
        app.router.add_route("*", "/v1/{path:.*}", self._other)
        app.cleanup_ctx.append(self._life)
        return app

    async def _life(self, _app: web.Application) -> AsyncIterator[None]:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=UPSTREAM_KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            # No total limit: an answer may take minutes. The client decides how long it waits.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=UPSTREAM_CONNECT_S),
            auto_decompress=False,
        )
        settings = self._settings
        self._chat = Chat(settings.upstreams, settings.token, self._versions, self._tracer, self._session)
        self._versions.start()
        yield
        self._versions.stop()
        await self._session.close()

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path != "/healthz":
                self._check_token(request)
            return await handler(request)
        except ClientError as error:
            return error.response()
        except web.HTTPException as error:
            kind, message = "invalid_request_error", f"{request.method} {request.path}: {error.reason}"
            return ClientError(error.status, kind, message, "http_error").response()

    def _check_token(self, request: web.Request) -> None:
        token = self._settings.token
        if token is None:
            return
        given = request.headers.get(TOKEN_HEADER) or bearer(request.headers)
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise ClientError(
                401,
                "authentication_error",
                "this gateway wants its token. Next: set OPENAI_API_KEY to the value of SPANLOOP_TOKEN there, or "
                f"send it as {TOKEN_HEADER} beside the upstream's own key.",
                "invalid_api_key",
            )

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        assert self._chat is not None, "set when the application starts"
        return await self._chat.handle(request)

    async def _other(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None, "set when the application starts"
        upstream = self._settings.upstreams.default
        if upstream is None:
            raise no_upstream(f"{request.method} {request.path} (only the default upstream serves it)")
        path = request.rel_url.raw_path.removeprefix("/v1")
        return await pass_through(
            request, upstream, self._session, path, secrets(request.headers, self._settings.token)
        )

    async def _models(self, _request: web.Request) -> web.Response:
        snapshot = self._versions.snapshot
        names = [*(snapshot.names() if snapshot else []), *self._settings.upstreams.names]
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": OWNER} for name in dict.fromkeys(names)
        ]
        return web.json_response({"object": "list", "data": data})

    async def _flush(self, _request: web.Request) -> web.Response:
        """Spans of answered calls are on their way to the collector when this answers."""
        sent = await asyncio.get_running_loop().run_in_executor(None, self._tracer.flush)
        return web.json_response({"sent": sent}, status=200 if sent else 504)

    async def _health(self, _request: web.Request) -> web.Response:
        upstreams = [
            {"name": upstream.label, "url": upstream.base, "gives_token_ids": upstream.capable}
            for upstream in self._settings.upstreams
        ]
        return web.json_response(
            {"status": "ok", "registry": self._versions.health(), "upstreams": upstreams}
        )
