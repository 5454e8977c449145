"""Items that the store would delete as soon as it has them: asked for again every minute, since its retention may be changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping

from spanloop_store.expiry import Expiry
from spanloop_store.otlp.check import Checked
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

_EVERY_S = 60.0
_LAST_ASK_S = 2.0  # at the end, how long to wait for an answer that is on its way


class Expiring:
    """What the store's retention deletes at once, as it was when it was last asked.

    Args:
        ask: asks the store; called in a thread, with no client of another one.
    """

    def __init__(self, ask: Callable[[], Mapping[Signal, Expiry]]) -> None:
        self._ask = ask
        self._found: Mapping[Signal, Expiry] = {}
        self._failure = ""
        self._said = False

    def of(self, signal: Signal) -> Expiry | None:
        """The times of this signal's items that are deleted at once; None: none are."""
        return self._found.get(signal)

    def ask(self) -> None:
        """Asks now. A store that does not answer leaves what was known."""
        try:
            self._found, self._failure = self._ask(), ""
        except Exception as error:
            # Whatever it was, requests go on; the writer says it too if the store is away.
            if not self._failure:
                log.warning("how long the store keeps rows is not known now: %s", error)
            self._failure = str(error)

    def said(self, signal: Signal, checked: Checked) -> None:
        """Says in the log that items were left out, the first time."""
        if checked.expired and not self._said:
            self._said = True
            log.warning(
                "%d items of a %s request are refused: %s. Said once; spanloop_items_expired_total counts them",
                checked.expired,
                signal.value,
                checked.reason,
            )

    @contextlib.asynccontextmanager
    async def kept_up(self) -> AsyncIterator[None]:
        """Asks, and asks again every minute while the context lasts."""
        await asyncio.to_thread(self.ask)
        ended = asyncio.Event()

        async def ask_again() -> None:
            while True:
                try:
                    async with asyncio.timeout(_EVERY_S):
                        await ended.wait()
                        return
                except TimeoutError:
                    await asyncio.to_thread(self.ask)

        asking = asyncio.create_task(ask_again())
        try:
            yield
        finally:
            # Not cancelled: an engine must not be closed under a query.
            ended.set()
            await asyncio.wait({asking}, timeout=_LAST_ASK_S)
