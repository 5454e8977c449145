"""Segment files of raw OTLP: append and sync, seal, recover. Both sides of capture write them; nothing heavy is imported."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spanloop_exporter.files import write_all
from spanloop_store.otlp.frames import SEGMENT_SUFFIX, frame, frames
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

if sys.platform == "darwin":
    import fcntl

SUFFIX: Final = SEGMENT_SUFFIX
# One insert of about 20,000 spans of 3 KB: one block, large enough that planning it is a tenth of its cost.
DEFAULT_MAX_BYTES: Final = 64 << 20
_FRESH_PARENTS: Final = (
    4  # ~/.spanloop/collector/SERVER/log: what a first start makes above a log, and one more
)


@dataclass(frozen=True)
class Segment:
    """A sealed segment: nobody writes to it any more."""

    path: Path
    signal: Signal
    size: int  # bytes
    items: int  # spans or log records in it; 0 where it was found at start-up and nobody counted
    begun: float = 0.0  # Unix seconds of its first request; where it was found at start-up, of its last

    @property
    def name(self) -> str:
        """Unique for ever, since it is the deduplication token of its insert."""
        return self.path.name


class SegmentLog:
    """The write-ahead log of one signal: a folder of segment files, the newest of them open for appending.

    Thread-safe. A segment is a sequence of length-delimited export requests, which is ClickHouse's `Protobuf` format:
    the engine reads the file as it is.

    Args:
        folder: where the segments lie; made if it is missing. Two logs may share it if their signals differ.
        signal: what the requests are.
        max_bytes: a segment that has reached this is sealed by `append`.
        before_remove: called with a segment before its file is deleted, for what must outlive it on the disk.
    """

    def __init__(
        self,
        folder: Path,
        signal: Signal,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        before_remove: Callable[[Segment], None] | None = None,
    ) -> None:
        self._folder = folder
        self._signal = signal
        self._max_bytes = max_bytes
        self._before_remove = before_remove
        # Held while the disk works: one append or seal at a time.
        self._writing = threading.Lock()
        # Guards what others look at (sizes, sealed segments), and is never held while the disk works: a receiver's loop asks.
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._path = Path()
        self._size = 0
        self._items = 0
        self._begun = 0.0
        self._sealed: list[Segment] = []
        self._run = new_run()
        self._count = 0
        _make_folder(folder)

    def append(
        self, payloads: Sequence[bytes], items: int = 0, then: Callable[[str], None] | None = None
    ) -> None:
        """Writes requests and syncs them to the disk, all or none; on return they survive a crash.

        Args:
            payloads: serialised export requests, none of them empty.
            items: spans or log records in all of them.
            then: called with the segment's name once they are synced and before anybody can seal or remove it.

        Raises:
            OSError: the disk is full or broken. The segment is cut back to what was there before.
        """
        data = b"".join(frame(payload) for payload in payloads)
        with self._writing:
            if self._descriptor is None:
                self._open()
            descriptor = self._descriptor
            assert descriptor is not None
            try:
                write_all(descriptor, data)
                _sync_data(descriptor)
            except OSError:
                # A half-written request in the middle would hide all that is appended after it.
                self._cut_back(descriptor)
                raise
            with self._lock:
                if not self._size:
                    self._begun = time.time()
                self._size += len(data)
                self._items += items
            if then is not None:
                then(self._path.name)
            if self._size >= self._max_bytes:
                self._seal()

    def seal(self) -> None:
        """Closes the open segment, if it holds anything, so that `sealed` shows it."""
        with self._writing:
            self._seal()

    def sealed(self) -> list[Segment]:
        """The sealed segments that are not removed yet, oldest first."""
        with self._lock:
            return list(self._sealed)

    def remove(self, segment: Segment) -> None:
        """Deletes a segment whose rows are in the store."""
        if self._before_remove is not None:
            self._before_remove(segment)
        segment.path.unlink(missing_ok=True)
        with self._lock:
            self._sealed = [other for other in self._sealed if other.path != segment.path]

    @property
    def size(self) -> int:
        """Bytes in all segments, the open one included."""
        with self._lock:
            return self._size + sum(segment.size for segment in self._sealed)

    @property
    def oldest(self) -> float | None:
        """Unix seconds at which the oldest request that is not removed yet was written; None: there is none."""
        with self._lock:
            begun = [segment.begun for segment in self._sealed]
            return min([*begun, self._begun] if self._size else begun, default=None)

    def close(self) -> None:
        """Seals; the files stay."""
        self.seal()

    def recover(self, valid: Callable[[bytes], bool], quarantine: Path) -> list[Segment]:
        """Takes over the segments of an earlier run; call it once, before the first `append`.

        A file is cut back to its last whole message that `valid` accepts. What was cut off is kept in `quarantine`
        unless it is only zeros (which file systems leave behind a crash); it was never acknowledged, or the disk is bad.

        Returns:
            The segments, oldest first; `sealed` shows them too.
        """
        found = []
        for path in sorted(self._folder.glob(f"{self._signal.value}-*{SUFFIX}")):
            if segment := self._recover_file(path, valid, quarantine):
                found.append(segment)
        with self._lock:
            self._sealed = found + self._sealed
        return found

    def _recover_file(self, path: Path, valid: Callable[[bytes], bool], quarantine: Path) -> Segment | None:
        data, written = path.read_bytes(), path.stat().st_mtime
        good = 0
        for item in frames(data):
            if not valid(bytes(item.payload)):
                break
            good = item.end
        tail = data[good:]
        if tail:
            if tail.strip(b"\0"):
                quarantine.mkdir(parents=True, exist_ok=True)
                (quarantine / f"{path.name}.tail").write_bytes(tail)
            log.warning("%s: cut back to %d bytes, %d bytes behind them are torn", path.name, good, len(tail))
            with path.open("r+b") as file:
                file.truncate(good)
                os.fsync(file.fileno())
        if not good:
            path.unlink()
            return None
        return Segment(path, self._signal, good, 0, written)

    def _open(self) -> None:
        self._count += 1
        self._path = self._folder / f"{self._signal.value}-{self._run}-{self._count:08d}{SUFFIX}"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            # The file's name must survive a crash as well as its bytes.
            _sync_folder(self._folder)
        except OSError:
            # Kept open, the next append would take the name for safe.
            os.close(descriptor)
            self._path.unlink(missing_ok=True)
            raise
        self._descriptor = descriptor
        self._size = self._items = 0

    def _cut_back(self, descriptor: int) -> None:
        try:
            os.ftruncate(descriptor, self._size)
            # Or a crash brings back whole requests that their senders were told to send again.
            _sync_data(descriptor)
        except OSError:
            # Then nothing may follow here: seal it, recovery and the inserter stop at the torn request.
            log.exception("%s cannot be cut back; a new segment is begun", self._path.name)
            os.close(descriptor)
            self._end()

    def _seal(self) -> None:
        if self._descriptor is None or not self._size:
            return
        os.close(self._descriptor)
        self._end()

    def _end(self) -> None:
        with self._lock:
            if self._size:
                self._sealed.append(Segment(self._path, self._signal, self._size, self._items, self._begun))
            self._descriptor = None
            self._size = self._items = 0


def new_run() -> str:
    """A name for a run that no other run has, on this machine or another."""
    return f"{time.time_ns():x}-{os.urandom(4).hex()}"


def _make_folder(folder: Path) -> None:
    """Makes a folder whose own name survives a crash, and those above it that were made just before."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for parent in folder.parents[:_FRESH_PARENTS]:
        # One that we may not read was not made by us.
        with contextlib.suppress(PermissionError):
            _sync_folder(parent)


def _sync_data(descriptor: int) -> None:
    if sys.platform == "darwin":  # which has no fdatasync, and whose fsync leaves it in the drive's cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
