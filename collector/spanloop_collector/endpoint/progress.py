"""`X-ClickHouse-Progress`: headers that grow while a query runs, before the rest of the answer is known."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

HEADER = "X-ClickHouse-Progress"
_COUNTS = (
    "read_rows",
    "read_bytes",
    "total_rows_to_read",
    "written_rows",
    "written_bytes",
    "result_rows",
    "result_bytes",
    "elapsed_ns",
)


class Progress:
    """The newest numbers of a running query; the engine calls it from its own thread."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def __call__(self, counts: Any) -> None:
        # One assignment: whoever reads sees the old numbers or the new ones.
        self.counts = {name: int(counts[name]) for name in _COUNTS if name in counts}

    @property
    def text(self) -> str:
        """The header's value: numbers as strings, as ClickHouse writes them."""
        return json.dumps({name: str(self.counts.get(name, 0)) for name in _COUNTS}, separators=(",", ":"))


class GrowingHeaders(web.StreamResponse):
    """An answer whose first headers leave before the others are known.

    `report` may be called any number of times; after that, `prepare` and `write` are as ever, but the status is decided.
    """

    def __init__(self, request: web.Request) -> None:
        super().__init__()
        self._request = request
        self._lines = 0
        self._last = ""

    @property
    def begun(self) -> bool:
        """Whether something was sent."""
        return self._lines > 0

    def report(self, text: str) -> None:
        """Sends one progress header; the last one waits, since it goes out with the other headers."""
        transport = self._request.transport
        if transport is None:
            return
        version = self._request.version
        head = self._last if self._lines else f"HTTP/{version[0]}.{version[1]} 200 OK"
        transport.write(f"{head}\r\n".encode("ascii"))
        self._last = f"{HEADER}: {text}"
        self._lines += 1

    async def _write_headers(self) -> None:
        if not self.begun:
            await super()._write_headers()
            return
        # aiohttp writes a first line and then the headers: the status line is gone already, so the last header is first.
        writer = self._payload_writer
        assert writer is not None
        await writer.write_headers(self._last, self._headers)
        writer.send_headers()
