"""Connections that say nothing or too little: others are served, and they are closed after a while."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from aiohttp import web
from tests.helpers.openai_stub import openai_stub
from tests.helpers.otlp_receiver import Receiver, otlp_receiver

from spanloop_collector.gateway.app import Gateway, Settings
from spanloop_collector.gateway.connections import allow_many_files, close_quiet_ones
from spanloop_collector.gateway.spans import CallTracer
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import Snapshot, Versions

BODY = b'{"model":"m","messages":[]}'
CALL = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as running:
        yield running


def test_a_thousand_idle_and_slow_connections_keep_nobody_out(receiver: Receiver) -> None:
    allow_many_files()

    async def go(url: str) -> None:
        tracer = CallTracer.to_collector(receiver.url, None)
        gateway = Gateway(Settings(Upstreams.parse([url])), Versions(Snapshot), tracer)
        runner = web.AppRunner(
            gateway.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        port = runner.addresses[0][1]

        async def call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
            writer.write(CALL)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            return str(json.loads(await reader.readexactly(length))["model"])

        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(1000)]
        for _, writer in opened[:500]:
            writer.write(CALL[:40])  # headers that never end
        kept = await asyncio.open_connection("127.0.0.1", port)
        assert await call(*kept) == "m"
        assert runner.server is not None
        assert len(runner.server.connections) == 1001
        sweep = asyncio.create_task(close_quiet_ones(runner.server, gateway.busy, quiet_s=0.05, look_s=0.01))
        for reader, writer in opened:
            assert await reader.read() == b""
            writer.close()
        sweep.cancel()
        # Whoever comes now is served as before.
        again = await asyncio.open_connection("127.0.0.1", port)
        assert await call(*again) == "m"
        for _, writer in (kept, again):
            writer.close()
        await runner.cleanup()
        await asyncio.to_thread(tracer.shutdown)

    with openai_stub() as stub:
        asyncio.run(go(stub.url))


def test_a_connection_with_a_call_in_work_is_left_alone(receiver: Receiver) -> None:
    release = asyncio.Event()

    async def slow(_request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response({"id": "x", "model": "m", "choices": []})

    async def go() -> None:
        back = web.Application()
        back.router.add_route("*", "/{path:.*}", slow)
        behind = web.AppRunner(back, access_log=None, shutdown_timeout=1)
        await behind.setup()
        await web.TCPSite(behind, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{behind.addresses[0][1]}/v1"
        upstreams = Upstreams.parse([url])
        for pool in upstreams:
            for backend in pool:
                backend.owner = ""  # it is not asked for its models, which would wait, too
                backend.checked = asyncio.get_running_loop().time()
        tracer = CallTracer.to_collector(receiver.url, None)
        gateway = Gateway(Settings(upstreams), Versions(Snapshot), tracer)
        runner = web.AppRunner(
            gateway.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
        idle, other = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
        writer.write(CALL)
        assert runner.server is not None
        sweep = asyncio.create_task(close_quiet_ones(runner.server, gateway.busy, quiet_s=0.05, look_s=0.01))
        assert await idle.read() == b""  # the limit is over, and the other one still waits
        release.set()
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        sweep.cancel()
        for each in (writer, other):
            each.close()
        await runner.cleanup()
        await behind.cleanup()
        await asyncio.to_thread(tracer.shutdown)

    asyncio.run(go())
