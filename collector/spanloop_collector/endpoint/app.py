"""The aiohttp application: ClickHouse's HTTP interface for clients that think they talk to a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from aiohttp import web

from spanloop_collector.endpoint import execute
from spanloop_collector.endpoint.auditing import AdminTrail
from spanloop_collector.endpoint.compression import MAX_BODY_BYTES, compress_frames
from spanloop_collector.endpoint.credentials import Credentials, User
from spanloop_collector.endpoint.errors import (
    ACCESS_DENIED,
    BAD_ARGUMENTS,
    UNKNOWN_EXCEPTION,
    EndpointError,
)
from spanloop_collector.endpoint.guard import Statement, read_statement
from spanloop_collector.endpoint.lexer import statement_of
from spanloop_collector.endpoint.place import LOCAL_NAMES, check_place
from spanloop_collector.endpoint.progress import GrowingHeaders, Progress
from spanloop_collector.endpoint.request import Query, read_request
from spanloop_collector.endpoint.running import Running, killed_id
from spanloop_collector.endpoint.sessions import Sessions, open_handle, sweep_forever
from spanloop_collector.endpoint.wire import TAG_HEADER, Wire
from spanloop_store import OWNER_ROLE, READER_ROLE, WRITER_ROLE, Engine
from spanloop_store.errors import AuditError

log = logging.getLogger(__name__)

_THREADS = 8  # queries at a time; the engine has its own threads within each
_MIN_COMPRESSED_BYTES = 1024
_SHORT_TEXT = 1 << 12  # characters that are read in a millisecond or two
_LOOK_S = 0.5  # how often a running query looks whether its client is still there
_WRITE_BYTES = 1 << 20  # handed to the socket at a time: what it cannot send yet, it copies
_MAKES_SESSION = frozenset({"SET", "USE", "CREATE"})  # what a later statement of a session can see
_END = object()
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # a header cannot hold them

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_endpoint(
    engine: Engine, credentials: Credentials, *, hosts: frozenset[str] = LOCAL_NAMES
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


@dataclass
class _Exchange:
    """One request that was read, and how its answer travels."""

    request: web.Request
    user: User
    query: Query
    query_id: str
    wire: Wire
    progress: Progress = field(default_factory=Progress)

    def summary(self, counts: dict[str, str]) -> str:
        """`X-ClickHouse-Summary`: what the engine counted, and what it said on the way."""
        seen = {name: str(value) for name, value in self.progress.counts.items()}
        return json.dumps({"read_rows": "0", "read_bytes": "0", **seen, **counts})


class _Endpoint:
    def __init__(self, engine: Engine, credentials: Credentials, hosts: frozenset[str]) -> None:
        self._engine = engine
        self._credentials = credentials
        self._hosts = hosts
        self._sessions = Sessions(engine)
        self._running = Running(engine)
        self._trail = AdminTrail(engine)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="clickhouse-http")
        self._table_functions: frozenset[str] = frozenset()
        self._timezone = "UTC"

    async def lifetime(self, _app: web.Application) -> AsyncIterator[None]:
        await self._in_thread(self._look_around)
        sweeper = asyncio.create_task(sweep_forever(self._sessions, self._trail))
        yield
        sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeper
        await asyncio.to_thread(self._threads.shutdown)
        self._sessions.sweep(everything=True)
        await asyncio.to_thread(self._trail.close)

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
            check_place(request, self._hosts)
        except EndpointError as error:
            return self._refusal(error, "")
        return web.Response(text="Ok.\n")

    async def query(self, request: web.Request) -> web.StreamResponse:
        """One query, or the bare `Ok.` where there is none."""
        query_id = request.query.get("query_id") or str(uuid.uuid4())
        wire: Wire | None = None
        try:
            check_place(request, self._hosts)
            user = self._credentials.authenticate(request.headers, request.query)
            query = await read_request(request, self._in_thread)
            if not query.text.strip():
                return web.Response(text="Ok.\n")
            wire = Wire.of(query, request.headers)
            if user.by_token and user.role == WRITER_ROLE:
                await self._record(f"{user.name} from {request.remote}", query.text)
            # As in ClickHouse, GET never changes anything.
            user = replace(user, role=READER_ROLE if request.method == "GET" else user.role)
            exchange = _Exchange(request, user, query, query_id, wire)
            if killed := killed_id(query.text):
                return await self._kill(exchange, killed)
            read = partial(
                read_statement,
                query.text,
                writable=user.role == WRITER_ROLE,
                table_functions=self._table_functions,
                parameters=query.parameters,
            )
            # A long text takes a while, and the receivers share this loop.
            statement = await self._in_thread(read) if len(query.text) > _SHORT_TEXT else read()
            with self._running.run(query_id, user):
                return await self._answer(exchange, statement)
        except EndpointError as error:
            return self._refusal(error, query_id, wire)
        except (web.HTTPException, asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            # A bug of ours must neither stop the collector nor show its insides.
            log.exception("query %s failed inside the endpoint", query_id)
            return self._refusal(
                EndpointError(UNKNOWN_EXCEPTION, "the endpoint failed; see its log"), query_id, wire
            )

    async def _record(self, who: str, text: str) -> None:
        """Whatever is said with the administrator's token, what is refused next included; not what is inserted."""
        try:
            await self._in_thread(lambda: self._trail.used(who, statement_of(text)))
        except AuditError as error:
            raise EndpointError(ACCESS_DENIED, f"nothing was run: {error.message}", 503) from error

    async def _kill(self, exchange: _Exchange, query_id: str) -> web.Response:
        # Not in the queries' own threads: all of them may be busy with what is to be ended.
        if not await asyncio.to_thread(self._running.kill, query_id, exchange.user):
            raise EndpointError(
                BAD_ARGUMENTS, f"no query {query_id!r} of {exchange.user.name} is running", 404
            )
        return web.Response(
            text=f"waiting\t{query_id}\t{exchange.user.name}\n",
            headers=self._headers(exchange.query_id, "TabSeparated"),
        )

    async def _answer(self, exchange: _Exchange, statement: Statement) -> web.StreamResponse:
        # aiohttp ends a body after this has returned: a client that has seen the end may use its session again.
        async with self._handle(exchange, statement) as handle:
            await self._in_thread(lambda: execute.prepare(handle, exchange.query, exchange.query_id))
            handle.set_progress_callback(exchange.progress)
            try:
                if execute.can_stream(exchange.query, statement):
                    return await self._stream(exchange, handle, statement)
                return await self._whole(exchange, handle, statement)
            finally:
                handle.set_progress_callback(None)

    @contextlib.asynccontextmanager
    async def _handle(self, exchange: _Exchange, statement: Statement) -> AsyncIterator[Any]:
        """The handle that a statement runs on: its session's, or a fresh one where there is no session to keep."""
        query, user = exchange.query, exchange.user
        # A session's handle keeps its role; checked table DDL needs no session.
        session_id = "" if statement.checked else query.transport.get("session_id")
        if session_id:
            session = await self._in_thread(
                lambda: self._sessions.take(
                    user,
                    f"{user.role}:{session_id}",
                    query.session_timeout_s,
                    must_exist=query.flag("session_check"),
                    make=statement.kind in _MAKES_SESSION,
                )
            )
            if session is not None:
                try:
                    undo = await self._in_thread(lambda: execute.remember(session.handle, query, statement))
                    try:
                        yield session.handle
                    finally:
                        await self._in_thread(lambda: execute.restore(session.handle, undo))
                finally:
                    self._sessions.give(session)
                return
        role = OWNER_ROLE if statement.checked else user.role
        handle = await self._in_thread(lambda: open_handle(self._engine, role))
        try:
            yield handle
        finally:
            await self._in_thread(handle.close)

    async def _whole(self, exchange: _Exchange, handle: Any, statement: Statement) -> web.StreamResponse:
        query, wire = exchange.query, exchange.wire
        growing = GrowingHeaders(exchange.request)
        try:
            answer = await self._while_connected(
                exchange, statement, growing, lambda: execute.run(handle, query, statement)
            )
            body, encoding = await self._in_thread(
                lambda: wire.pack(wire.blocks(answer.body, answer.format), _MIN_COMPRESSED_BYTES)
            )
        except EndpointError as error:
            if not growing.begun:
                raise
            # The status is sent; this header is how a client learns of it.
            growing.headers.update(self._headers(exchange.query_id, ""))
            growing.headers["X-ClickHouse-Exception-Code"] = str(error.code)
            await growing.prepare(exchange.request)
            await growing.write(_error_text(error))
            return growing
        headers = self._headers(exchange.query_id, answer.format)
        headers["X-ClickHouse-Summary"] = exchange.summary(answer.summary)
        if encoding:
            headers["Content-Encoding"] = encoding
        if not growing.begun:
            return web.Response(body=body, headers=headers)
        growing.headers.update(headers)
        await growing.prepare(exchange.request)
        await growing.write(body)
        return growing

    async def _stream(self, exchange: _Exchange, handle: Any, statement: Statement) -> web.StreamResponse:
        query, wire, request = exchange.query, exchange.wire, exchange.request
        form = statement.format or query.form
        source = execute.stream(handle, query, statement)
        pieces = (wire.blocks(piece, form, rows) for piece, rows in source)
        response = GrowingHeaders(request)
        packer = wire.packer()
        try:
            try:
                # The first piece decides whether this is an answer or an error with its own status.
                piece = await self._while_connected(exchange, statement, response, lambda: next(pieces, _END))
                failed = None
            except EndpointError as error:
                if not response.begun:
                    raise
                failed = error
            response.headers.update(self._headers(exchange.query_id, form))
            response.headers["X-ClickHouse-Summary"] = exchange.summary({})
            response.headers[TAG_HEADER] = wire.tag
            if wire.encoding:
                response.headers["Content-Encoding"] = wire.encoding
            if failed is not None:
                response.headers["X-ClickHouse-Exception-Code"] = str(failed.code)
            await response.prepare(request)
            try:
                if failed is not None:
                    raise failed
                while piece is not _END:
                    data = await self._in_thread(partial(packer.pack, piece))
                    for start in range(0, len(data), _WRITE_BYTES):
                        await response.write(data[start : start + _WRITE_BYTES])
                    piece = await self._while_connected(exchange, statement, None, lambda: next(pieces, _END))
            except EndpointError as error:
                # The status is sent; the tagged text and a cut body are what tell the client, as with ClickHouse.
                text = wire.late_error(error.text)
                await response.write(text if wire.framed else packer.pack(text))
                if request.transport is not None:
                    request.transport.close()
                return response
            if last := packer.finish():
                await response.write(last)
            return response
        finally:
            await self._in_thread(lambda: _close(source))

    async def _while_connected(
        self,
        exchange: _Exchange,
        statement: Statement,
        growing: GrowingHeaders | None,
        work: Callable[[], Any],
    ) -> Any:
        """Runs work in a thread; says how far it is, where that was asked, and ends a read that nobody waits for."""
        interval_s = exchange.query.progress_interval_s if growing is not None else None
        running = asyncio.ensure_future(self._in_thread(work))
        reported = time.monotonic()
        while True:
            done, _ = await asyncio.wait({running}, timeout=min(interval_s or _LOOK_S, _LOOK_S))
            if done:
                return running.result()
            transport = exchange.request.transport
            if transport is None or transport.is_closing():
                # Again and again: while it waits for its turn the engine does not know of it.
                if statement.reads:
                    await asyncio.to_thread(self._running.end, exchange.query_id)
                continue
            if interval_s and growing is not None and time.monotonic() - reported >= interval_s:
                reported = time.monotonic()
                growing.report(exchange.progress.text)

    def _headers(self, query_id: str, form: str) -> dict[str, str]:
        headers = {
            "X-ClickHouse-Server-Display-Name": "spanloop",
            "X-ClickHouse-Query-Id": _CONTROL.sub("?", query_id),
            "X-ClickHouse-Timezone": self._timezone,
        }
        if form:
            headers["X-ClickHouse-Format"] = form
        return headers

    def _refusal(self, error: EndpointError, query_id: str, wire: Wire | None = None) -> web.Response:
        headers = self._headers(query_id, "")
        headers["X-ClickHouse-Exception-Code"] = str(error.code)
        if error.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        # A client that asked for compressed blocks reads its errors from them too.
        body = compress_frames(_error_text(error)) if wire is not None and wire.framed else _error_text(error)
        return web.Response(body=body, status=error.status, headers=headers)

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


def _close(pieces: Iterator[Any]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()
