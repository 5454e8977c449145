"""Pause with drain: for back ends that share a GPU with training. Calls in flight end, new ones wait."""

from __future__ import annotations

import asyncio
from types import TracebackType

from spanloop_collector.gateway.errors import paused


class Gate:
    """Every call to a back end passes through it; used from one event loop.

    Args:
        max_waiting: calls that may wait for the end of a pause.
        max_wait_s: how long one of them waits.
    """

    def __init__(self, max_waiting: int, max_wait_s: float) -> None:
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.in_flight = 0
        self.waiting = 0

    @property
    def state(self) -> str:
        """`running`; `pausing` while calls are still in flight; `paused`."""
        if self._open.is_set():
            return "running"
        return "pausing" if self.in_flight else "paused"

    def pause(self) -> None:
        """No call begins from now on."""
        self._open.clear()

    async def drained(self) -> None:
        """Waits until no call is in flight, or the pause is over."""
        while self.in_flight and not self._open.is_set():
            await self._empty.wait()

    def resume(self) -> None:
        """Calls begin again, those that wait first."""
        self._open.set()
        self._empty.set()  # whoever waits for the drain looks again
        if self.in_flight:
            self._empty.clear()

    async def __aenter__(self) -> None:
        """One call begins.

        Raises:
            ClientError: 503, it is paused and the call cannot wait.
        """
        if not self._open.is_set():
            await self._wait()
        self.in_flight += 1
        self._empty.clear()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It ended, however."""
        self.in_flight -= 1
        if not self.in_flight:
            self._empty.set()

    async def _wait(self) -> None:
        if self.waiting >= self._max_waiting:
            raise paused(self._max_wait_s, self.waiting)
        self.waiting += 1
        try:
            async with asyncio.timeout(self._max_wait_s):
                while not self._open.is_set():
                    await self._open.wait()
        except TimeoutError:
            raise paused(self._max_wait_s, self.waiting) from None
        finally:
            self.waiting -= 1
