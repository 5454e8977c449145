"""The aiohttp application: ClickHouse's HTTP interface for clients that think they talk to a server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from spanloop_collector.endpoint import execute
from spanloop_collector.endpoint.compression import (
    MAX_BODY_BYTES,
    choose_encoding,
    compress,
    decompress_body,
    decompress_frames,
)
from spanloop_collector.endpoint.credentials import Credentials, User
from spanloop_collector.endpoint.errors import BAD_ARGUMENTS, UNKNOWN_EXCEPTION, EndpointError
from spanloop_collector.endpoint.guard import Statement, read_statement
from spanloop_collector.endpoint.request import Query, read_query
from spanloop_collector.endpoint.sessions import Sessions, open_handle, sweep_forever
from spanloop_store import OWNER_ROLE, READER_ROLE, WRITER_ROLE, Engine

log = logging.getLogger(__name__)

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_THREADS = 8  # queries at a time; the engine has its own threads within each
_MIN_COMPRESSED_BYTES = 1024
_END = object()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_endpoint(
    engine: Engine, credentials: Credentials, *, hosts: frozenset[str] = _LOCAL_NAMES
) -> web.Application:
    """ClickHouse's HTTP protocol over an open engine.

    Args:
        engine: stays the caller's: close it after the application has stopped.
        credentials: the two users.
        hosts: the names that a `Host` or `Origin` header may carry, without port. Anything else is refused: a page
            in a browser on this machine must not reach the engine by a name that resolves here.
    """
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    endpoint = _Endpoint(engine, credentials, hosts)
    app.router.add_get("/ping", endpoint.ping)
    app.router.add_get("/replicas_status", endpoint.ping)
    app.router.add_route("GET", "/", endpoint.query)
    app.router.add_post("/", endpoint.query)
    app.cleanup_ctx.append(endpoint.lifetime)
    return app


class _Endpoint:
    def __init__(self, engine: Engine, credentials: Credentials, hosts: frozenset[str]) -> None:
        self._engine = engine
        self._credentials = credentials
        self._hosts = hosts
        self._sessions = Sessions(engine)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="clickhouse-http")
        self._table_functions: frozenset[str] = frozenset()
        self._timezone = "UTC"

    async def lifetime(self, _app: web.Application) -> AsyncIterator[None]:
        await self._in_thread(self._look_around)
        sweeper = asyncio.create_task(sweep_forever(self._sessions))
        yield
        sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeper
        await asyncio.to_thread(self._threads.shutdown)
        self._sessions.sweep(everything=True)

    def _look_around(self) -> None:
        handle = self._engine.handle(READER_ROLE)
        try:
            names = (
                handle.query("SELECT lower(name) FROM system.table_functions", "TabSeparated")
                .bytes()
                .decode()
            )
            self._table_functions = frozenset(names.split())
            self._timezone = handle.query("SELECT timezone()", "TabSeparated").bytes().decode().strip()
        finally:
            handle.close()

    async def ping(self, request: web.Request) -> web.Response:
        """`Ok.`, to anyone on this machine: it says nothing but that the endpoint runs."""
        try:
            self._check_place(request)
        except EndpointError as error:
            return self._refusal(error, "")
        return web.Response(text="Ok.\n")

    async def query(self, request: web.Request) -> web.StreamResponse:
        """One query, or the bare `Ok.` where there is none."""
        query_id = request.query.get("query_id") or str(uuid.uuid4())
        try:
            self._check_place(request)
            user = self._credentials.authenticate(request.headers, request.query)
            query = await self._read(request)
            if not query.text.strip():
                return web.Response(text="Ok.\n")
            # As in ClickHouse, GET never changes anything.
            role = READER_ROLE if request.method == "GET" else user.role
            statement = read_statement(
                query.text, writable=role == WRITER_ROLE, table_functions=self._table_functions
            )
            return await self._answer(request, User(user.name, "", role), query, statement, query_id)
        except EndpointError as error:
            return self._refusal(error, query_id)
        except (web.HTTPException, asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception:
            # A bug of ours must neither stop the collector nor show its insides.
            log.exception("query %s failed inside the endpoint", query_id)
            return self._refusal(
                EndpointError(UNKNOWN_EXCEPTION, "the endpoint failed; see its log"), query_id
            )

    def _check_place(self, request: web.Request) -> None:
        host = urlsplit(f"//{request.host}").hostname
        if host not in self._hosts:
            raise EndpointError(BAD_ARGUMENTS, f"host {request.host!r} is not served here", 403)
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).hostname not in self._hosts:
            raise EndpointError(BAD_ARGUMENTS, f"origin {origin!r} is not served here", 403)

    async def _read(self, request: web.Request) -> Query:
        pairs = list(request.query.items())
        if (
            request.content_type in ("multipart/form-data", "application/x-www-form-urlencoded")
            and request.can_read_body
        ):
            form = await request.post()
            for name, value in form.items():
                if not isinstance(value, str):
                    raise EndpointError(
                        BAD_ARGUMENTS, "external data is not supported by the embedded engine"
                    )
                pairs.append((name, value))
            return read_query(pairs, b"")
        raw = await request.read()
        encoding = request.headers.get("Content-Encoding", "")
        if not encoding and request.query.get("decompress", "0") in ("", "0"):
            return read_query(pairs, raw)
        body = await self._in_thread(lambda: self._plain(request, raw, encoding))
        return read_query(pairs, body)

    @staticmethod
    def _plain(request: web.Request, raw: bytes, encoding: str) -> bytes:
        body = decompress_body(raw, encoding)
        return decompress_frames(body) if request.query.get("decompress", "0") not in ("", "0") else body

    async def _answer(
        self, request: web.Request, user: User, query: Query, statement: Statement, query_id: str
    ) -> web.StreamResponse:
        # A session's handle keeps its role; checked table DDL needs no session.
        session_id = "" if statement.checked else query.transport.get("session_id")
        session = None
        if session_id:
            session = await self._in_thread(
                lambda: self._sessions.take(
                    user, f"{user.role}:{session_id}", query.session_timeout_s, query.flag("session_check")
                )
            )
            handle = session.handle
        else:
            role = OWNER_ROLE if statement.checked else user.role
            handle = await self._in_thread(lambda: open_handle(self._engine, role))
        try:
            await self._in_thread(lambda: execute.prepare(handle, query))
            if execute.can_stream(query, statement):
                return await self._stream(request, handle, query, statement, query_id)
            answer = await self._in_thread(lambda: execute.run(handle, query, statement))
            headers = self._headers(query_id, answer.format)
            headers["X-ClickHouse-Summary"] = answer.summary_json
            encoding = self._encoding(request, query)
            body = answer.body
            if encoding and len(body) >= _MIN_COMPRESSED_BYTES:
                body = await self._in_thread(lambda: compress(answer.body, encoding))
                headers["Content-Encoding"] = encoding
            return web.Response(body=body, headers=headers)
        finally:
            if session is not None:
                self._sessions.give(session)
            else:
                await self._in_thread(handle.close)

    async def _stream(
        self, request: web.Request, handle: Any, query: Query, statement: Statement, query_id: str
    ) -> web.StreamResponse:
        pieces = execute.stream(handle, query, statement)
        try:
            # The first piece decides whether this is an answer or an error with its own status.
            first = await self._in_thread(lambda: next(pieces, _END))
            form = statement.format or query.transport.get("default_format") or "TabSeparated"
            headers = self._headers(query_id, form)
            headers["X-ClickHouse-Summary"] = "{}"
            encoding = self._encoding(request, query)
            if encoding:
                headers["Content-Encoding"] = encoding
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            piece: Any = first
            try:
                while piece is not _END:
                    # Every piece is a frame of its own; gzip, lz4 and zstd streams may be a chain of those.
                    data = await self._in_thread(partial(compress, piece, encoding)) if encoding else piece
                    await response.write(data)
                    piece = await self._in_thread(lambda: next(pieces, _END))
            except EndpointError as error:
                # The status is sent; a cut body is what tells the client, as with ClickHouse.
                await response.write(compress(_error_text(error), encoding))
                if request.transport is not None:
                    request.transport.close()
                return response
            await response.write_eof()
            return response
        finally:
            await self._in_thread(lambda: _close(pieces))

    def _encoding(self, request: web.Request, query: Query) -> str:
        if not query.flag("enable_http_compression"):
            return ""
        return choose_encoding(request.headers.get("Accept-Encoding", ""))

    def _headers(self, query_id: str, form: str) -> dict[str, str]:
        headers = {
            "X-ClickHouse-Server-Display-Name": "spanloop",
            "X-ClickHouse-Query-Id": query_id,
            "X-ClickHouse-Timezone": self._timezone,
        }
        if form:
            headers["X-ClickHouse-Format"] = form
        return headers

    def _refusal(self, error: EndpointError, query_id: str) -> web.Response:
        headers = self._headers(query_id, "")
        headers["X-ClickHouse-Exception-Code"] = str(error.code)
        if error.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        return web.Response(body=_error_text(error), status=error.status, headers=headers)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        # Shielded: a client that goes away must not leave a handle closed under a running query.
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await future
            raise


def _error_text(error: EndpointError) -> bytes:
    return f"{error.text}\n".encode("utf-8", "backslashreplace")


def _close(pieces: Iterator[bytes]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()
