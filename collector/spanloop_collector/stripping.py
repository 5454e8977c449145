"""Raw OTLP in files without what is to be erased: quarantine of the collector, spools of agents on this machine."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from spanloop_exporter.files import FileLock, write_private
from spanloop_exporter.spooling.bounds import REASON_SUFFIX, refused_in
from spanloop_exporter.spooling.runs import SpoolFile, arrived_of, segments_in, take_run
from spanloop_store.disk import sync_folder, write_synced
from spanloop_store.otlp.frames import SEGMENT_SUFFIX, frame, frames
from spanloop_store.otlp.signals import Signal, item_groups, keep_only, message_type
from spanloop_store.otlp.values import as_text
from spanloop_store.subjects import ATTRIBUTES, FIELDS, PLAIN, Subject

_REASON: Final = "what was said of it was erased with some of its content\n"


@dataclass(frozen=True)
class FileHit:
    """A file that holds some of it.

    Args:
        path: where.
        items: spans and log records; 0: bytes that cannot be read and hold the id.
        kept: why it was left as it is; empty: it was not.
    """

    path: str
    items: int
    kept: str = ""


@dataclass(frozen=True)
class Wanted:
    """What is looked for in files.

    Args:
        subject: what was asked for.
        traces: ids of traces of it that are known already.
    """

    subject: Subject
    traces: Collection[str]

    def __contains__(self, item: tuple[bytes, Any, Any]) -> bool:
        """Whether an item (its trace id, its attributes, its resource's) is of it."""
        trace, attributes, resource = item
        return trace.hex() in self.traces or any(
            self._names(pair.key, pair.value) for group in (attributes, resource) for pair in group
        )

    def _names(self, key: str, value: Any) -> bool:
        """Whether an attribute names the session or user, by its text, as the tables have it."""
        kind = self.subject.kind
        if key in ATTRIBUTES.get(kind, ()):
            return as_text(value) in self.subject.ids
        fields = [field for attribute, field in FIELDS.get(kind, ()) if attribute == key]
        if not fields:
            return False
        try:
            document = json.loads(as_text(value))
        except ValueError:
            return False
        return isinstance(document, dict) and any(
            isinstance(found := document.get(field), str) and found in self.subject.ids for field in fields
        )

    def in_bytes(self, data: bytes) -> bool:
        """Whether bytes that nothing can read hold an id of it."""
        ids = [bytes.fromhex(trace) for trace in self.traces] + [trace.encode() for trace in self.traces]
        if self.subject.kind != "trace":
            ids += [plain.encode() for plain in self.subject.ids if len(plain) >= PLAIN]
        return any(id in data for id in ids)


@dataclass
class Stripped:
    """A request without what was wanted.

    Args:
        payload: what is left; empty: nothing.
        removed: spans and log records.
        traces: of what was removed.
    """

    payload: bytes
    removed: int
    traces: set[str]


def strip(signal: Signal, payload: bytes, wanted: Wanted) -> Stripped:
    """Takes spans or log records out of a request.

    Raises:
        DecodeError: it is no request of this signal.
    """
    request = message_type(signal).FromString(payload)
    traces: set[str] = set()
    removed = left = 0
    for resource, items in item_groups(signal, request):
        keep = []
        for item in items:
            if (item.trace_id, item.attributes, resource) in wanted:
                removed += 1
                if item.trace_id:
                    traces.add(item.trace_id.hex())
            else:
                keep.append(item)
        if len(keep) < len(items):
            keep_only(items, keep)
        left += len(keep)
    if not removed:
        return Stripped(payload, 0, traces)
    return Stripped(request.SerializeToString() if left else b"", removed, traces)


def in_quarantine(folder: Path, wanted: Wanted, *, change: bool) -> tuple[list[FileHit], set[str]]:
    """Looks through a quarantine, and takes what is wanted out of it: (files, traces).

    What cannot be read and holds an id is deleted as a whole.
    """
    hits: list[FileHit] = []
    traces: set[str] = set()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.iterdir()):
            if path.suffix not in (SEGMENT_SUFFIX, ".tail"):
                continue
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            done = _strip_payload(path, data, wanted)
            if done is None:
                if wanted.in_bytes(data):
                    hits.append(FileHit(str(path), 0))
                    if change:
                        _replace(path, b"")
                continue
            if done.removed:
                hits.append(FileHit(str(path), done.removed))
                traces |= done.traces
                if change:
                    _replace(path, done.payload)
    return hits, traces


