"""The shipper: a thread that sends what the spool holds, again and again until the target has it."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from spanloop_exporter.segments import Segment
from spanloop_exporter.spooling import bounds
from spanloop_exporter.spooling.batches import Answer, Batch, Outcome, Target
from spanloop_exporter.spooling.bounds import count_frames
from spanloop_exporter.spooling.late import late
from spanloop_exporter.spooling.memory import MemoryQueue
from spanloop_exporter.spooling.runs import arrived_of
from spanloop_exporter.spooling.spool import Spool
from spanloop_store.otlp.frames import frames
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0
# How often the folder is looked through for what dead processes left.
SCAN_S: Final = 10.0
_FULL: Final = "a segment is full"
_SPANS: Final = "there is something to send"
_STOP: Final = "the process ends"
_AWAY: Final = "away"
# Of a flush, in seconds: others' leftovers should not hold up the end of a process.
_LEFTOVERS_S: Final = 1.0


class _Flush:
    """A question to the shipper: is everything there that was written before now?"""

    def __init__(self, deadline: float, signal: Signal | None, *, leftovers: bool = False) -> None:
        self.deadline = deadline  # time.monotonic()
        self.signal = signal  # None: all
        self.leftovers = leftovers
        self.done = threading.Event()
        self.delivered = False


class Shipper:
    """Sends a spool's segments; one for each process, started with its first span.

    Args:
        spool: where segments come from; None: there is no folder for one.
        memory: what could not be written to the spool.
        make_target: makes the target of a signal, in the shipper's own thread.
        delay_s: how long a span waits for others.
    """

    def __init__(
        self,
        spool: Spool | None,
        memory: MemoryQueue,
        make_target: Callable[[Signal], Target],
        delay_s: float,
    ) -> None:
        self._spool = spool
        self._memory = memory
        self._make_target = make_target
        self._delay_s = delay_s
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """The child has no thread yet, and no connection of its own."""
        # A finalizer may wake us from within any line, in any thread: of the standard library's queues this one is
        # made for that.
        self._inbox: queue.SimpleQueue[str | _Flush] = queue.SimpleQueue()
        self._starting = threading.RLock()
        self._thread: threading.Thread | None = None
        self._told = False
        self._targets: dict[Signal, Target] = {}
        self._failures: dict[Signal, int] = {}
        self._not_before: dict[Signal, float] = {}  # time.monotonic()
        self._next_scan = 0.0
        self._tried: set[str] = set()
        self._said: set[tuple[Signal, str]] = set()
        self._asked_to_wait = False

    def wake(self, *, full: bool = False) -> None:
        """There is something to send; a full segment does not wait for more."""
        if not self._told or full:
            self._told = True
            self._inbox.put(_FULL if full else _SPANS)
            # Not waited for: whoever stops it meanwhile waits for it, and it may be what ends this span.
            if not self._start(wait=False):
                self._told = False

    def flush(self, timeout_s: float, signal: Signal | None = None, *, leftovers: bool = False) -> bool:
        """Sends what is there now, and says the truth about it.

        A target that says when it wants to be asked again is asked again in time; one that cannot be reached is not
        waited for, since the spool keeps what it does not get.

        Args:
            timeout_s: how long to wait, in seconds.
            signal: send this one only; None: all.
            leftovers: send what dead processes left, too, in the time that is left.

        Returns:
            Whether the target has everything (of the signal) that this process wrote before the call.
        """
        if self._thread is None and not self._pending():
            return True
        question = _Flush(time.monotonic() + timeout_s, signal, leftovers=leftovers)
        self._inbox.put(question)
        if self._start(wait=True):
            question.done.wait(timeout_s)
        return question.delivered

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread; the next `wake` starts another.

        Returns:
            Whether it ended in time. False: it waits for a target that hangs.
        """
        with self._starting:
            thread = self._thread
            if thread is None:
                return True
            self._inbox.put(_STOP)
            thread.join(timeout_s)
            if thread.is_alive():
                return False
            self._thread = None
            self._told = False
            return True

    def _pending(self) -> int:
        return len(self._memory) + (self._spool.pending if self._spool is not None else 0)

    def _start(self, *, wait: bool) -> bool:
        """Whether the thread runs now. False: it cannot, or somebody starts or stops it and `wait` is False."""
        if not self._starting.acquire(blocking=wait):
            return False
        failed: RuntimeError | None = None
        try:
            if self._thread is None:
                # Made anew beside its thread: what a library like gevent replaces meanwhile, it replaces in both, and
                # a queue of the one kind would stop all threads of the other.
                inbox: queue.SimpleQueue[str | _Flush] = queue.SimpleQueue()
                while not self._inbox.empty():
                    inbox.put(self._inbox.get_nowait())
                self._inbox = inbox
                self._thread = threading.Thread(target=self._run, name="spanloop-shipper", daemon=True)
                self._thread.start()
        except RuntimeError as error:
            self._thread, failed = None, error
        finally:
            self._starting.release()
        if failed is not None:
            # No threads left, or the interpreter is on its way out: the spool keeps everything.
            log.debug("the shipper cannot start: %s", failed)
        return failed is None

    def _run(self) -> None:
        # Our own requests are no business of the agent's instrumentors.
        with late("opentelemetry.instrumentation.utils").suppress_instrumentation():
            due: float | None = time.monotonic() + self._delay_s
            while due is not None:
                due = self._step(due)

    def _step(self, due: float) -> float | None:
        """Waits for one event and sees to it; returns when to look again at the latest; None: never."""
        try:
            event = self._inbox.get(timeout=min(max(due - time.monotonic(), 0.0), SCAN_S))
        except queue.Empty:
            event = None
        if event == _STOP:
            return None
        try:
            if isinstance(event, _Flush):
                self._answer(event)
            elif event == _FULL or time.monotonic() >= due:
                self._round()
            else:
                return min(due, time.monotonic() + self._delay_s) if event == _SPANS else due
        except Exception:  # the thread must live: without it nothing is sent any more
            if self._say(Signal.TRACES, "failed"):
                log.exception("spans wait in the spool: sending them failed in a way that we did not foresee")
            return time.monotonic() + MAX_BACKOFF_S
        waits = [when for when in self._not_before.values() if when > time.monotonic()]
        return min([self._next_scan, *waits], default=time.monotonic() + SCAN_S)

    def _answer(self, question: _Flush) -> None:
        try:
            while True:
                delivered = self._round(question)
                again = max(self._not_before.values(), default=0.0)
                if delivered or not self._asked_to_wait or again >= question.deadline:
                    question.delivered = delivered
                    return
                time.sleep(max(0.0, again - time.monotonic()))
        finally:
            question.done.set()

    def _round(self, question: _Flush | None = None) -> bool:
        """One pass over everything; returns whether all that this process wrote has arrived."""
        self._told = False
        self._asked_to_wait = False
        delivered = True
        for signal in Signal:
            if question is not None and question.signal not in (None, signal):
                continue
            if question is None and time.monotonic() < self._not_before.get(signal, 0.0):
                delivered = False
                continue
            delivered &= self._send_signal(signal, question)
        scan = time.monotonic() >= self._next_scan if question is None else question.leftovers
        if scan:
            self._next_scan = time.monotonic() + SCAN_S
            if self._spool is not None:
                self._look_around(self._spool, question)
        return delivered

    def _send_signal(self, signal: Signal, question: _Flush | None) -> bool:
        spool = self._spool
        if spool is not None:
            # Not sealed before the older ones have gone: in an outage the open segment fills up instead.
            if not self._send_all(spool, spool.sealed(signal), question):
                return False
            spool.seal(signal)
            if not self._send_all(spool, spool.sealed(signal), question):
                return False
        return self._send_memory(signal, question)

    def _look_around(self, spool: Spool, question: _Flush | None) -> None:
        """What dead processes left; and the spool's bounds."""
        try:
            spool.adopt()
            spool.enforce_bounds()
        except OSError as error:
            if self._say(Signal.TRACES, "scan"):
                log.warning("the spool %s cannot be looked through: %s", spool.folder, error)
            return
        if question is not None:
            question.deadline = min(question.deadline, time.monotonic() + _LEFTOVERS_S)
        for signal in Signal:
            if time.monotonic() >= self._not_before.get(signal, 0.0):
                self._send_all(spool, spool.adopted(signal), question)

    def _send_all(self, spool: Spool, segments: list[Segment], question: _Flush | None) -> bool:
        for segment in segments:
            if question is not None and time.monotonic() >= question.deadline:
                return False
            data = spool.read(segment)
            if data is None:
                spool.remove(segment)
                continue
            again = not segment.items or segment.name in self._tried
            whole = Batch(segment.name, segment.signal, data, segment.path, segment.items, again)
            self._tried.add(segment.name)

            def shorten(arrived: int) -> None:
                nonlocal segment
                segment = spool.shorten(segment, arrived)

            delivered = self._send(whole, arrived_of(segment.path), shorten)
            spool.rest()
            if not delivered:
                return False
            self._tried.discard(whole.name)
            spool.remove(segment)
        return True

    def _send_memory(self, signal: Signal, question: _Flush | None) -> bool:
        while (batch := self._memory.batch(signal)) is not None:
            if question is not None and time.monotonic() >= question.deadline:
                return False
            if not self._send(batch, 0, None):
                return False
            self._memory.remove(batch)
        return True

    def _send(self, batch: Batch, arrived: int, shorten: Callable[[int], None] | None) -> bool:
        """One batch, halved as often as the target asks for it; returns whether nothing of it is left to send.

        Args:
            batch: what to send.
            arrived: bytes at its beginning that the target has. What they were part of was too large, so where the pieces
                begin depends on the batch alone, and one whose answer got lost is the same bytes when it comes again.
            shorten: notes how many bytes have arrived; None: nothing is noted.
        """
        start, waiting = 0, [batch.data]
        while waiting:
            data = waiting[0]
            end = start + len(data)
            if end <= arrived:
                del waiting[0]
                start = end
                continue
            if start < arrived:
                waiting[:1] = halves(data)
                continue
            whole = data is batch.data
            name = batch.name if whole else f"{batch.name}.{start}-{len(data)}"
            path, items = (batch.path, batch.items) if whole else (None, 0)
            part = Batch(name, batch.signal, data, path, items, batch.again)
            answer = self._target(batch.signal).send(part)
            if answer.outcome is Outcome.LATER:
                self._wait_for(batch.signal, answer)
                return False
            self._reached(batch.signal)
            if answer.outcome is Outcome.TOO_LARGE and count_frames(data)[0] > 1:
                waiting[:1] = halves(data)
                continue
            del waiting[0]
            start = end
            self._take_note(part, answer)
            if waiting and shorten is not None:
                shorten(end)
        return True

    def _target(self, signal: Signal) -> Target:
        if signal not in self._targets:
            self._targets[signal] = self._make_target(signal)
        return self._targets[signal]

    def _wait_for(self, signal: Signal, answer: Answer) -> None:
        failures = self._failures[signal] = self._failures.get(signal, 0) + 1
        # Full jitter over the upper half: agents that lost one collector together do not come back together.
        backoff = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures - 1, 16))
        wait = random.uniform(backoff / 2, backoff)  # noqa: S311  # no secret
        if answer.retry_after_s is not None:
            self._asked_to_wait = True
            wait = max(answer.retry_after_s, FIRST_BACKOFF_S / 10)
        self._not_before[signal] = time.monotonic() + wait
        if self._say(signal, _AWAY):
            where = self._spool.folder if self._spool is not None else "memory"
            log.warning(
                "%s of this process wait in %s: %s does not take them now: %s",
                signal.value, where, self._target(signal).name, answer.reason,
            )  # fmt: skip

    def _reached(self, signal: Signal) -> None:
        self._failures.pop(signal, None)
        self._not_before.pop(signal, None)
        if (signal, _AWAY) in self._said:
            self._said.remove((signal, _AWAY))
            log.warning("%s takes %s again", self._target(signal).name, signal.value)

    def _take_note(self, batch: Batch, answer: Answer) -> None:
        """Says once, and counts always, what the target did not want."""
        items, _ = count_frames(batch.data)
        if answer.outcome is Outcome.DELIVERED:
            if answer.rejected:
                if self._spool is not None:
                    self._spool.books.refused(answer.rejected, f"{batch.name}: {answer.reason}")
                if self._say(batch.signal, "rejected"):
                    log.warning("%s took a batch without %d of its %d %s: %s",
                        self._target(batch.signal).name, answer.rejected, items, batch.signal.value, answer.reason)  # fmt: skip
            return
        kept = "they are lost"
        if self._spool is not None:
            try:
                self._spool.refuse(batch.name, batch.data, answer.reason)
                kept = f"they are kept in {self._spool.folder / bounds.REFUSED}; `spanloop import` takes them"
            except OSError as error:
                self._spool.books.dropped(bounds.MEMORY, items, f"{batch.name}, which the target refused")
                kept = f"they are lost: {error}"
        if self._say(batch.signal, "refused"):
            log.error("%s refuses %d %s for good: %s; %s",
                self._target(batch.signal).name, items, batch.signal.value, answer.reason, kept)  # fmt: skip

    def _say(self, signal: Signal, what: str) -> bool:
        """Whether this is news; the same thing is logged once and not once a batch."""
        news = (signal, what) not in self._said
        self._said.add((signal, what))
        return news


def halves(data: bytes) -> list[bytes]:
    """Frames in two parts of about the same number, the first never empty; what is sent depends on `data` alone."""
    ends = [item.end for item in frames(data)]
    middle = ends[len(ends) // 2 - 1]
    return [data[:middle], data[middle : ends[-1]]]
