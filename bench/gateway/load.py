"""Asks over connections that stay open, and notes how long each answer took: `python -m bench.gateway.load` is one block of it.

A process of its own, so that neither the proxies nor the upstream share an interpreter with it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

PROMPT = "What did the span say? " * 90  # 2 KB, as an agent's turn has
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Block:
    """What a block of requests took.

    Args:
        latencies_s: from the request's first byte to the answer's last one.
        first_s: to the first event that has data; as long as the whole for an answer that is no stream.
        wall_s: of the block.
        failed: answers that were not 200, or broken.
    """

    latencies_s: list[float]
    first_s: list[float]
    wall_s: float
    failed: int


def request(url: str, key: str, stream: bool) -> bytes:
    """One call, as bytes."""
    parts = urlsplit(url)
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "stream": stream}
    ).encode()
    head = (
        f"POST {parts.path}/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _client(url: str, asked: bytes, turns: int, found: list[tuple[float, float]]) -> int:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 22)
    failed = 0
    for _ in range(turns):
        began = time.perf_counter()
        writer.write(asked)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        first = 0.0
        if b"transfer-encoding: chunked" in head:
            tail = b""
            while True:
                piece = await reader.read(1 << 16)
                tail += piece
                if not first and b"data:" in tail:
                    first = time.perf_counter()
                if tail.endswith(b"0\r\n\r\n") or not piece:
                    break
            whole = b"[DONE]" in tail or b'"finish_reason"' in tail
        else:
            size = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            whole = b'"finish_reason"' in await reader.readexactly(size)
        ended = time.perf_counter()
        failed += not (whole and head.startswith(b"http/1.1 200"))
        found.append((ended - began, (first or ended) - began))
    writer.close()
    return failed


async def _block(url: str, key: str, stream: bool, connections: int, requests: int) -> Block:
    asked = request(url, key, stream)
    found: list[tuple[float, float]] = []
    began = time.perf_counter()
    turns = max(1, requests // connections)
    async with asyncio.timeout(_TIMEOUT_S):
        failed = sum(await asyncio.gather(*(_client(url, asked, turns, found) for _ in range(connections))))
    wall_s = time.perf_counter() - began
    return Block([whole for whole, _ in found], [first for _, first in found], wall_s, failed)


def main() -> None:
    """Blocks as they are asked for on standard input, one JSON array a line: url, key, stream, connections, requests."""
    for line in sys.stdin:
        print(json.dumps(vars(asyncio.run(_block(*json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
