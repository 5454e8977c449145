"""The folders of a collector's own files: one log each, also for several collectors of one server on one machine."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spanloop_collector.repeats import Repeats
from spanloop_exporter.files import FileLock
from spanloop_exporter.segments import SUFFIX, SegmentLog
from spanloop_store import StoreUrl
from spanloop_store.errors import InvalidOtlp, StoreLocked
from spanloop_store.otlp.check import check_protobuf
from spanloop_store.otlp.signals import Signal
from spanloop_store.otlp.transports import PART_SUFFIX

log = logging.getLogger(__name__)

_LOCK = "lock"
_MAX_NEIGHBOURS = 64  # collectors of one server on one machine


@dataclass(frozen=True)
class Folders:
    """Where capture keeps its own files."""

    log: Path
    quarantine: Path


@dataclass(frozen=True)
class Logs:
    """The write-ahead logs of one collector, and what it logged before."""

    folders: Folders
    segments: dict[Signal, SegmentLog]
    repeats: Repeats


def candidates(url: StoreUrl, log_folder: Path | None = None) -> list[Folders]:
    """The folders that a collector of this store may use, in the order in which it tries them.

    Args:
        url: the store. An embedded one has a single collector, and the folders lie inside it. A server may have several on
            one machine: theirs lie under ~/.spanloop/collector, numbered, in a folder that is named after the server.
        log_folder: `--log`: this one and no other; the quarantine lies inside it.
    """
    if log_folder is not None:
        return [Folders(log_folder, log_folder / "quarantine")]
    if url.embedded:
        return [Folders(url.log_path, url.quarantine_path)]
    name = hashlib.sha256(url.redacted().encode()).hexdigest()[:16]
    base = Path.home() / ".spanloop" / "collector" / name
    first = Folders(base / "log", base / "quarantine")
    numbered = (base / f"{number}" for number in range(2, _MAX_NEIGHBOURS + 1))
    return [first, *(Folders(folder / "log", folder / "quarantine") for folder in numbered)]


@contextlib.contextmanager
def open_logs(url: StoreUrl, log_folder: Path | None = None) -> Iterator[Logs]:
    """The first of the candidates that no other process has, its logs recovered; closed in the end.

    What a collector left that runs no more, in another of the folders, is moved in and replayed too.

    Raises:
        StoreLocked: other processes write to all of them.
    """
    choices = candidates(url, log_folder)
    with contextlib.ExitStack() as stack:
        for folders in choices:
            if stack.enter_context(_lock(folders.log)):
                break
        else:
            raise StoreLocked(
                f"another collector writes to {choices[0].log}; it is untouched",
                "stop it, or give this one a folder of its own: --log FOLDER",
            )
        for other in choices:
            if other != folders and other.log.is_dir():
                _adopt(other, folders)
        for part in folders.quarantine.glob(f"*{PART_SUFFIX}"):
            part.unlink()
        logs = recovered(folders)
        stack.callback(logs.repeats.close)
        for segments in logs.segments.values():
            stack.callback(segments.close)
        yield logs


def recovered(folders: Folders) -> Logs:
    """Opens the logs of folders that this process holds, and takes over what an earlier run left there."""
    repeats = Repeats(folders.log)
    if left := sum(path.stat().st_size for path in folders.log.glob(f"*{SUFFIX}")):
        log.info("reading %d bytes that an earlier run left in %s", left, folders.log)
    logs = {kind: SegmentLog(folders.log, kind, before_remove=repeats.removing) for kind in Signal}
    for kind, segments in logs.items():
        found = segments.recover(partial(_is_request, kind), folders.quarantine)
        repeats.recover(found)
        if found:
            log.info("replaying %d segments of %s, %d bytes", len(found), kind.value, segments.size)
    return Logs(folders, logs, repeats)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock; False: another process has it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock.take(folder / _LOCK)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def _adopt(other: Folders, own: Folders) -> None:
    """Moves the segments of a collector that runs no more. Their names, the tokens of their inserts, stay."""
    with _lock(other.log) as free:
        if not free:
            return
        for path in sorted(other.log.glob(f"*{SUFFIX}")):
            log.info("taking over %s, which another collector left", path)
            path.rename(own.log / path.name)


def _is_request(kind: Signal, payload: bytes) -> bool:
    try:
        check_protobuf(kind, payload)
    except InvalidOtlp:
        return False
    return True
