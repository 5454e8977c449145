"""Connections that say nothing: closed after a while, so that many of them, or slow ones, keep nobody out."""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import Final

from aiohttp import web

_log = logging.getLogger(__name__)

# A client library keeps an idle connection for some seconds (httpx: 5); a request's headers come in one.
QUIET_S: Final = 75.0
_LOOK_S: Final = 5.0
_WANTED_FILES: Final = 65_536


def allow_many_files() -> None:
    """As many open connections as the system lets this process have: the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        _log.warning("only %d connections at a time: the limit cannot be raised (%s)", soft, error)


class Busy:
    """Which connections have a request in work; a middleware keeps it."""

    def __init__(self) -> None:
        self._busy: set[asyncio.BaseTransport] = set()

    def begin(self, request: web.Request) -> asyncio.BaseTransport | None:
        """A request begins; give what this returns to `end`."""
        transport = request.transport
        if transport is not None:
            self._busy.add(transport)
        return transport

    def end(self, transport: asyncio.BaseTransport | None) -> None:
        """It is over."""
        if transport is not None:
            self._busy.discard(transport)

    def __contains__(self, transport: asyncio.BaseTransport) -> bool:
        return transport in self._busy


async def close_quiet_ones(
    server: web.Server, busy: Busy, quiet_s: float = QUIET_S, look_s: float = _LOOK_S
) -> None:
    """Close connections on which no request was in work for `quiet_s`, for ever.

    aiohttp has no limit on the time that a request's headers take: one byte now and then would hold a connection for ever.
    """
    loop = asyncio.get_running_loop()
    quiet_since: dict[asyncio.BaseTransport, float] = {}
    while True:
        await asyncio.sleep(look_s)
        now = loop.time()
        transports = [handler.transport for handler in server.connections]
        seen = {transport for transport in transports if transport is not None and transport not in busy}
        quiet_since = {transport: quiet_since.get(transport, now) for transport in seen}
        late = [transport for transport, since in quiet_since.items() if now - since > quiet_s]
        for transport in late:
            transport.close()
        if late:
            _log.debug("closed %d quiet connections", len(late))
