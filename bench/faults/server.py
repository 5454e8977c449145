"""A stand-in for a ClickHouse server, since none can be installed from PyPI: its HTTP interface over an engine with every right.

`python -m bench.faults.server FOLDER` prints its port. For the collector it is a server by URL: bytes travel as the body of
the INSERT, and no file is shared. What chDB's streaming insert does not take, `input()` in an INSERT … SELECT, is given
to it as a file; the SQL is otherwise the collector's own.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from spanloop_store import OWNER_ROLE, Engine

_TRANSPORT = frozenset({"query", "database", "default_format", "query_id", "session_id", "wait_end_of_query"})
_INPUT = re.compile(r"\binput\((?P<structure>'(?:[^'\\]|\\.)*')\)")
_FORMAT = re.compile(r"\bFORMAT\s+(?P<format>\w+)\s*$")
_HEAD = re.compile(rb"\s*(?P<sql>INSERT\b.*?\bFORMAT\s+\w+)[ \t]*\n", re.DOTALL | re.IGNORECASE)


class _Server:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(4)

    async def query(self, request: web.Request) -> web.Response:
        if not (request.query.get("query") or request.can_read_body):
            return web.Response(text="Ok.\n")
        body = await request.read()
        try:
            answer = await asyncio.get_running_loop().run_in_executor(
                self._threads, partial(self._run, dict(request.query), body)
            )
        except Exception as error:  # the engine's, as a server answers it
            text = str(error)
            code = match[1] if (match := re.search(r"Code: (\d+)", text)) else "1002"
            return web.Response(
                status=500,
                text=text[max(text.find("Code:"), 0) :],
                headers={"X-ClickHouse-Exception-Code": code},
            )
        return web.Response(body=answer, headers={"X-ClickHouse-Summary": "{}"})

    def _run(self, given: dict[str, str], body: bytes) -> bytes:
        text = given.pop("query", "").encode()
        text = text + b"\n" + body if text and body else text or body
        # The SQL of an INSERT is a head of the body; what follows its FORMAT is data.
        match = _HEAD.match(text)
        sql, body = (match["sql"].decode(), text[match.end() :]) if match else (text.decode(), b"")
        parameters = {
            name.removeprefix("param_"): value for name, value in given.items() if name.startswith("param_")
        }
        handle = self._engine.handle(OWNER_ROLE)
        try:
            for name, value in given.items():
                if name not in _TRANSPORT and not name.startswith("param_"):
                    handle.query(f"SET {name} = '{value}'", "Null")
            if body:
                return self._insert(handle, sql, body)
            form = given.get("default_format", "TabSeparated")
            return bytes(handle.query(sql, form, params=parameters).bytes() or b"")
        finally:
            handle.close()

    def _insert(self, handle: Any, sql: str, body: bytes) -> bytes:
        match = _FORMAT.search(sql)
        if match is None:
            raise ValueError("Code: 62. an INSERT with data needs a FORMAT clause at its end")
        statement, form = sql[: match.start()], match["format"]
        source = _INPUT.search(statement)
        if source is None:
            inserter = handle.send_insert(statement, form)
            inserter.append(body)
            inserter.finish()
            return b""
        with tempfile.NamedTemporaryFile(dir=self._engine.url.folder) as file:
            file.write(body)
            file.flush()
            replaced = f"file('{file.name}', '{form}', {source['structure']})"
            handle.query(statement[: source.start()] + replaced + statement[source.end() :], "Null")
        return b""


async def serve(folder: Path) -> None:
    """Until it is killed."""
    with Engine(f"chdb://{folder}") as engine:
        app = web.Application(client_max_size=1 << 30)
        server = _Server(engine)
        app.router.add_route("*", "/", server.query)
        app.router.add_get("/ping", server.query)
        runner = web.AppRunner(app, access_log=None, max_line_size=1 << 20)  # as a server: http_max_uri_size
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
