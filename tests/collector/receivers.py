"""Both receivers and a log, in this process and without an engine: what senders see needs no store."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from spanloop_collector import grpc_receiver
from spanloop_collector.addresses import reserve
from spanloop_collector.expiring import Expiring
from spanloop_collector.folders import Folders, Logs, recovered
from spanloop_collector.http_receiver import MAX_BODY_BYTES, make_receiver
from spanloop_collector.intake import Intake
from spanloop_collector.space import Space
from spanloop_collector.statistics import Statistics
from spanloop_collector.writer import Writer
from spanloop_store.errors import StoreUnavailable
from spanloop_store.otlp.frames import frames
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal

PATIENCE_S = 60


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass
class Receivers:
    http: str  # base URL
    grpc: str  # host:port
    intake: Intake
    logs: Logs
    loop: asyncio.AbstractEventLoop

    @property
    def statistics(self) -> Statistics:
        return self.intake.statistics

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def logged(self, signal: Signal = Signal.TRACES) -> list[bytes]:
        """The requests in the log."""
        found = []
        for path in sorted(self.logs.folders.log.glob(f"{signal.value}-*.otlp")):
            found += [bytes(item.payload) for item in frames(path.read_bytes())]
        return found

    def post(
        self,
        path: str = "/v1/traces",
        body: bytes | Iterator[bytes] = b"",
        kind: str = "application/x-protobuf",
        *,
        method: str = "POST",
        **headers: str,
    ) -> Answer:
        address = urlsplit(self.http)
        connection = http.client.HTTPConnection(address.netloc, timeout=PATIENCE_S)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            named |= {"Content-Type": kind} if kind else {}
            chunked = "Transfer-Encoding" in named
            connection.request(method, path, body, named, encode_chunked=chunked)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()


def no_store() -> SegmentInserter:
    raise StoreUnavailable("there is none here", "")


@contextlib.contextmanager
def receivers(
    folder: Path,
    *,
    token: str | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    expiring: Expiring | None = None,
    **space: int,
) -> Iterator[Receivers]:
    """Both, listening on free ports of loopback."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE_S)

    async def start() -> tuple[Receivers, web.AppRunner, Any]:
        logs = recovered(Folders(folder / "log", folder / "quarantine"))
        statistics = Statistics()
        writer = Writer(logs.segments, no_store, statistics)
        intake = Intake(logs.segments, writer, statistics, logs.repeats, Space([folder], **space), expiring)
        app = make_receiver(
            intake, quarantine=logs.folders.quarantine, token=token, max_body_bytes=max_body_bytes
        )
        runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await runner.setup()
        listener = reserve("127.0.0.1", 0, "")
        await web.SockSite(runner, listener).start()
        server, port = await grpc_receiver.start_server(
            intake, "127.0.0.1", 0, token=token, max_body_bytes=max_body_bytes
        )
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return Receivers(address, f"127.0.0.1:{port}", intake, logs, loop), runner, server

    (folder / "log").mkdir(exist_ok=True)
    found, runner, server = run(start())
    try:
        yield found
    finally:
        run(server.stop(None))
        run(runner.cleanup())
        for segments in found.logs.segments.values():
            segments.close()
        found.logs.repeats.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()
