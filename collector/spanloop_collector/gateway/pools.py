"""A pool of back ends that serve the same models: who gets the next call, who waits, who is looked after."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterator
from typing import Final

import aiohttp

from spanloop_collector.gateway.backends import Backend
from spanloop_collector.gateway.errors import overloaded

_log = logging.getLogger(__name__)

# How often back ends are asked whether they are alive: those that are out, and all of a pool that has several.
PROBE_S: Final = 2.0
PROBE_WELL_S: Final = 10.0


class Pool:
    """Back ends under one name; used from one event loop.

    Args:
        name: what `--upstream NAME=URL` said; "": the default.
        backends: at least one.
    """

    def __init__(self, name: str, backends: list[Backend]) -> None:
        self.name = name
        self.backends = backends
        self._turn = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def label(self) -> str:
        """Name for messages."""
        return self.name or "default"

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Backend]:
        return iter(self.backends)

    def others(self, tried: Collection[Backend]) -> bool:
        """Whether a back end that is well has not been tried."""
        return any(backend.well and backend not in tried for backend in self.backends)

    async def take(
        self, tried: Collection[Backend], max_in_flight: int, max_waiting: int, max_wait_s: float
    ) -> Backend:
        """The least busy back end, in whose `in_flight` the caller now counts; give it back with `release`.

        Args:
            tried: back ends that failed this call already; taken again only where there is no other.
            max_in_flight: of one back end; beyond it calls wait.
            max_waiting: calls that may wait; one more is refused.
            max_wait_s: how long one waits.

        Raises:
            ClientError: 503 with a time to come back.
        """
        # Whoever waits comes first; without anybody, one look is all that a call costs.
        found = None if self._waiting else self._least_busy(tried, max_in_flight)
        if found is None:
            found = await self._wait(tried, max_in_flight, max_waiting, max_wait_s)
        found.in_flight += 1
        return found

    def release(self, backend: Backend) -> None:
        """One call less."""
        backend.in_flight -= 1
        self._wake()

    def _least_busy(self, tried: Collection[Backend], max_in_flight: int) -> Backend | None:
        if len(self.backends) == 1:
            only = self.backends[0]
            return only if only.in_flight < max_in_flight else None
        self._turn += 1
        size = len(self.backends)
        in_turn = [self.backends[(self._turn + i) % size] for i in range(size)]
        well = [backend for backend in in_turn if backend.well]
        for group in ([backend for backend in well if backend not in tried], well):
            if group:
                return min((b for b in group if b.in_flight < max_in_flight), key=_busy, default=None)
        # All are out: the one that comes back first may be better than its last answer.
        by_hope = sorted(in_turn, key=lambda backend: (backend in tried, backend.out_until))
        return next((backend for backend in by_hope if backend.in_flight < max_in_flight), None)

    async def _wait(
        self, tried: Collection[Backend], max_in_flight: int, max_waiting: int, max_wait_s: float
    ) -> Backend:
        if len(self._waiting) >= max_waiting:
            raise overloaded(self.label, f"{len(self._waiting)} calls wait already")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max_wait_s
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    await turn
                found = self._least_busy(tried, max_in_flight)
                if found is not None:
                    return found
                turn = loop.create_future()
                self._waiting.appendleft(turn)
        except TimeoutError:
            raise overloaded(self.label, f"none was free for {max_wait_s:g} s") from None
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and not turn.cancelled():
                # Woken and gone, or served: there may be room for the next one.
                loop.call_soon(self._wake)

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def look_after(self, session: aiohttp.ClientSession) -> None:
        """Ask back ends whether they are alive, for ever: one that died gets no calls, one that is back gets them at once."""
        loop = asyncio.get_running_loop()
        next_round = loop.time() + PROBE_WELL_S
        while True:
            await asyncio.sleep(PROBE_S)
            full = len(self.backends) > 1 and loop.time() >= next_round
            if full:
                next_round = loop.time() + PROBE_WELL_S
            asked = [b for b in self.backends if (full if b.well else not b.said_so)]
            for backend, alive in zip(
                asked, await asyncio.gather(*(backend.alive(session) for backend in asked)), strict=True
            ):
                if alive:
                    backend.answered()
                    self._wake()
                elif backend.well:
                    backend.failed("it does not answer GET /models")


def _busy(backend: Backend) -> int:
    return backend.in_flight
