"""Keeps a spool within its bytes and its age, over all processes that use it, and keeps account of what was lost or refused."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from spanloop_exporter.files import FileLock, write_private
from spanloop_exporter.segments import SUFFIX
from spanloop_exporter.spooling.runs import arrived_of, is_live, segments_in
from spanloop_store.otlp.frames import frames

log = logging.getLogger(__name__)

REFUSED: Final = "refused"
REASON_SUFFIX: Final = ".reason.txt"
_ACCOUNT: Final = "account.json"
_LOCK: Final = "account.lock"
_FOR_EVER_S: Final = 1e10  # three hundred years
# Reasons of the account.
FULL: Final = "over SPANLOOP_SPOOL_MAX_BYTES"
OLD: Final = "over SPANLOOP_SPOOL_MAX_AGE_S"
TORN: Final = "cut off by the writer's death"
DELETED: Final = "deleted from the spool by somebody else"
MEMORY: Final = "no disk to spool to, and the memory for them ran out or the process ended"


@dataclass
class Account:
    """Spans and log records that did not simply arrive, by reason, since the spool was made."""

    dropped: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    last: str = ""  # what happened last, and when

    def add(self, later: Account) -> None:
        """Takes in what happened since."""
        for reason, items in later.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + items
        self.refused += later.refused
        self.last = later.last or self.last


@dataclass(frozen=True)
class Report:
    """What a spool holds, for `spanloop doctor` and `spanloop import`."""

    segments: int
    bytes: int
    live_segments: int  # of them, those of processes that still run
    refused_segments: int
    refused_bytes: int
    account: Account


class Bookkeeper:
    """Adds to a spool's account; threads may share one. Never waits: what cannot be written now is written next time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        # A finalizer may end a span, and so count one, in the middle of any of our own lines: that waits here.
        self._news: deque[Account] = deque()
        self._busy = False
        self._unwritten = Account()
        self._said: set[str] = set()

    def dropped(self, reason: str, items: int, what: str) -> None:
        """Counts spans or log records that are lost for good, and logs the first of each reason.

        Args:
            reason: one of this module's constants.
            items: how many.
            what: the segment, or whatever else held them.
        """
        self._news.append(Account({reason: items}, last=f"{_now()}: dropped {items} of {what}: {reason}"))
        self.write()
        if reason not in self._said:
            self._said.add(reason)
            # Without the lock: a handler of the agent's log may hold its own, and wait for ours.
            log.warning(
                "spans are dropped (%d of %s): %s; further ones are only counted, in %s",
                items, what, reason, self._folder / _ACCOUNT,
            )  # fmt: skip

    def refused(self, items: int, what: str) -> None:
        """Counts what the target refused for good and the `refused` folder keeps."""
        self._news.append(Account(refused=items, last=f"{_now()}: refused {items}: {what}"))
        self.write()

    def write(self) -> None:
        """Writes what is counted, if nobody else is writing."""
        with self._lock:
            if self._busy:
                return
            self._busy = True
            try:
                written = True
                while written and (self._news or self._unwritten != Account()):
                    while self._news:
                        self._unwritten.add(self._news.popleft())
                    written = self._add_to_file()
            finally:
                self._busy = False

    def _add_to_file(self) -> bool:
        with contextlib.suppress(OSError), _locked(self._folder) as mine:
            if mine:
                total = read_account(self._folder)
                total.add(self._unwritten)
                temporary = self._folder / f".{_ACCOUNT}.{os.getpid()}"
                write_private(temporary, (json.dumps(asdict(total), indent=2) + "\n").encode())
                temporary.replace(self._folder / _ACCOUNT)
                self._unwritten = Account()
                return True
        return False


def enforce(
    folder: Path, max_bytes: int, max_age_s: float, keep: Collection[Path], books: Bookkeeper
) -> None:
    """Deletes the oldest segments until the spool is within its bounds, refused ones included.

    Kept are `keep` and, of every other process that still runs, the newest segment of each signal: it may be open.

    Raises:
        OSError: the folder cannot be read or written to.
    """
    with _locked(folder) as mine:
        if not mine:
            return  # another process is at it
        files = segments_in(folder)
        refused = refused_in(folder)
        sizes = [(file.written, file.size, file.path) for file in files]
        sizes += [(path.stat().st_mtime_ns, path.stat().st_size, path) for path in refused]
        total = sum(size for _, size, _ in sizes)
        oldest = time.time_ns() - round(min(max_age_s, _FOR_EVER_S) * 1e9)
        doomed = [
            (path, size, OLD if written < oldest else FULL)
            for written, size, path in sorted(sizes)
            if path not in keep
        ]
        newest = {(file.run, file.signal): file for file in sorted(files, key=lambda file: file.count)}
        maybe_open = {file.path: file for file in newest.values()}
        for path, size, reason in doomed:
            if total <= max_bytes and reason == FULL:
                break
            if path in maybe_open and is_live(folder, maybe_open[path].run):
                continue
            if _delete(path, reason, books):
                total -= size


def refused_in(folder: Path) -> list[Path]:
    """The segments that a target refused."""
    return sorted((folder / REFUSED).glob(f"*{SUFFIX}"))


def read_account(folder: Path) -> Account:
    """The account of a spool; an empty one where nothing ever went wrong."""
    try:
        record: Any = json.loads((folder / _ACCOUNT).read_text(encoding="utf-8"))
        return Account(
            dropped=dict(record["dropped"]), refused=int(record["refused"]), last=str(record["last"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Account()


def report(folder: Path) -> Report:
    """What lies in a spool now. Nothing is changed; a folder that is not there is an empty spool."""
    files = segments_in(folder)
    live = {run: is_live(folder, run) for run in {file.run for file in files}}
    refused = refused_in(folder)
    return Report(
        segments=len(files),
        bytes=sum(file.size for file in files),
        live_segments=sum(live[file.run] for file in files),
        refused_segments=len(refused),
        refused_bytes=sum(path.stat().st_size for path in refused),
        account=read_account(folder),
    )


def count_frames(data: bytes) -> tuple[int, int]:
    """Whole requests in a segment (one span or log record each), and the offset behind the last."""
    items = end = 0
    for item in frames(data):
        items, end = items + 1, item.end
    return items, end


def _delete(path: Path, reason: str, books: Bookkeeper) -> bool:
    try:
        items, _ = count_frames(path.read_bytes()[arrived_of(path) :])
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:  # another user's
        log.debug("%s stays: %s", path, error)
        return False
    Path(f"{path}{REASON_SUFFIX}").unlink(missing_ok=True)
    books.dropped(reason, items, path.name)
    return True


_in_here = threading.local()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this process has the account and the deleting to itself meanwhile; never waits."""
    if getattr(_in_here, "folder", None) == folder:
        yield True  # `enforce` keeps the account too
        return
    lock = FileLock.take(folder / _LOCK)
    if lock is None:
        yield False
        return
    _in_here.folder = folder
    try:
        yield True
    finally:
        _in_here.folder = None
        lock.release()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
