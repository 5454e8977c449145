"""The spool: every ended span is in the kernel's hands before its `end()` returns, and so survives its process.

A folder of segments, the same length-delimited OTLP requests as the collector's log, one span or log record each; any
segment can be given to `spanloop import` as it is. What is written is not synced: a process that is killed loses nothing
of it, a machine that loses its power may lose the last seconds.

A segment is a batch, fixed once it is sealed: what is sent of it is the same bytes at every attempt, by whichever
process, and its name is the batch's identity for ever. It is deleted once the target has it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spanloop_exporter.segments import SUFFIX, Segment, new_run
from spanloop_exporter.spooling import bounds
from spanloop_exporter.spooling.bounds import Bookkeeper, count_frames
from spanloop_exporter.spooling.runs import RunLock, runs_in, segments_in
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

# A request of one segment stays well below what receivers take: 20 MiB for the OpenTelemetry Collector, 64 MiB for ours.
SEGMENT_BYTES: Final = 4 << 20
# Of the bound, so that dropping the oldest segment drops a part and not the lot.
_SEGMENTS_AT_LEAST: Final = 8
_ATTEMPTS_AT_A_NEW_RUN: Final = 10

Overflow = Callable[[Signal, Sequence[bytes], OSError], None]


@dataclass
class _Open:
    """The segment that a signal's requests are appended to."""

    descriptor: int
    path: Path
    size: int = 0
    items: int = 0


