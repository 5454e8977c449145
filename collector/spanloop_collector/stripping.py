"""Raw OTLP in files without what is to be erased: quarantine of the collector, spools of agents on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from spanloop_exporter.files import FileLock, write_private
from spanloop_exporter.spooling.bounds import REASON_SUFFIX, refused_in
from spanloop_exporter.spooling.runs import SpoolFile, arrived_of, segments_in, take_run, with_arrived
from spanloop_store.disk import sync_folder
from spanloop_store.otlp.frames import SEGMENT_SUFFIX, frame, frames
from spanloop_store.otlp.signals import Signal, message_type
from spanloop_store.subjects import ATTRIBUTES, Subject

_REASON: Final = "what was said of it was erased with some of its content\n"
_PLAIN: Final = (
    6  # characters of an id from which on bytes that hold it, and cannot be read, are taken for its
)


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
        if trace.hex() in self.traces:
            return True
        keys = ATTRIBUTES.get(self.subject.kind, ())
        return any(
            pair.key in keys and pair.value.string_value in self.subject.ids
            for group in (attributes, resource)
            for pair in group
        )

    def in_bytes(self, data: bytes) -> bool:
        """Whether bytes that nothing can read hold an id of it."""
        ids = [bytes.fromhex(trace) for trace in self.traces] + [trace.encode() for trace in self.traces]
        if self.subject.kind != "trace":
            ids += [plain.encode() for plain in self.subject.ids if len(plain) >= _PLAIN]
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
    for resource, items in _groups(signal, request):
        keep = []
        for item in items:
            if (item.trace_id, item.attributes, resource) in wanted:
                removed += 1
                if item.trace_id:
                    traces.add(item.trace_id.hex())
            else:
                keep.append(item)
        if len(keep) < len(items):
            keep = [type(item).FromString(item.SerializeToString()) for item in keep]
            del items[:]
            items.extend(keep)
        left += len(keep)
    if not removed:
        return Stripped(payload, 0, traces)
    return Stripped(request.SerializeToString() if left else b"", removed, traces)


def _groups(signal: Signal, request: Any) -> Iterator[tuple[Any, Any]]:
    if signal is Signal.TRACES:
        for group in request.resource_spans:
            for scope in group.scope_spans:
                yield group.resource.attributes, scope.spans
        return
    for group in request.resource_logs:
        for scope in group.scope_logs:
            yield group.resource.attributes, scope.log_records


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
            reason = path.with_name(path.name.removesuffix(SEGMENT_SUFFIX) + REASON_SUFFIX)
            done = _strip_payload(path, data, wanted)
            if done is None:
                if wanted.in_bytes(data):
                    hits.append(FileHit(str(path), 0))
                    if change:
                        _replace(path, b"", reason)
                continue
            if done.removed:
                hits.append(FileHit(str(path), done.removed))
                traces |= done.traces
                if change:
                    _replace(path, done.payload, reason)
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
    still_arrived = 0
    for item in frames(data):
        payload = bytes(item.payload)
        try:
            done = strip(signal, payload, wanted)
        except DecodeError:
            done = Stripped(b"", 1, set()) if wanted.in_bytes(payload) else Stripped(payload, 0, set())
        total.removed += done.removed
        total.traces |= done.traces
        if done.payload:
            kept.append(frame(done.payload))
            still_arrived += len(kept[-1]) if item.end <= arrived else 0
    if total.removed and change:
        rest = b"".join(kept) if sum(map(len, kept)) > still_arrived else b""
        _replace(path, rest, Path(f"{path}{REASON_SUFFIX}"))
        if rest and arrived:
            path.rename(with_arrived(path, still_arrived))
    return total


def _replace(path: Path, data: bytes, reason: Path) -> None:
    """Puts other bytes in a file's place, or deletes it, so that a crash leaves the one or the other."""
    if data:
        temporary = path.with_name(f".{path.name}.erasing")
        write_private(temporary, data)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        if reason.exists():
            write_private(reason, _REASON.encode())
    else:
        path.unlink(missing_ok=True)
        reason.unlink(missing_ok=True)
    sync_folder(path.parent)
