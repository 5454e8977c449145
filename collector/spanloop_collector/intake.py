"""What both receivers do with a request: check it, log it with one sync for all that wait, then acknowledge it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from spanloop_collector.errors import Busy
from spanloop_collector.statistics import Statistics
from spanloop_collector.writer import Writer
from spanloop_exporter.segments import SegmentLog
from spanloop_store.otlp.check import Checked, check_json, check_protobuf
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

MAX_BACKLOG_BYTES = 4 << 30  # of segments that the store has not taken; beyond it senders are asked to wait


class Intake:
    """The way into the log. Belongs to one event loop.

    Args:
        logs: the write-ahead log of each signal.
        writer: told after every append.
        statistics: counters to add to.
        max_backlog_bytes: when to push back.
    """

    def __init__(
        self,
        logs: Mapping[Signal, SegmentLog],
        writer: Writer,
        statistics: Statistics,
        max_backlog_bytes: int = MAX_BACKLOG_BYTES,
    ) -> None:
        self.writer = writer
        self.statistics = statistics
        self._logs = logs
        self._max_backlog_bytes = max_backlog_bytes
        self._waiting: dict[Signal, list[tuple[Checked, asyncio.Future[None]]]] = {
            signal: [] for signal in logs
        }
        self._committers: dict[Signal, asyncio.Task[None]] = {}
        # Threads of its own: a handful of /flush calls that wait for an absent store would use up the loop's.
        self._threads = ThreadPoolExecutor(len(logs), "spanloop-log")

    @property
    def backlog_bytes(self) -> int:
        """Bytes in the log that the store has not taken yet."""
        return sum(segments.size for segments in self._logs.values())

    async def take(self, signal: Signal, body: bytes, *, is_json: bool = False) -> Checked:
        """Returns once the request is on the disk.

        Raises:
            InvalidOtlp: it does not decode; nothing was stored.
            Busy: the disk is full or the store is far behind; nothing was stored.
        """
        if (backlog := self.backlog_bytes) > self._max_backlog_bytes:
            why = self.writer.last_error or "it is slower than the senders"
            raise Busy(f"{backlog} bytes wait for the store: {why}", retry_after_s=5)
        checked = check_json(signal, body) if is_json else check_protobuf(signal, body)
        if checked.payload:
            await self._commit(signal, checked)
        if checked.rejected:
            self.statistics.add("spanloop_items_rejected_total", checked.rejected, signal=signal.value)
        return checked

    async def _commit(self, signal: Signal, checked: Checked) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[signal].append((checked, done))
        if signal not in self._committers:
            self._committers[signal] = asyncio.create_task(self._commit_all(signal))
        await done

    async def _commit_all(self, signal: Signal) -> None:
        """Group commit: whatever comes in during one sync shares the next."""
        try:
            while batch := self._waiting[signal]:
                self._waiting[signal] = []
                items = sum(checked.items for checked, _ in batch)
                payloads = [checked.payload for checked, _ in batch]
                try:
                    await asyncio.get_running_loop().run_in_executor(
                        self._threads, self._logs[signal].append, payloads, items
                    )
                except Exception as error:
                    # Whatever it was, nothing is in the log, and every sender must hear so instead of waiting for ever.
                    if isinstance(error, OSError):
                        log.error("the log cannot be written: %s", error)
                        why = f"the collector's disk refuses: {error.strerror}"
                    else:
                        log.exception("the log cannot be written")
                        why = f"the collector cannot write its log: {error}"
                    for _, done in batch:
                        if not done.done():
                            done.set_exception(Busy(why, retry_after_s=10))
                    continue
                self.statistics.add("spanloop_items_acknowledged_total", items, signal=signal.value)
                self.writer.notify()
                for _, done in batch:
                    if (
                        not done.done()
                    ):  # a sender that went away cancelled it; its spans are stored all the same
                        done.set_result(None)
        finally:
            del self._committers[signal]
