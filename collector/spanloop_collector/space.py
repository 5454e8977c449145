"""Whether there is room for another request: in the log, on the disk, in memory; with a warning before there is none."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spanloop_collector.errors import Throttled

log = logging.getLogger(__name__)

MAX_LOG_BYTES = 4 << 30  # of segments that the store has not taken; beyond it senders are asked to wait
# The engine needs room to insert what is acknowledged already, and to merge.
MIN_FREE_BYTES = 1 << 30
# Of requests that are being received and checked. Two of the largest, packed and unpacked, fit.
MAX_IN_FLIGHT_BYTES = 256 << 20
_WARN_LOG = 0.8  # of max_log_bytes
_WARN_FREE = 2.0  # times min_free_bytes


@dataclass(frozen=True)
class Verdict:
    """What there is room for. Both texts are empty where all is well."""

    refuse: str  # why no request is taken now
    warning: str  # why that may come soon
    free_bytes: int  # the least of the folders' file systems


class Space:
    """The limits of one collector.

    Args:
        folders: where log and store lie; each file system is looked at.
        max_log_bytes: of acknowledged bytes that are not in the store.
        min_free_bytes: free space to leave; 0: all may be used.
        max_in_flight_bytes: of requests in memory.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        max_log_bytes: int = MAX_LOG_BYTES,
        min_free_bytes: int = MIN_FREE_BYTES,
        max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES,
    ) -> None:
        self._folders = list(folders)
        self.max_log_bytes = max_log_bytes
        self.min_free_bytes = min_free_bytes
        self._max_in_flight_bytes = max_in_flight_bytes
        self.in_flight_bytes = 0
        self._said = ""

    def look(self, log_bytes: int) -> Verdict:
        """Looks at the disk now (microseconds) and says in the log what has changed since the last look."""
        free, where = min(((_free(folder), folder) for folder in self._folders), default=(0, Path()))
        refuse = warning = ""
        if log_bytes > self.max_log_bytes:
            refuse = f"{_size(log_bytes)} wait for the store, the limit is {_size(self.max_log_bytes)}"
        elif self._folders and free < self.min_free_bytes:
            refuse = f"{_size(free)} are free at {where}, {_size(self.min_free_bytes)} are to stay free"
        elif log_bytes > _WARN_LOG * self.max_log_bytes:
            warning = (
                f"{_size(log_bytes)} wait for the store; at {_size(self.max_log_bytes)} requests are refused"
            )
        elif self._folders and free < _WARN_FREE * self.min_free_bytes:
            warning = (
                f"{_size(free)} are free at {where}; below {_size(self.min_free_bytes)} requests are refused"
            )
        # The numbers change with every look: what is said once is which of the two it is.
        state = "refuse" if refuse else "warning" if warning else ""
        if state != self._said:
            if refuse:
                log.error("requests are refused until there is room: %s", refuse)
            elif warning:
                log.warning("%s", warning)
            else:
                log.warning("there is room again: requests are taken")
            self._said = state
        return Verdict(refuse, warning, free)

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[InFlight]:
        """Room in memory for one request; given back at the end."""
        request = InFlight(self, self._max_in_flight_bytes)
        try:
            yield request
        finally:
            self.in_flight_bytes -= request.size


class InFlight:
    """The part of the memory that one request takes."""

    def __init__(self, space: Space, limit: int) -> None:
        self._space = space
        self._limit = limit
        self.size = 0

    def grow(self, size: int) -> None:
        """Takes `size` bytes more.

        Raises:
            Throttled: other requests fill it. Alone, a request of any permitted size fits.
        """
        others = self._space.in_flight_bytes - self.size
        if others and self._space.in_flight_bytes + size > self._limit:
            raise Throttled(f"{_size(self._limit)} of requests are being worked on", retry_after_s=1)
        self._space.in_flight_bytes += size
        self.size += size


def _free(folder: Path) -> int:
    """Bytes that this user may still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _size(count: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
