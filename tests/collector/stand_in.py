"""A stand-in for a ClickHouse server: the embedded engine's endpoint, and what chDB's own inserts cannot do.

chDB takes no data for an INSERT … SELECT … FROM input(…). Here the data goes into a file, and the same statement reads that.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from aiohttp import web
from tests.helpers.stores import laid

from spanloop_collector.addresses import reserve
from spanloop_collector.endpoint import Credentials, make_endpoint
from spanloop_store import Engine

_PATIENCE_S = 60
_INPUT = re.compile(r"\binput\((?P<structure>'(?:[^'\\]|\\.)*')\)")
_FORMAT = re.compile(r"\sFORMAT\s+(?P<format>\w+)\s*$")
# The statement stands in the URL, or before its data in the body.
_STATEMENT = re.compile(rb".*?\binput\(.*?\sFORMAT\s+\w+\n", re.DOTALL)


@dataclass
class Server:
    url: str  # clickhouse://…
    engine: Engine

    def query(self, sql: str) -> list[Any]:
        return [tuple(row) for row in self.engine.client().query(sql).result_rows]


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Give it a working directory of its own: the engine caches schemas that come as text in there."""
    credentials = Credentials.generate()
    numbers = count()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(_PATIENCE_S)

    with Engine(laid(folder / "server")) as engine:

        @web.middleware
        async def with_input(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            sql, data = request.query.get("query", ""), b""
            if request.method == "POST":
                data = await request.read()
                if not sql and (statement := _STATEMENT.match(data)):
                    sql, data = statement[0].decode(), data[statement.end() :]
            if not _INPUT.search(sql):
                return await handler(request)
            form = _FORMAT.search(sql)
            assert form is not None, sql
            path = folder / f"data-{next(numbers)}"
            path.write_bytes(data)
            source = f"file('{path}', '{form['format']}', \\g<structure>)"
            local = _INPUT.sub(source, _FORMAT.sub("", sql))
            try:
                await asyncio.to_thread(engine.client().command, local)
            except Exception as error:
                return web.Response(status=500, text=str(error))
            return web.Response(headers={"X-ClickHouse-Summary": "{}"})

        app = make_endpoint(engine, credentials)
        app.middlewares.append(with_input)
        runner = web.AppRunner(app, access_log=None, auto_decompress=False, max_line_size=1 << 20)
        listener = reserve("127.0.0.1", 0, "")
        run(runner.setup())
        run(web.SockSite(runner, listener).start())
        user = credentials.writer
        host, port = listener.getsockname()
        try:
            yield Server(f"clickhouse://{user.name}:{user.password}@{host}:{port}/default", engine)
        finally:
            run(runner.cleanup())
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_PATIENCE_S)
