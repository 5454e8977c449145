"""The threads that move sealed segments into the store, one insert a segment, and never give one up."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from spanloop_collector.statistics import Statistics
from spanloop_exporter.segments import Segment, SegmentLog
from spanloop_store.errors import SpanloopError, StoreUnavailable
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

# How long an unfinished segment may wait for company before it is inserted. Planning one insert and syncing its part costs
# the engine some 50 ms whatever its size, so many small ones would eat what the agents on the same machine need.
LATENCY_S = 1.0
# The engine inserts one block with one thread, or the block would not be the same twice. Two at once use two cores, and one
# computes while the other waits for the disk; each holds a few times its segment in memory, so there are not more.
THREADS = 2
_FIRST_PAUSE_S = 0.25  # after an insert that the store did not take; doubles up to the longest
_LONGEST_PAUSE_S = 10.0


class _Claim(NamedTuple):
    """A segment that one thread inserts and no other may touch."""

    signal: Signal
    segments: SegmentLog
    segment: Segment
    again: bool  # an earlier attempt may have inserted some of it


class Writer:
    """Seals, inserts and removes segments until it is stopped.

    Segments are independent of each other: each has its own deduplication token, and a row has no order but its time. So
    they may be inserted at once, in any order, and a crash leaves any of them done, half done or not begun.

    Args:
        logs: the write-ahead log of each signal.
        open_inserter: called in each thread, since a client belongs to one thread; may raise StoreUnavailable.
        statistics: counters to add to.
        latency_s: how long an unfinished segment waits.
        threads: how many segments are inserted at once.
    """

    def __init__(
        self,
        logs: Mapping[Signal, SegmentLog],
        open_inserter: Callable[[], SegmentInserter],
        statistics: Statistics,
        latency_s: float = LATENCY_S,
        threads: int = THREADS,
    ) -> None:
        self._logs = logs
        self._open_inserter = open_inserter
        self._statistics = statistics
        self._latency_s = latency_s
        # Guards the four below. Nothing that waits for a disk may hold it: the receivers' loop takes it in `notify`.
        self._condition = threading.Condition()
        self._look = True  # sealed segments may lie there, of an earlier run to begin with
        self._due: float | None = None  # when the open segments are to be sealed; None: nothing was appended
        self._finished = 0  # inserts that ended, well or not
        self._stopping = False
        # Guards the three below, and makes "is it sealed and free" one question.
        self._claims = threading.Lock()
        self._claimed: set[str] = set()
        self._tried: set[str] = set()  # segments whose insert was begun, and may have been done in part
        self._failures: Counter[str] = Counter()  # the store did not take them; others go first
        self._errors: dict[str, str] = {}  # why, of the last time
        self._threads = [
            threading.Thread(target=self._run, name=f"spanloop-writer-{number}", daemon=True)
            for number in range(threads)
        ]

    @property
    def last_error(self) -> str:
        """Why the store does not take segments now; empty: it does."""
        with self._claims:
            return next(iter(self._errors.values()), "")

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def notify(self) -> None:
        """Something was appended."""
        with self._condition:
            if self._due is None:
                self._due = time.monotonic() + self._latency_s
                self._condition.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Waits until all that was appended before the call is in the store; False if time ran out first."""
        deadline = time.monotonic() + timeout_s
        waiting = set()
        for segments in self._logs.values():
            segments.seal()
            waiting |= {segment.name for segment in segments.sealed()}
        with self._condition:
            self._look = True
            self._condition.notify_all()
        while True:
            finished = self._finished
            if not waiting & self._left():
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not any(thread.is_alive() for thread in self._threads):
                return False
            with self._condition:
                if self._finished == finished:
                    self._condition.wait(min(remaining, 1.0))

    def stop(self, timeout_s: float) -> bool:
        """Inserts what is left, then ends the threads; False if the store did not take it in time (the log keeps it)."""
        deadline = time.monotonic() + timeout_s
        done = self.flush(timeout_s)
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        for thread in self._threads:
            # Of one allowance: the supervisor kills what takes longer than both processes say they need.
            thread.join(max(deadline - time.monotonic(), 1.0 / len(self._threads)))
        return done

    def _left(self) -> set[str]:
        return {segment.name for segments in self._logs.values() for segment in segments.sealed()}

    def _run(self) -> None:
        inserter: SegmentInserter | None = None
        pause_s = 0.0
        while claim := self._next(pause_s):
            error = ""
            try:
                inserter = inserter or self._open_inserter()
                self._insert(inserter, claim)
            except SpanloopError as problem:
                error = problem.message
            except Exception as problem:
                # Whatever it was, the segment is still there, and a dead writer would stop the world silently.
                log.exception("the writer failed; it goes on")
                error = str(problem) or type(problem).__name__
            self._ended(claim, error)
            pause_s = min(max(pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S) if error else 0.0

    def _next(self, pause_s: float) -> _Claim | None:
        """Waits for a segment that is due; None: stop."""
        if pause_s:
            with self._condition:
                self._condition.wait_for(lambda: self._stopping, pause_s)
                self._look = True
        while True:
            with self._condition:
                while not (self._stopping or self._look or self._is_due()):
                    self._condition.wait(None if self._due is None else self._due - time.monotonic())
                if self._stopping:
                    return None
                due = self._is_due()
                self._look = False
                if due:
                    self._due = None
            if due:
                for segments in self._logs.values():
                    segments.seal()
            claim, more = self._claim()
            if more:
                with self._condition:
                    self._look = True
                    self._condition.notify()
            if claim:
                return claim

    def _is_due(self) -> bool:
        return self._due is not None and time.monotonic() >= self._due

    def _claim(self) -> tuple[_Claim | None, bool]:
        """The next segment that nobody works on, and whether there are more."""
        with self._claims:
            free = [
                (signal, segments, segment)
                for signal, segments in self._logs.items()
                for segment in segments.sealed()
                if segment.name not in self._claimed
            ]
            if not free:
                return None, False
            # The oldest first; but one that the store does not take must not hold up those that it would.
            signal, segments, segment = min(free, key=lambda item: self._failures[item[2].name])
            # One that was found at start-up (nobody counted its items) may be half inserted by the run that died.
            again = not segment.items or segment.name in self._tried
            self._claimed.add(segment.name)
            self._tried.add(segment.name)
            return _Claim(signal, segments, segment, again), len(free) > 1

    def _ended(self, claim: _Claim, error: str) -> None:
        """Gives a segment free, done (no error) or not."""
        name = claim.segment.name
        with self._claims:
            # Not before `SegmentLog.remove`: whoever sees it free and sealed takes it.
            self._claimed.discard(name)
            news = error and error not in self._errors.values()
            if error:
                self._failures[name] += 1
                self._errors[name] = error
            else:
                self._tried.discard(name)
                self._failures.pop(name, None)
                self._errors.pop(name, None)
        if error:
            self._statistics.add("spanloop_insert_failures_total")
        if news:
            log.error("the store does not take segments now, the log keeps them: %s", error)
        with self._condition:
            self._finished += 1
            self._look = self._look or not error
            self._condition.notify_all()

    def _insert(self, inserter: SegmentInserter, claim: _Claim) -> None:
        signal, segments, segment, again = claim
        try:
            done = inserter.insert(segment.path, signal, items=segment.items, again=again)
        except FileNotFoundError as error:
            raise StoreUnavailable(f"segment {segment.path} is gone", "who deleted it?") from error
        if not segment.items:  # acknowledged by an earlier run
            self._statistics.add("spanloop_items_acknowledged_total", done.rows, signal=signal.value)
        for decoder, rows in (("engine", done.engine_rows), ("fallback", done.fallback_rows)):
            self._statistics.add("spanloop_items_inserted_total", rows, signal=signal.value, decoder=decoder)
        self._statistics.add("spanloop_items_quarantined_total", done.quarantined_rows, signal=signal.value)
        self._statistics.add("spanloop_segments_total", signal=signal.value)
        segments.remove(segment)
