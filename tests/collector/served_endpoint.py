"""The endpoint over an engine in this process, in a thread of its own, and the plainest of clients."""

import asyncio
import base64
import contextlib
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import clickhouse_connect
from aiohttp import web
from tests.helpers.stores import laid

from spanloop_collector.endpoint import Credentials, make_endpoint
from spanloop_store import Engine


@dataclass
class Served:
    port: int
    credentials: Credentials
    engine: Engine
    folder: Path

    def client(self, reader: bool = False, **options: Any) -> Any:
        user = self.credentials.reader if reader else self.credentials.writer
        return clickhouse_connect.get_client(
            host="127.0.0.1", port=self.port, username=user.name, password=user.password, **options
        )

    async def async_client(self, reader: bool = False, **options: Any) -> Any:
        user = self.credentials.reader if reader else self.credentials.writer
        return await clickhouse_connect.get_async_client(
            host="127.0.0.1", port=self.port, username=user.name, password=user.password, **options
        )

    def send(
        self,
        sql: bytes | str = b"",
        method: str = "POST",
        headers: dict[str, str] | None = None,
        path: str | None = None,
        **parameters: str,
    ) -> tuple[int, dict[str, str], bytes]:
        user = self.credentials.writer
        token = base64.b64encode(f"{user.name}:{user.password}".encode()).decode()
        given = {"Authorization": f"Basic {token}"} if headers is None else headers
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path or f"/?{urlencode(parameters)}", body=sql, headers=given)
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()
        finally:
            connection.close()

    def auth(self, reader: bool = False, **more: str) -> dict[str, str]:
        user = self.credentials.reader if reader else self.credentials.writer
        return {"X-ClickHouse-User": user.name, "X-ClickHouse-Key": user.password, **more}


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """An endpoint on a fresh store, stopped and closed in the end."""
    with Engine(laid(folder / "s")) as engine, serving_engine(engine, folder) as served:
        yield served


@contextlib.contextmanager
def serving_engine(engine: Engine, folder: Path) -> Iterator[Served]:
    """An endpoint on an engine that stays open."""
    credentials = Credentials.generate()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[web.AppRunner, int]:
        # As capture runs it: the handlers unpack bodies themselves.
        runner = web.AppRunner(make_endpoint(engine, credentials), auto_decompress=False)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield Served(port, credentials, engine, folder)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