class Spool:
    """One process's side of a spool folder. Thread-safe; `append` may even interrupt itself.

    Args:
        folder: shared by all processes of this user; made, for this user alone, when the first span comes.
        max_bytes: of all segments together, refused ones included; the oldest are dropped beyond it.
        max_age_s: segments that were written to longer ago are dropped.
        overflow: gets what cannot be written. It is called by `append`, at once.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_age_s: float, overflow: Overflow) -> None:
        self.folder = folder
        self.books = Bookkeeper(folder)
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._segment_bytes = max(1, min(SEGMENT_BYTES, max_bytes // _SEGMENTS_AT_LEAST))
        self._overflow = overflow
        self._reset()

    def _reset(self) -> None:
        # A finalizer that ends a span (a stream that is thrown away) may run in the middle of any of our own lines: the
        # lock is reentrant, and what comes in while we are at work waits in `_waiting` until the work is done.
        self._lock = threading.RLock()
        self._busy = False
        self._waiting: deque[tuple[Signal, Sequence[bytes]]] = deque()
        self._run = ""
        self._count = 0
        self._run_lock: RunLock | None = None
        self._open: dict[Signal, _Open] = {}
        self._sealed: list[Segment] = []
        self._adopted: dict[str, tuple[RunLock, list[Segment]]] = {}
        self._sending: Path | None = None

    def append(self, signal: Signal, payloads: Sequence[bytes]) -> bool:
        """Writes requests, each of one span or log record; on return they survive this process.

        Returns:
            Whether a segment is full now, and should be sent soon.
        """
        sealed = len(self._sealed)
        with self._lock:
            self._waiting.append((signal, payloads))
            with self._alone():
                pass
            return len(self._sealed) > sealed

    def seal(self, signal: Signal) -> None:
        """Ends the open segment, if there is one, so that it can be sent."""
        with self._lock, self._alone() as alone:
            if alone:
                self._seal(signal)

    def sealed(self, signal: Signal) -> list[Segment]:
        """What this process wrote and sealed, oldest first."""
        return [segment for segment in self._sealed if segment.signal is signal]

    def adopted(self, signal: Signal) -> list[Segment]:
        """What dead processes left and this one has taken over."""
        return [
            segment
            for _, segments in list(self._adopted.values())
            for segment in segments
            if segment.signal is signal
        ]

    @property
    def pending(self) -> int:
        """Spans and log records of this process that were not acknowledged yet."""
        with self._lock:
            return sum(each.items for each in self._sealed) + sum(each.items for each in self._open.values())

    def adopt(self) -> None:
        """Takes over what processes left that are dead.

        Raises:
            OSError: the folder cannot be read or written to.
        """
        for run in runs_in(self.folder):
            if run == self._run or run in self._adopted:
                continue
            lock = RunLock.take(self.folder, run)
            if lock is None:
                continue
            # Listed only now: the one who had the lock before may have shipped them.
            left = [
                self._take_over(file.path, file.signal)
                for file in segments_in(self.folder)
                if file.run == run
            ]
            segments = [segment for segment in left if segment is not None]
            if segments:
                self._adopted[run] = (lock, segments)
                log.info(
                    "%d segments of a process that is gone will be sent, from %s", len(segments), self.folder
                )
            else:
                lock.release(finished=True)

    def read(self, segment: Segment) -> bytes | None:
        """A segment's bytes; None where somebody dropped or deleted it meanwhile."""
        self._sending = segment.path
        try:
            return segment.path.read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, segment: Segment) -> None:
        """Deletes a segment that has arrived, or is gone."""
        with contextlib.suppress(FileNotFoundError):
            segment.path.unlink()
        self._forget(segment)

    def keep_rest(self, segment: Segment, rest: bytes) -> None:
        """Of a segment that is sent in pieces: what has not arrived yet becomes its content, all or nothing.

        On a full disk it stays as it was: then pieces may be sent twice, and the collector knows them by their bytes.
        """
        temporary = segment.path.with_name(f".{segment.path.name}.rest")
        try:
            with _private(temporary) as descriptor:
                _write_all(descriptor, rest)
            temporary.replace(segment.path)
        except OSError as error:
            log.info("%s stays whole: %s", segment.name, error)
            temporary.unlink(missing_ok=True)

    def refuse(self, name: str, data: bytes, reason: str) -> None:
        """Puts requests that the target refuses for good aside, with the reason, in the `refused` folder.

        Args:
            name: the segment they are from, and which part of it; the segment itself stays as it is.
            data: the frames.
            reason: what the target said.

        Raises:
            OSError: they could not be written.
        """
        items, _ = count_frames(data)
        name = name.replace(SUFFIX, "") + SUFFIX
        folder = self.folder / bounds.REFUSED
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _private(folder / name) as descriptor:
            _write_all(descriptor, data)
        with _private(folder / f"{name}{bounds.REASON_SUFFIX}") as descriptor:
            _write_all(descriptor, f"{reason}\n".encode())
        self.books.refused(items, f"{name}: {reason}")

    def enforce_bounds(self) -> None:
        """Drops what is too old or too much; see `bounds.enforce`.

        Raises:
            OSError: the folder cannot be read or written to.
        """
        # What is on its way may arrive, and would be counted as dropped. An open segment is its run's newest.
        keep = () if self._sending is None else (self._sending,)
        bounds.enforce(self.folder, self._max_bytes, self._max_age_s, keep, self.books)

    def close(self) -> None:
        """Ends this run: what has not arrived stays for the next process. A later `append` begins a new run.

        Call it when nothing is being sent.
        """
        with self._lock, self._alone() as alone:
            if not alone:
                return
            for signal in list(self._open):
                self._seal(signal)
            for lock, segments in self._adopted.values():
                lock.release(finished=not segments)
            self._adopted = {}
            self.books.write()
            if self._run_lock is not None:
                self._run_lock.release(finished=not self._sealed)
            self._run_lock, self._sealed = None, []

    def after_fork_in_child(self) -> None:
        """The child begins a run of its own with its first span; the parent's files and locks stay the parent's."""
        for each in self._open.values():
            os.close(each.descriptor)
        for lock, _ in self._adopted.values():
            lock.abandon()
        if self._run_lock is not None:
            self._run_lock.abandon()
        self.books = Bookkeeper(self.folder)
        self._reset()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether nobody is at work here, not even this thread further up; writes what waits before it leaves."""
        if self._busy:
            yield False
            return
        self._busy = True
        try:
            yield True
        finally:
            try:
                while self._waiting:
                    self._write(*self._waiting.popleft())
            finally:
                self._busy = False

    def _write(self, signal: Signal, payloads: Sequence[bytes]) -> None:
        data = b"".join(map(frame, payloads))
        try:
            target = self._opened(signal)
            try:
                _write_all(target.descriptor, data)
            except OSError:
                self._cut_back(signal, target)
                raise
        except OSError as error:
            self._overflow(signal, payloads, error)
            return
        target.size += len(data)
        target.items += len(payloads)
        if target.size >= self._segment_bytes:
            self._seal(signal)
            # What cannot be looked after now is looked after with the next segment.
            with contextlib.suppress(OSError):
                self.enforce_bounds()

    def _opened(self, signal: Signal) -> _Open:
        known = self._open.get(signal)
        if known is not None:
            if os.fstat(known.descriptor).st_nlink:
                return known
            # Somebody emptied the folder under us: what is written to this file from now on, nobody would ever see.
            del self._open[signal]
            os.close(known.descriptor)
            self._own_a_run()
            self.books.dropped(bounds.DELETED, known.items, known.path.name)
        self._own_a_run()
        self._count += 1
        path = self.folder / f"{signal.value}-{self._run}-{self._count:08d}{SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._open[signal] = _Open(descriptor, path)
        return self._open[signal]

    def _own_a_run(self) -> None:
        if self._run_lock is not None:
            if self._run_lock.in_place():
                return
            self._run_lock.release(finished=False)
            self._run_lock = None
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS_AT_A_NEW_RUN):
            self._run = new_run()
            # None: somebody who clears up took the fresh lock for a dead process's.
            self._run_lock = RunLock.take(self.folder, self._run)
            if self._run_lock is not None:
                return
        raise OSError(f"{self.folder}: no lock can be had")

    def _cut_back(self, signal: Signal, target: _Open) -> None:
        """Takes half a request away again: it would hide all that is written after it."""
        try:
            os.ftruncate(target.descriptor, target.size)
        except OSError:
            # Readers stop at the torn request, so nothing may follow it.
            self._seal(signal)

    def _seal(self, signal: Signal) -> None:
        ended = self._open.pop(signal, None)
        if ended is None:
            return
        os.close(ended.descriptor)
        if ended.size:
            self._sealed.append(Segment(ended.path, signal, ended.size, ended.items))
        else:
            ended.path.unlink(missing_ok=True)

    def _take_over(self, path: Path, signal: Signal) -> Segment | None:
        """A dead process's segment without the half request that it may end with; None where nothing else is in it."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        _, end = count_frames(data)
        if end < len(data):
            # Its span's end() never returned, or the machine lost its power.
            os.truncate(path, end)
            if data[end:].strip(b"\0"):
                self.books.dropped(bounds.TORN, 1, path.name)
        if not end:
            path.unlink(missing_ok=True)
            return None
        return Segment(path, signal, end, 0)

    def _forget(self, segment: Segment) -> None:
        self._sending = None
        with self._lock, self._alone():
            self._sealed = [other for other in self._sealed if other.path != segment.path]
            for run, (lock, segments) in list(self._adopted.items()):
                segments[:] = [other for other in segments if other.path != segment.path]
                if not segments:
                    lock.release(finished=True)
                    del self._adopted[run]


@contextlib.contextmanager
def _private(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