def _strip_payload(path: Path, data: bytes, wanted: Wanted) -> Stripped | None:
    """None: it cannot be read."""
    name = path.name.partition("-")[0]
    if path.suffix != SEGMENT_SUFFIX or name not in tuple(Signal):
        return None
    try:
        return strip(Signal(name), data, wanted)
    except DecodeError:
        return None


def in_spool(folder: Path, wanted: Wanted, *, change: bool) -> tuple[list[FileHit], set[str]]:
    """Looks through a spool, and takes what is wanted out of what no living agent owns: (files, traces).

    What a running agent has there it sends or appends to at any moment: it is left, and erased when it arrives.
    """
    hits: list[FileHit] = []
    traces: set[str] = set()

    def look(signal: Signal, path: Path, live: bool) -> None:
        found = _segment(signal, path, wanted, change=change and not live)
        if found.removed:
            kept = "a running agent owns it; what it sends is erased when it arrives" if live else ""
            hits.append(FileHit(str(path), found.removed, kept))
            traces.update(found.traces)

    files = segments_in(folder)
    for run in dict.fromkeys(file.run for file in files):
        with _owned(folder, run) as mine:
            # Listed again: the one who had the lock before may have sent some, and renamed others.
            for file in _of_run(segments_in(folder), run):
                look(file.signal, file.path, not mine)
    for path in refused_in(folder):
        look(Signal(path.name.partition("-")[0]), path, live=False)
    return hits, traces


def _of_run(files: Sequence[SpoolFile], run: str) -> list[SpoolFile]:
    return [file for file in files if file.run == run]


@contextlib.contextmanager
def _owned(folder: Path, run: str) -> Iterator[bool]:
    """Holds a run that no living process has; False: one has it, or it belongs to another user."""
    lock: FileLock | None = None
    with contextlib.suppress(PermissionError):
        lock = take_run(folder, run)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release(delete=not _of_run(segments_in(folder), run))


def _segment(signal: Signal, path: Path, wanted: Wanted, *, change: bool) -> Stripped:
    """One segment of a spool: a request a span, of which the target may have the first ones already."""
    total = Stripped(b"", 0, set())
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return total
    arrived = arrived_of(path)
    kept: list[bytes] = []
    open_bytes = 0  # that the target does not have yet
    for item in frames(data):
        payload = bytes(item.payload)
        try:
            done = strip(signal, payload, wanted)
        except DecodeError:
            done = Stripped(b"", 1, set()) if wanted.in_bytes(payload) else Stripped(payload, 0, set())
        total.removed += done.removed
        total.traces |= done.traces
        if item.end <= arrived:
            # It is never read again, and as long as it was: the name of the file says where to go on, and a new name beside
            # a new content would be two steps between which this may be killed.
            kept.append(frame(bytes(len(payload)) if done.removed else payload))
        elif done.payload:
            kept.append(frame(done.payload))
            open_bytes += len(kept[-1])
    if total.removed and change:
        _replace(path, b"".join(kept) if open_bytes else b"")
    return total


def _replace(path: Path, data: bytes) -> None:
    """Puts other bytes in a file's place, or deletes it, so that a crash leaves the one or the other.

    What was said of it goes first: it may quote the content, and is not looked for again once the content is gone.
    """
    reason = Path(f"{path}{REASON_SUFFIX}")
    if reason.exists():
        write_private(reason, _REASON.encode() if data else b"")
    if data:
        temporary = path.with_name(f".{path.name}.erasing")
        write_private(temporary, b"")
        write_synced(temporary, data)
        temporary.replace(path)
    else:
        path.unlink(missing_ok=True)
        reason.unlink(missing_ok=True)
    sync_folder(path.parent)
