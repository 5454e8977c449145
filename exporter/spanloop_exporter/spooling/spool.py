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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from spanloop_exporter.files import FileLock, OpenFile, leave_locks_to_parent, write_all, write_private
from spanloop_exporter.segments import SUFFIX, Segment, new_run
from spanloop_exporter.spooling import bounds
from spanloop_exporter.spooling.bounds import Bookkeeper, count_frames
from spanloop_exporter.spooling.runs import arrived_of, runs_in, segments_in, take_run, with_arrived
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

    file: OpenFile
    size: int = 0  # of whole requests
    items: int = 0


class Spool:
    """One process's side of a spool folder. Thread-safe; `append` may even interrupt itself.

    Args:
        folder: shared by all processes of this user; made, for this user alone, when the first span comes.
        max_bytes: of all segments together, refused ones included; the oldest are dropped beyond it.
        max_age_s: segments that were written to longer ago are dropped.
        overflow: gets what cannot be written, before the `append` of it returns.
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
        self._run_lock: FileLock | None = None
        self._open: dict[Signal, _Open] = {}
        self._sealed: list[Segment] = []
        self._adopted: dict[str, tuple[FileLock, list[Segment]]] = {}
        self._sending: Path | None = None
        self._undeletable: set[Path] = set()
        self._said: set[str] = set()
        # What may call the agent's own code, a handler of its log above all. That may hold a lock and wait for ours, so it
        # is done when ours is free.
        self._afterwards: list[Callable[[], None]] = []

    def append(self, signal: Signal, payloads: Sequence[bytes]) -> bool:
        """Writes requests, each of one span or log record; on return they survive this process.

        Returns:
            Whether a segment is full now, and should be sent soon.
        """
        sealed = len(self._sealed)
        with self._alone((signal, payloads)):
            pass
        return len(self._sealed) > sealed

    def seal(self, signal: Signal) -> None:
        """Ends the open segment, if there is one, so that it can be sent."""
        with self._alone() as alone:
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
            try:
                self._adopt_run(run)
            except OSError as error:
                # Another user's, in a folder that we share: neither the others nor the bounds wait for it.
                if "left" not in self._said:
                    self._said.add("left")
                    log.warning("spans that a process left stay in %s: %s", self.folder, error)

    def _adopt_run(self, run: str) -> None:
        lock = take_run(self.folder, run)
        if lock is None:
            return
        segments: list[Segment] = []
        try:
            # Listed only now: the one who had the lock before may have shipped them.
            for file in segments_in(self.folder):
                if file.run == run and file.path not in self._undeletable:
                    segment = self._take_over(file.path, file.signal)
                    segments += [segment] if segment is not None else []
        except OSError:
            lock.release()
            raise
        if not segments:
            lock.release(delete=True)
            return
        self._adopted[run] = (lock, segments)
        log.info("%d segments of a process that is gone will be sent, from %s", len(segments), self.folder)

    def read(self, segment: Segment) -> bytes | None:
        """A segment's bytes; None where somebody dropped or deleted it meanwhile."""
        self._sending = segment.path
        try:
            return segment.path.read_bytes()
        except FileNotFoundError:
            return None

    def rest(self) -> None:
        """Nothing is being sent any more: what was read last may be dropped like any other."""
        self._sending = None

    def remove(self, segment: Segment) -> None:
        """Deletes a segment that has arrived, or is gone."""
        try:
            segment.path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            # A folder that became read-only. This process remembers, or it would send it for ever.
            self._undeletable.add(segment.path)
            if "undeletable" not in self._said:
                self._said.add("undeletable")
                log.warning("%s has arrived and cannot be deleted: %s", segment.path, error)
        self._replace(segment, None)

    def shorten(self, segment: Segment, arrived: int) -> Segment:
        """Notes in a segment's name that the target has its first bytes; gives the segment with its new name.

        The bytes stay: they say where the pieces begin in which the rest is sent, so that an attempt by whichever
        process sends the same ones. Where it cannot be renamed, pieces are sent twice, and the collector knows them.
        """
        path = with_arrived(segment.path, arrived)
        try:
            segment.path.rename(path)
        except OSError as error:
            log.info("%s stays whole: %s", segment.name, error)
            return segment
        shorter = replace(segment, path=path)
        self._sending = path
        self._replace(segment, shorter)
        return shorter

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
        write_private(folder / name, data)
        write_private(folder / f"{name}{bounds.REASON_SUFFIX}", f"{reason}\n".encode())
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
        with self._alone() as alone:
            if not alone:
                return
            for signal in list(self._open):
                self._seal(signal)
            for lock, segments in self._adopted.values():
                lock.release(delete=not segments)
            self._adopted = {}
            self.books.write()
            if self._run_lock is not None:
                self._run_lock.release(delete=not self._sealed)
            self._run, self._run_lock, self._sealed = "", None, []

    def after_fork_in_child(self) -> None:
        """The child begins a run of its own with its first span; the parent's files and locks stay the parent's."""
        for each in self._open.values():
            each.file.close()
        leave_locks_to_parent()
        self.books = Bookkeeper(self.folder)
        self._reset()

    @contextlib.contextmanager
    def _alone(self, *new: tuple[Signal, Sequence[bytes]]) -> Iterator[bool]:
        """Whether nobody is at work here, not even this thread further up; writes what waits before it leaves.

        Args:
            new: what to write besides.
        """
        with self._lock:
            self._waiting.extend(new)
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
                    afterwards, self._afterwards = self._afterwards, []
        for todo in afterwards:
            todo()

    def _write(self, signal: Signal, payloads: Sequence[bytes]) -> None:
        data = b"".join(map(frame, payloads))
        try:
            target = self._opened(signal)
            try:
                write_all(target.file.number, data)
            except BaseException:  # a signal's handler may raise in here
                self._cut_back(signal, target)
                raise
        except OSError as error:
            self._afterwards.append(partial(self._overflow, signal, payloads, error))
            return
        target.size += len(data)
        target.items += len(payloads)
        if target.size >= self._segment_bytes:
            self._seal(signal)
            self._afterwards.append(self._tidy)

    def _tidy(self) -> None:
        # What cannot be looked after now is looked after with the next segment.
        with contextlib.suppress(OSError):
            self.enforce_bounds()

    def _opened(self, signal: Signal) -> _Open:
        known = self._open.get(signal)
        links = known.file.links() if known is not None else None
        if known is not None and links:
            return known
        if known is not None and links is None:
            self._seal(signal)  # somebody closed all that was open; what is in the file is whole
        elif known is not None:
            # Somebody emptied the folder under us: what is written to this file from now on, nobody would ever see.
            del self._open[signal]
            known.file.close()
            gone = partial(self.books.dropped, bounds.DELETED, known.items, known.file.path.name)
            self._afterwards.append(gone)
        self._own_a_run()
        self._count += 1
        path = self.folder / f"{signal.value}-{self._run}-{self._count:08d}{SUFFIX}"
        file = OpenFile(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        self._open[signal] = _Open(file)
        return self._open[signal]

    def _own_a_run(self) -> None:
        if self._run_lock is not None:
            if self._run_lock.in_place():
                return
            self._run_lock.release()
            self._run_lock = None
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS_AT_A_NEW_RUN):
            self._run = new_run()
            # None: somebody who clears up took the fresh lock for a dead process's.
            self._run_lock = take_run(self.folder, self._run)
            if self._run_lock is not None:
                return
        raise OSError(f"{self.folder}: no lock can be had")

    def _cut_back(self, signal: Signal, target: _Open) -> None:
        """Takes half a request away again: it would hide all that is written after it."""
        try:
            os.ftruncate(target.file.number, target.size)
        except OSError:
            # Readers stop at the torn request, so nothing may follow it.
            self._seal(signal)

    def _seal(self, signal: Signal) -> None:
        ended = self._open.pop(signal, None)
        if ended is None:
            return
        ended.file.close()
        if ended.size:
            self._sealed.append(Segment(ended.file.path, signal, ended.size, ended.items))
        else:
            with contextlib.suppress(OSError):
                ended.file.path.unlink()

    def _take_over(self, path: Path, signal: Signal) -> Segment | None:
        """A dead process's segment without the half request that it may end with; None where nothing else is in it."""
        try:
            file = OpenFile(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            with os.fdopen(file.number, "rb", closefd=False) as reader:
                data = reader.read()
            _, end = count_frames(data)
            if end < len(data):
                # Its span's end() never returned, or the machine lost its power.
                os.ftruncate(file.number, end)
                if data[end:].strip(b"\0"):
                    self.books.dropped(bounds.TORN, 1, path.name)
        finally:
            file.close()
        if end <= arrived_of(path):
            path.unlink(missing_ok=True)
            return None
        return Segment(path, signal, end, 0)

    def _replace(self, segment: Segment, new: Segment | None) -> None:
        """Puts another segment in one's place, or nothing."""

        def replaced(segments: list[Segment]) -> list[Segment]:
            both = [new if other.path == segment.path else other for other in segments]
            return [other for other in both if other is not None]

        if new is None:
            self._sending = None
        with self._alone():
            self._sealed = replaced(self._sealed)
            for run, (lock, segments) in list(self._adopted.items()):
                segments[:] = replaced(segments)
                if not segments:
                    lock.release(delete=True)
                    del self._adopted[run]
