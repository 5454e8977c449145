"""Whose segments lie in a spool: each process holds a lock on its run, which the kernel lets go when the process dies."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spanloop_exporter.segments import SUFFIX
from spanloop_store.otlp.signals import Signal

_SEGMENT: Final = re.compile(r"(traces|logs)-([0-9a-f]+-[0-9a-f]+)-(\d{8,})" + re.escape(SUFFIX))
_LOCK: Final = re.compile(r"run-([0-9a-f]+-[0-9a-f]+)\.lock")


@dataclass(frozen=True)
class SpoolFile:
    """A segment in a spool's folder, whoever owns it."""

    path: Path
    signal: Signal
    run: str
    count: int  # of its run and signal, from 1; the one with the highest may still be written to
    size: int  # bytes
    written: int  # when it was last written to, nanoseconds since 1970


class RunLock:
    """Proof that this process owns a run. Do not make it: `RunLock.take`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path, run: str) -> RunLock | None:
        """The lock of a run; None where another process holds it, or has just done away with the run.

        flock, and not a pid in a file: a pid may belong to another program by now, or to another container.

        Raises:
            OSError: the folder cannot be written to, or its file system has no locks.
        """
        path = folder / f"run-{run}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return cls(path, descriptor)
        except BlockingIOError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def in_place(self) -> bool:
        """Whether its file is still the one that others see; not so when somebody emptied the folder."""
        try:
            seen = self._path.stat()
        except FileNotFoundError:
            return False
        return seen.st_ino == os.fstat(self._descriptor).st_ino

    def release(self, *, finished: bool) -> None:
        """Lets go.

        Args:
            finished: the run has no segments any more, and its lock file goes too.
        """
        if finished:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def abandon(self) -> None:
        """For a forked child: closes its copy. The lock stays the parent's, since both share one open file."""
        os.close(self._descriptor)


def segments_in(folder: Path) -> list[SpoolFile]:
    """All segments of a spool, those that were written to longest ago first; empty where there is no folder."""
    found = []
    for entry in _scan(folder):
        if match := _SEGMENT.fullmatch(entry.name):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue  # shipped meanwhile
            found.append(
                SpoolFile(
                    path=folder / entry.name,
                    signal=Signal(match[1]),
                    run=match[2],
                    count=int(match[3]),
                    size=status.st_size,
                    written=status.st_mtime_ns,
                )
            )
    return sorted(found, key=lambda file: (file.written, file.path.name))


def runs_in(folder: Path) -> list[str]:
    """All runs that have a segment or a lock there, oldest first."""
    found = set()
    for entry in _scan(folder):
        if match := _SEGMENT.fullmatch(entry.name):
            found.add(match[2])
        elif match := _LOCK.fullmatch(entry.name):
            found.add(match[1])
    return sorted(found, key=_age)


def _age(run: str) -> tuple[int, str]:
    return int(run.partition("-")[0], 16), run


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
