"""Whose segments lie in a spool: each process holds a lock on its run, which the kernel lets go when the process dies."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spanloop_exporter.files import FileLock
from spanloop_exporter.segments import SUFFIX
from spanloop_store.otlp.signals import Signal

_SEGMENT: Final = re.compile(
    r"(traces|logs)-([0-9a-f]+-[0-9a-f]+)-(\d{8,})(?:\.from-(\d+))?" + re.escape(SUFFIX)
)
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


def take_run(folder: Path, run: str) -> FileLock | None:
    """The lock of a run; None where another process holds it, or has just done away with the run.

    Raises:
        OSError: the folder cannot be written to, or its file system has no locks.
    """
    return FileLock.take(folder / f"run-{run}.lock")


def is_live(folder: Path, run: str) -> bool:
    """Whether a process that runs owns it. One of another user's, whose lock we may not touch, counts as one that does."""
    if not (folder / f"run-{run}.lock").exists():
        return False
    try:
        lock = take_run(folder, run)
    except PermissionError:
        return True
    if lock is None:
        return True
    lock.release()
    return False


def segments_in(folder: Path) -> list[SpoolFile]:
    """All segments of a spool, those that were written to longest ago first; empty where there is no folder."""
    found = []
    for entry in _scan(folder):
        if match := _SEGMENT.fullmatch(entry.name):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # shipped meanwhile
            if not stat.S_ISREG(status.st_mode):
                continue  # nothing that we wrote
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


def arrived_of(path: Path) -> int:
    """How many bytes at a segment's beginning the target has already; its name says so."""
    match = _SEGMENT.fullmatch(path.name)
    return int(match[4] or 0) if match else 0


def with_arrived(path: Path, size: int) -> Path:
    """The name of a segment of which so many bytes have arrived."""
    match = _SEGMENT.fullmatch(path.name)
    return path.with_name(f"{match[1]}-{match[2]}-{match[3]}.from-{size}{SUFFIX}") if match else path


def _age(run: str) -> tuple[int, str]:
    return int(run.partition("-")[0], 16), run


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
