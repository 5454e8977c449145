"""Which requests were logged before: a bounded window of content hashes that survives restarts.

OTLP has no request id: a sender that saw no answer sends the same bytes again ("Duplicate Data" in its specification).
Such a request is acknowledged again, and neither logged nor counted again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import struct
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

from spanloop_exporter.segments import Segment
from spanloop_store.otlp.frames import frames
from spanloop_store.otlp.signals import Signal, message_type

log = logging.getLogger(__name__)

# Requests. 10 agents that send a batch a second fill it in 3.6 hours; a resend comes seconds to minutes after the loss.
# In memory 130 bytes each, on the disk 16.
WINDOW = 1 << 17
FILE_NAME = "repeats"
_DIGEST_BYTES = 16
_EMPTY = bytes(_DIGEST_BYTES)
_MAGIC = b"SPLREP01"
# Magic, seed of the hash, digests ever written (its remainder by the capacity is where the next one goes), capacity.
_HEADER = struct.Struct("<8sQQQ")


class Repeats:
    """The window. Thread-safe: receivers add to it, the writer writes it down.

    A digest comes in once its request is synced to the log. While its segment lives, the segment itself is the record;
    before the segment is removed, its digests go into a file of fixed size, so that this needs no space on a full disk.

    Args:
        folder: where the file lies: the folder of the log.
        capacity: requests to remember.
    """

    def __init__(self, folder: Path, capacity: int = WINDOW) -> None:
        self._path = folder / FILE_NAME
        self._capacity = capacity
        # Guards what is in memory, and is never held while the disk works: the receivers' loop asks for it.
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # guards the file; taken first
        self._known: set[bytes] = set()
        self._order: deque[bytes] = deque()
        self._live: dict[str, list[bytes]] = {}  # by segment: what is not in the file yet
        self._written = 0
        self._descriptor: int | None = None
        # Keyed, so that nobody can prepare a request that hides another's.
        self._seed = secrets.randbits(64)
        if not self._load():
            # On a full disk it is made later: what is in the log has to go first.
            with contextlib.suppress(OSError):
                self._make()

    def digest(self, signal: Signal, payload: bytes) -> bytes:
        """The content hash of a request's protobuf (XXH3, 128 bits), the same in every encoding it was sent in."""
        # Traces and logs share their outer field numbers: a request that is valid as both is two requests.
        seed = self._seed ^ (signal is Signal.LOGS)
        digest: bytes = xxhash.xxh3_128_digest(payload, seed)
        return digest

    def __contains__(self, digest: bytes) -> bool:
        with self._lock:
            return digest in self._known

    def logged(self, digests: Sequence[bytes], segment: str) -> None:
        """These requests are synced, in the segment of that name."""
        with self._lock:
            self._live.setdefault(segment, []).extend(digests)
            self._remember(digests)

    def recover(self, segments: Iterable[Segment]) -> None:
        """Takes in the requests of segments that an earlier run left."""
        for segment in segments:
            data = segment.path.read_bytes()
            self.logged(
                [self.digest(segment.signal, bytes(item.payload)) for item in frames(data)], segment.name
            )

    def removing(self, segment: Segment) -> None:
        """Writes a segment's digests down; to be called before its file is deleted.

        A file that cannot be written does not keep the segment: its rows are in the store, and on a full disk it is the
        very thing that has to go. Its requests are then forgotten at the next restart, and the log says so.
        """
        with self._writing:
            with self._lock:
                digests = self._live.pop(segment.name, [])
            if not digests:
                return
            try:
                if self._descriptor is None:
                    self._make()
                self._write(digests)
            except OSError as error:
                log.warning(
                    "%s cannot be written (%s): resends of %d requests are not recognised after a restart",
                    self._path,
                    error.strerror,
                    len(digests),
                )

    def close(self) -> None:
        """Closes the file."""
        with self._writing:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None

    def _remember(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            if digest not in self._known:
                self._known.add(digest)
                self._order.append(digest)
        while len(self._order) > self._capacity:
            self._known.discard(self._order.popleft())

    def _load(self) -> bool:
        """Opens the file of an earlier run; False where there is none, or it is not ours."""
        try:
            descriptor = os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            return False
        with os.fdopen(os.dup(descriptor), "rb") as file:
            found = _parse(file.read(), self._capacity)
        if found is None:
            os.close(descriptor)
            log.warning("%s is not what it should be: requests before this start are forgotten", self._path)
            return False
        self._descriptor = descriptor
        self._seed, self._written, digests = found
        self._remember(digests)
        return True

    def _make(self) -> None:
        """Makes the file in its full size."""
        temporary = self._path.with_suffix(".part")
        descriptor = -1
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            header = _HEADER.pack(_MAGIC, self._seed, 0, self._capacity)
            _pwrite(descriptor, header + _EMPTY * self._capacity, 0)
            os.fsync(descriptor)
            temporary.replace(self._path)
        except OSError:
            if descriptor >= 0:
                os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        self._descriptor, self._written = descriptor, 0

    def _write(self, digests: list[bytes]) -> None:
        assert self._descriptor is not None
        rest = digests[-self._capacity :]
        while rest:
            slot = self._written % self._capacity
            chunk, rest = rest[: self._capacity - slot], rest[self._capacity - slot :]
            _pwrite(self._descriptor, b"".join(chunk), _HEADER.size + slot * _DIGEST_BYTES)
            self._written += len(chunk)
        header = _HEADER.pack(_MAGIC, self._seed, self._written, self._capacity)
        _pwrite(self._descriptor, header, 0)
        os.fsync(self._descriptor)


def told_apart(signal: Signal, payload: bytes) -> bool:
    """Whether two requests with these bytes are one. Spans have ids; log records without any time may be two events."""
    if signal is Signal.TRACES:
        return True
    request = message_type(signal).FromString(payload)
    return all(
        record.time_unix_nano or record.observed_time_unix_nano
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    )


def _parse(data: bytes, capacity: int) -> tuple[int, int, list[bytes]] | None:
    """(seed, digests ever written, digests from the oldest to the newest); None: no file of ours."""
    if len(data) != _HEADER.size + capacity * _DIGEST_BYTES:
        return None
    magic, seed, written, size = _HEADER.unpack_from(data)
    if magic != _MAGIC or size != capacity:
        return None
    oldest = written % capacity if written > capacity else 0
    slots = [data[start : start + _DIGEST_BYTES] for start in range(_HEADER.size, len(data), _DIGEST_BYTES)]
    return seed, written, [slot for slot in slots[oldest:] + slots[:oldest] if slot != _EMPTY]


def _pwrite(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done
