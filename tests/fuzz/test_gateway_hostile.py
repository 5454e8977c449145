"""Many clients, and clients that mean no good: what is one's own reaches nobody else, and who asks properly is answered."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from bench.gateway.process import gateway, serve

CLIENTS, ROUNDS = 50, 6
IDLE, SLOW = 1000, 100
# Not how fast it is: whether it is served at all, on a machine that does ten other things.
LIVENESS_S = 30.0
CHAT = "/v1/chat/completions"


def _echo() -> web.Application:
    """An upstream that says to everyone what it heard of him: body, headers, and that again in the answer's headers."""

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        heard = {"body": body, "headers": dict(request.headers), "model": body["model"], "id": body["marker"]}
        headers = {"x-echo": request.headers.get("x-marker", ""), "set-cookie": f"session={body['marker']}"}
        choice = {"index": 0, "delta": {}, "message": {"content": body["marker"]}, "finish_reason": "stop"}
        if body.get("status"):
            return web.json_response(
                {"error": {"message": body["marker"]}}, status=body["status"], headers=headers
            )
        if not body.get("stream"):
            return web.json_response({**heard, "choices": [choice]}, headers=headers)
        response = web.StreamResponse(headers={**headers, "content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(8):
            event = {**heard, "number": number, "choices": [{**choice, "token_ids": [number]}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(0)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "owned_by": "vllm"}]})

    app = web.Application(client_max_size=1 << 30)
    app.router.add_get("/v1/models", models)
    app.router.add_post(CHAT, chat)
    return app


@contextmanager
def _gateway() -> Iterator[str]:
    with (
        serve(_echo()) as upstream,
        gateway(
            *(
                "--upstream",
                f"{upstream}/v1",
                "--otlp",
                f"{upstream}/none",
                "--store",
                "chdb:///nowhere/store",
            )
        ) as running,
    ):
        yield running.url


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with _gateway() as url:
        yield url


def test_nothing_of_one_client_reaches_another(url: str) -> None:
    async def client(session: aiohttp.ClientSession, number: int) -> None:
        for turn in range(ROUNDS):
            marker = f"marker-{number:03}-{turn}-"
            kind = ("whole", "stream", "cut", "error")[(number + turn) % 4]
            body: dict[str, Any] = {"model": marker, "marker": marker, "messages": [], "secret": marker * 20}
            body |= {"stream": True} if kind in ("stream", "cut") else {}
            body |= {"status": 418} if kind == "error" else {}
            headers = {"x-marker": marker, "authorization": f"Bearer {marker}", "cookie": f"c={marker}"}
            async with session.post(url + CHAT, json=body, headers=headers) as answer:
                heads = " ".join(f"{name}: {value}" for name, value in answer.headers.items())
                if kind == "cut":  # goes away in the middle: what is left must not come to the next one
                    text = (await answer.content.readany()).decode()
                    answer.close()
                else:
                    text = (await answer.read()).decode()
            assert answer.headers["x-echo"] == marker
            assert marker in text
            assert set(re.findall(r"marker-\d{3}-\d-", heads + text)) == {marker}

    async def all_of_them() -> None:
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            await asyncio.gather(*(client(session, number) for number in range(CLIENTS)))

    asyncio.run(all_of_them())


@asynccontextmanager
async def _connections(url: str, count: int, begin: bytes) -> AsyncIterator[list[socket.socket]]:
    """Connections that have sent `begin` and nothing more."""
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            each = socket.socket()
            each.setblocking(False)
            opened.append(each)
            await loop.sock_connect(each, (host, int(port)))
            if begin:
                await loop.sock_sendall(each, begin)
        yield opened
    finally:
        for each in opened:
            each.close()


async def _proper(url: str, calls: int = 5) -> None:
    """Somebody who asks as one should, on new connections, and is answered."""
    async with asyncio.timeout(LIVENESS_S):
        for number in range(calls):
            async with aiohttp.ClientSession() as session:
                body = {"model": "m", "marker": f"proper-{number}", "stream": bool(number % 2)}
                async with session.post(url + CHAT, json=body) as answer:
                    assert answer.status == 200
                    assert f"proper-{number}" in await answer.text()


def _head(length: str) -> bytes:
    return f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{length}\r\n".encode()


BEGINNINGS = {
    "idle": (IDLE, b""),
    "half-a-request-line": (SLOW, b"POST /v1/ch"),
    "headers-without-end": (SLOW, f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nX-A: b\r\n".encode()),
    "body-that-does-not-come": (SLOW, _head("Content-Length: 1000\r\n") + b'{"model": "'),
    "chunks-that-do-not-end": (SLOW, _head("Transfer-Encoding: chunked\r\n\r\n")[:-2] + b'5\r\n{"mod\r\n'),
    "large-body-that-does-not-come": (SLOW, _head("Content-Length: 60000000\r\n") + b'{"model": "'),
    "expecting": (SLOW, _head("Content-Length: 1000\r\nExpect: 100-continue\r\n")),
    "another-protocol": (SLOW, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64),
}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_others_are_served_beside_connections_that_hang(url: str, kind: str) -> None:
    count, begin = BEGINNINGS[kind]

    async def both() -> None:
        async with _connections(url, count, begin) as opened:
            await _proper(url)
            if begin and kind != "another-protocol":  # slow-loris: one byte more, now and then
                for each in opened:
                    with_more = b"a"
                    try:
                        each.send(with_more)
                    except OSError:
                        continue
            await _proper(url)

    asyncio.run(both())


def test_huge_bodies_are_refused_and_others_are_served(url: str) -> None:
    async def huge(length: str, pieces: int) -> bytes:
        """What is answered to a body that goes on and on; b"" where the connection was closed."""
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(_head(length))
            piece = b"[" * (1 << 20)
            for _ in range(pieces):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if "chunked" in length else piece)
                await writer.drain()
            return await reader.read(4096)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def all_of_them() -> None:
        async with asyncio.timeout(4 * LIVENESS_S):
            answers, _ = await asyncio.gather(
                asyncio.gather(
                    huge("Content-Length: 99999999999\r\n", 2),
                    huge("Content-Length: 99999999999999999999999\r\n", 2),
                    huge("Transfer-Encoding: chunked\r\n", 70),
                ),
                _proper(url, 10),
            )
        for answer in answers:
            assert answer == b"" or answer.split()[1] in (b"400", b"413"), answer
        assert any(b" 413 " in answer for answer in answers)
        await _proper(url)

    asyncio.run(all_of_them())


def test_a_body_that_unpacks_to_much_more(url: str) -> None:
    """A hundred kilobytes that say they are a hundred megabytes."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(packer.compress(b" " * (1 << 20)) for _ in range(100)), packer.flush()])

    async def both() -> None:
        headers = {"content-encoding": "gzip", "content-type": "application/json"}
        async with asyncio.timeout(LIVENESS_S), aiohttp.ClientSession() as session:
            async with session.post(url + CHAT, data=bomb, headers=headers) as answer:
                assert answer.status in (400, 413)
            await _proper(url)

    asyncio.run(both())
