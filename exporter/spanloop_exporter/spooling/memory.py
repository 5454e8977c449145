"""Where spans wait that no disk takes: a queue in memory, bounded, and lost with the process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from spanloop_exporter.segments import SUFFIX, new_run
from spanloop_exporter.spooling.batches import Batch
from spanloop_exporter.spooling.bounds import count_frames
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.signals import Signal

MAX_BYTES: Final = 64 << 20  # a sixteenth of the spool on a disk: this is the agent's own memory
_BATCH_BYTES: Final = 4 << 20


class MemoryQueue:
    """First in, first out; the oldest are dropped when it is full. Thread-safe and reentrant.

    Args:
        max_bytes: of all that waits.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Empties it; for a forked child, whose parent sends what is in it."""
        self._lock = threading.RLock()
        self._waiting: dict[Signal, deque[bytes]] = {signal: deque() for signal in Signal}
        self._bytes = 0
        self._fixed: dict[Signal, Batch] = {}

    def __len__(self) -> int:
        """Spans and log records that wait."""
        with self._lock:
            fixed = sum(count_frames(batch.data)[0] for batch in self._fixed.values())
            return fixed + sum(len(waiting) for waiting in self._waiting.values())

    def put(self, signal: Signal, payloads: Sequence[bytes]) -> int:
        """Adds requests of one item each; returns how many old ones had to go for them."""
        dropped = 0
        with self._lock:
            for payload in payloads:
                framed = frame(payload)
                self._waiting[signal].append(framed)
                self._bytes += len(framed)
            for waiting in self._waiting.values():
                while self._bytes > self._max_bytes and waiting:
                    self._bytes -= len(waiting.popleft())
                    dropped += 1
        return dropped

    def batch(self, signal: Signal) -> Batch | None:
        """The next batch; the same one until it is removed. None: nothing waits."""
        with self._lock:
            known = self._fixed.get(signal)
            if known is not None:
                return replace(known, again=True)
            taken = bytearray()
            waiting = self._waiting[signal]
            while waiting and len(taken) < _BATCH_BYTES:
                taken += waiting.popleft()
            if not taken:
                return None
            name = f"{signal.value}-{new_run()}-00000000{SUFFIX}"
            self._fixed[signal] = Batch(name, signal, bytes(taken), None, 0, again=False)
            return self._fixed[signal]

    def remove(self, batch: Batch) -> None:
        """Forgets a batch that has arrived."""
        with self._lock:
            self._bytes -= len(batch.data)
            self._fixed.pop(batch.signal, None)
