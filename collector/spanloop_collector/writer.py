"""The thread that moves sealed segments into the store, one insert a segment, and never gives one up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from spanloop_collector.statistics import Statistics
from spanloop_exporter.segments import Segment, SegmentLog
from spanloop_store.errors import SpanloopError, StoreUnavailable
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

# How long an unfinished segment may wait for company before it is inserted. Planning one insert costs the engine 0.1 s of
# a core whatever its size, so many small ones would eat what the agents on the same machine need.
LATENCY_S = 1.0
_FIRST_PAUSE_S = 0.25  # after an insert that the store did not take; doubles up to the longest
_LONGEST_PAUSE_S = 10.0


class Writer:
    """Seals, inserts and removes segments until it is stopped.

    Args:
        logs: the write-ahead log of each signal.
        open_inserter: called in the thread, since a client belongs to one thread; may raise StoreUnavailable.
        statistics: counters to add to.
        latency_s: how long an unfinished segment waits.
    """

    def __init__(
        self,
        logs: Mapping[Signal, SegmentLog],
        open_inserter: Callable[[], SegmentInserter],
        statistics: Statistics,
        latency_s: float = LATENCY_S,
    ) -> None:
        self._logs = logs
        self._open_inserter = open_inserter
        self._statistics = statistics
        self._latency_s = latency_s
        self._condition = threading.Condition()
        self._work = True  # segments of an earlier run may lie there
        self._hurry = False
        self._stopping = False
        self._tried: set[str] = set()  # segments whose insert was begun, and may have been done in part
        self._thread = threading.Thread(target=self._run, name="spanloop-writer", daemon=True)
        self.last_error = ""  # why the store does not take segments now; empty: it does

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def notify(self) -> None:
        """Something was appended."""
        with self._condition:
            self._work = True
            self._condition.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Waits until all that was appended before the call is in the store; False if time ran out first."""
        deadline = time.monotonic() + timeout_s
        waiting = set()
        for segments in self._logs.values():
            segments.seal()
            waiting |= {segment.name for segment in segments.sealed()}
        with self._condition:
            self._work = self._hurry = True
            self._condition.notify_all()
            while waiting & self._left():
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._thread.is_alive():
                    return False
                self._condition.wait(min(remaining, 1.0))
        return True

    def stop(self, timeout_s: float) -> bool:
        """Inserts what is left, then ends the thread; False if the store did not take it in time (the log keeps it)."""
        deadline = time.monotonic() + timeout_s
        done = self.flush(timeout_s)
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        # Of one allowance: the supervisor kills what takes longer than both processes say they need.
        self._thread.join(max(deadline - time.monotonic(), 1.0))
        return done

    def _left(self) -> set[str]:
        return {segment.name for segments in self._logs.values() for segment in segments.sealed()}

    def _run(self) -> None:
        inserter: SegmentInserter | None = None
        pause_s = 0.0
        while self._wait(pause_s):
            try:
                inserter = inserter or self._open_inserter()
                self._drain(inserter)
                pause_s = 0.0
                self.last_error = ""
            except SpanloopError as error:
                pause_s = self._failed(error.message, pause_s)
            except Exception as error:
                # Whatever it was, the segments are still there, and a dead writer would stop the world silently.
                log.exception("the writer failed; it goes on")
                pause_s = self._failed(str(error), pause_s)

    def _failed(self, message: str, pause_s: float) -> float:
        self._statistics.add("spanloop_insert_failures_total")
        if message != self.last_error:
            log.error("the store does not take segments now, the log keeps them: %s", message)
        self.last_error = message
        with self._condition:
            self._work = True
        return min(max(pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)

    def _wait(self, pause_s: float) -> bool:
        """Until there is work that is due; False: stop."""
        with self._condition:
            if pause_s:
                self._condition.wait_for(lambda: self._stopping, pause_s)
            self._condition.wait_for(lambda: self._work or self._stopping)
            if not self._hurry and not self._stopping:
                self._condition.wait_for(lambda: self._hurry or self._stopping, self._latency_s)
            if self._stopping:
                return False
            self._work = self._hurry = False
            return True

    def _drain(self, inserter: SegmentInserter) -> None:
        for signal, segments in self._logs.items():
            segments.seal()
            for segment in segments.sealed():
                if self._stopping:
                    return
                self._insert(inserter, signal, segments, segment)

    def _insert(
        self, inserter: SegmentInserter, signal: Signal, segments: SegmentLog, segment: Segment
    ) -> None:
        # One that was found at start-up (nobody counted its items) may be half inserted by the run that died.
        again = not segment.items or segment.name in self._tried
        self._tried.add(segment.name)
        try:
            done = inserter.insert(segment.path, signal, again=again)
        except FileNotFoundError as error:
            raise StoreUnavailable(f"segment {segment.path} is gone", "who deleted it?") from error
        if not segment.items:  # acknowledged by an earlier run
            self._statistics.add("spanloop_items_acknowledged_total", done.rows, signal=signal.value)
        for decoder, rows in (("engine", done.engine_rows), ("fallback", done.fallback_rows)):
            self._statistics.add("spanloop_items_inserted_total", rows, signal=signal.value, decoder=decoder)
        self._statistics.add("spanloop_items_quarantined_total", done.quarantined_rows, signal=signal.value)
        self._statistics.add("spanloop_segments_total", signal=signal.value)
        segments.remove(segment)
        self._tried.discard(segment.name)
        with self._condition:
            self._condition.notify_all()
