"""What both receivers do with a request: check it, log it with one sync for all that wait, then acknowledge it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

from spanloop_collector.errors import Busy
from spanloop_collector.expiring import Expiring
from spanloop_collector.redacting import Redaction
from spanloop_collector.repeats import Repeats, told_apart
from spanloop_collector.space import Space
from spanloop_collector.statistics import Statistics
from spanloop_collector.writer import Writer
from spanloop_exporter.segments import SegmentLog
from spanloop_store.expiry import Expiry
from spanloop_store.otlp.check import Checked, check_json, check_protobuf
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

# Long enough for an insert or two, shorter than what SDKs give a batch before they drop it.
_NO_ROOM_RETRY_S = 5
_BROKEN_RETRY_S = 10
# Redaction of that takes some 5 ms; of more, other senders would notice.
_LARGE_BYTES = 1 << 20


class Taken(NamedTuple):
    """A request that is on the disk."""

    checked: Checked
    repeated: bool  # the same request was logged before, and was not logged again


class _Waiting(NamedTuple):
    checked: Checked
    digest: bytes
    done: asyncio.Future[None]


class Intake:
    """The way into the log. Belongs to one event loop.

    Args:
        logs: the write-ahead log of each signal.
        writer: told after every append.
        statistics: counters to add to.
        repeats: which requests were logged before.
        space: when to push back.
        expiring: what the store would delete at once; None: nothing.
        redaction: done to each request before it is logged; None: nothing is.
    """

    def __init__(
        self,
        logs: Mapping[Signal, SegmentLog],
        writer: Writer,
        statistics: Statistics,
        repeats: Repeats,
        space: Space,
        expiring: Expiring | None = None,
        redaction: Redaction | None = None,
    ) -> None:
        self.writer = writer
        self.statistics = statistics
        self.space = space
        self._logs = logs
        self._repeats = repeats
        self._expiring = expiring or Expiring(dict)
        self._redaction = redaction or Redaction(None)
        self._waiting: dict[Signal, list[_Waiting]] = {signal: [] for signal in logs}
        self._on_the_way: dict[bytes, asyncio.Future[None]] = {}  # requests whose sync is not done, by digest
        self._committers: dict[Signal, asyncio.Task[None]] = {}
        # Threads of its own: a handful of /flush calls that wait for an absent store would use up the loop's.
        self._threads = ThreadPoolExecutor(len(logs), "spanloop-log")
        # One: of a JSON document Python makes fifty times its size in objects.
        self._json = ThreadPoolExecutor(1, "spanloop-json")

    @property
    def log_bytes(self) -> int:
        """Bytes in the log that the store has not taken yet."""
        return sum(segments.size for segments in self._logs.values())

    @property
    def oldest(self) -> float | None:
        """Unix seconds of the oldest request that the store has not taken yet; None: there is none."""
        return min(
            (oldest for segments in self._logs.values() if (oldest := segments.oldest) is not None),
            default=None,
        )

    def expiry(self, signal: Signal) -> Expiry | None:
        """The times of a signal's items that the store would delete at once; None: none are."""
        return self._expiring.of(signal)

    async def take(self, signal: Signal, body: bytes, *, is_json: bool = False) -> Taken:
        """Returns once the request is on the disk.

        Raises:
            InvalidOtlp: it does not decode; nothing was stored.
            Busy: the disk is full or the store is far behind; nothing was stored.
        """
        if refuse := self.space.look(self.log_bytes).refuse:
            error = self.writer.last_error
            raise Busy(f"{refuse}; the store says: {error}" if error else refuse, _NO_ROOM_RETRY_S)
        expiry = self.expiry(signal)
        if is_json:
            checked = await self.parse_json(check_json, signal, body, expiry)
        else:
            checked = check_protobuf(signal, body, expiry)
        repeated = False
        if checked.payload:
            # Before the hash that resends are known by: after a crash it is made anew, of what is in the log.
            checked = await self._redacted(signal, checked)
            repeated = await self._commit(signal, checked)
        if checked.rejected:
            self.statistics.add("spanloop_items_rejected_total", checked.rejected, signal=signal.value)
            self.statistics.add("spanloop_items_expired_total", checked.expired, signal=signal.value)
            self._expiring.said(signal, checked)
        return Taken(checked, repeated)

    async def parse_json(
        self, parse: Callable[_Arguments, _Result], *args: _Arguments.args, **settings: _Arguments.kwargs
    ) -> _Result:
        """Calls what parses JSON in a thread: it takes half a second a MiB, and other senders want answers meanwhile."""
        work = partial(parse, *args, **settings)
        return await asyncio.get_running_loop().run_in_executor(self._json, work)

    async def _redacted(self, signal: Signal, checked: Checked) -> Checked:
        if len(checked.payload) < _LARGE_BYTES:
            return self._redaction(signal, checked)
        return await self.parse_json(self._redaction, signal, checked)

    async def _commit(self, signal: Signal, checked: Checked) -> bool:
        """Whether it was there before; on return it is on the disk in either case."""
        digest = self._repeats.digest(signal, checked.payload)
        if (digest in self._repeats or digest in self._on_the_way) and told_apart(signal, checked.payload):
            if (
                digest in self._on_the_way
            ):  # its first copy is being synced: both are answered by what comes of that
                await asyncio.shield(self._on_the_way[digest])
            self.statistics.add("spanloop_requests_repeated_total", signal=signal.value)
            return True
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_the_way[digest] = done
        self._waiting[signal].append(_Waiting(checked, digest, done))
        if signal not in self._committers:
            self._committers[signal] = asyncio.create_task(self._commit_all(signal))
        # A sender that goes away ends its own wait, and not that of another with the same request.
        await asyncio.shield(done)
        return False

    async def _commit_all(self, signal: Signal) -> None:
        """Group commit: whatever comes in during one sync shares the next."""
        try:
            while batch := self._waiting[signal]:
                self._waiting[signal] = []
                items = sum(waiting.checked.items for waiting in batch)
                payloads = [waiting.checked.payload for waiting in batch]
                logged = partial(self._repeats.logged, [waiting.digest for waiting in batch])
                try:
                    await asyncio.get_running_loop().run_in_executor(
                        self._threads, self._logs[signal].append, payloads, items, logged
                    )
                except Exception as error:
                    # Whatever it was, nothing is in the log, and every sender must hear so instead of waiting for ever.
                    if isinstance(error, OSError):
                        log.error("the log cannot be written: %s", error)
                        why = f"the collector's disk refuses: {error.strerror}"
                    else:
                        log.exception("the log cannot be written")
                        why = f"the collector cannot write its log: {error}"
                    self._answer(batch, Busy(why, _BROKEN_RETRY_S))
                    continue
                self.statistics.add("spanloop_items_acknowledged_total", items, signal=signal.value)
                self.writer.notify()
                self._answer(batch, None)
        finally:
            del self._committers[signal]

    def _answer(self, batch: list[_Waiting], error: Busy | None) -> None:
        for waiting in batch:
            if self._on_the_way.get(waiting.digest) is waiting.done:
                del self._on_the_way[waiting.digest]
            if error is None:
                waiting.done.set_result(None)
            else:
                waiting.done.set_exception(error)
                waiting.done.exception()  # its sender may be gone: nobody else would look at it
