"""A window in parts that fit in memory: which, read one after another, and those of an earlier build taken over."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform.pieces.piece import Slim, canonical, together
from spanloop_trainer.transform.pieces.storage import Header, maker, read_header, read_slim, write_piece
from spanloop_trainer.transform.reading.read import (
    END_OF_TIME_NS,
    Window,
    days,
    fingerprint,
    read_ancestors,
    read_spans,
    size,
)

# Of attributes in the store. A part takes about six times as much while it is read and made canonical; a window that is built at
# once takes that for all of it, and half of the time.
PART_BYTES = 64 << 20
AT_ONCE_BYTES = 320 << 20
PIECES = "pieces"
# Traces named in one query.
_TRACES_ASKED = 2000


class Part(NamedTuple):
    """A piece on disk."""

    folder: Path
    header: Header


def cut(client: Any, window: Window, parts: int | None, at_once: int = PART_BYTES) -> list[Window]:
    """Slices of a window, in order; one: it fits in memory.

    Args:
        at_once: bytes up to which it is not cut.
        parts: how many (about: equal starts stay together); None: as many as memory asks for.
    """
    if parts is None:
        held = size(client, window, 1).bytes
        parts = 1 if held <= at_once else 1 + held // PART_BYTES
    if parts == 1:
        return [window]
    since, until = window.bounds()
    inner = sorted({at for at in size(client, window, parts).cuts if since < at < until})
    return [_slice(window, *bounds) for bounds in zip([since, *inner], [*inner, until], strict=True)]


def _slice(window: Window, since: int, until: int) -> Window:
    return Window(window.since, window.until, window.services, window.shard, window.shards, (since, until))


def _of_shard(window: Window) -> str:
    return f"-{window.shard}of{window.shards}" if window.shards > 1 else ""


def _name(window: Window) -> str:
    since, until = window.bounds()
    return f"{since}-{until}{_of_shard(window)}"


def read_parts(
    client: Any,
    slices: Sequence[Window | Part],
    folder: Path,
    *,
    kept: bool = True,
    progress: Callable[[str], None],
) -> list[Part]:
    """Read slices into pieces, one after another; those that are there already, of the same rows, stay.

    Args:
        kept: after the build, so that another has to know later what they hold.
        slices: those that are a `Part` are in the folder, and known to hold what the store does.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    parts = []
    for number, window in enumerate(slices, 1):
        if isinstance(window, Part):
            parts.append(window)
            continue
        since, until = window.bounds()
        name = _name(window)
        rows = fingerprint(client, window) if kept else ""
        header = read_header(folder / name) if kept else None
        if header is None or (header.fingerprint, header.maker) != (rows, maker()):
            progress(f"reading part {number} of {len(slices)}")
            spans = read_spans(client, window)
            header = Header(
                since, until, list(window.services), window.shard, window.shards, rows, maker(), spans.counts
            )
            write_piece(folder / name, canonical(spans), header)
        parts.append(Part(folder / name, header))
    return parts


def read_shard(
    client: Any, window: Window, out: Path, *, parent: Path | None = None, progress: Callable[[str], None]
) -> list[Part]:
    """Leave the pieces of one shard of a window in `out`, for a build elsewhere that merges all shards.

    Args:
        parent: an earlier dataset; its pieces of the same shard are taken over.

    Raises:
        TransformError: the window has no end, so that other shards would not be of the same one.
        StoreUnavailable: the store did not answer.
    """
    if window.until is None:
        raise TransformError(
            "a shard needs the end of its window: without it each shard would end when it is read",
            "add --until with the same time on every machine",
        )
    slices: Sequence[Window | Part] = (
        take_over(client, parent, out / PIECES, window) if parent else cut(client, window, None)
    )
    remove_others(out / PIECES, slices)
    return read_parts(client, slices, out / PIECES, progress=progress)


def remove_others(folder: Path, slices: Sequence[Window | Part]) -> None:
    """Remove the pieces of these shards that are of other slices: a window that was cut otherwise, a build that was killed."""
    names = {piece.folder.name if isinstance(piece, Part) else _name(piece) for piece in slices}
    shards = {re.sub("^[0-9]+-[0-9]+", "", name) for name in names}
    for found in list(folder.iterdir()) if folder.is_dir() else []:
        if found.name not in names and re.sub("^[0-9]+-[0-9]+", "", found.name) in shards:
            shutil.rmtree(found)


def slim(client: Any, parts: Sequence[Part], *, older: bool) -> Slim:
    """The slim rows of all parts.

    Args:
        older: some pieces are of an earlier build. Where a span above their calls had not arrived then, it is looked for again.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    whole = together([read_slim(part.folder, part.header) for part in parts])
    return with_pending(client, whole) if older else whole


def with_pending(client: Any, whole: Slim) -> Slim:
    """With the spans above its calls that had not arrived when the pieces were read.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    pending = _pending(whole)
    asked = [pending[first : first + _TRACES_ASKED] for first in range(0, len(pending), _TRACES_ASKED)]
    if not asked:
        return whole
    key = ["trace_id", "span_id"]
    ancestors = pl.concat([whole.ancestors, *(read_ancestors(client, traces) for traces in asked)])
    return replace(whole, ancestors=ancestors.unique(key, keep="first"))


def _pending(whole: Slim) -> list[str]:
    """Traces in which the parent of a call, or of a span above it, is not known."""
    columns = ("trace_id", "parent_span_id")
    children = pl.concat([whole.calls.select(columns), whole.ancestors.select(columns)])
    known = pl.concat(
        [whole.calls.select("trace_id", "span_id"), whole.ancestors.select("trace_id", "span_id")]
    )
    unknown = children.filter(pl.col("parent_span_id") != "").join(
        known, left_on=columns, right_on=["trace_id", "span_id"], how="anti"
    )
    return unknown["trace_id"].unique().sort().to_list()


def take_over(client: Any, parent: Path, folder: Path, window: Window) -> list[Window | Part]:
    """Link the pieces of an earlier build that lie in the window, and still hold what the store does, into `folder`.

    Returns:
        The slices of the window: these pieces, and what is left around them, cut at midnights (UTC), so that tomorrow's build
        finds today's pieces whole.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    since, until = window.bounds()
    slices: list[Window | Part] = []
    same = (list(window.services), window.shard, window.shards, maker())
    at = since
    for part in _headers(parent / PIECES):
        header = part.header
        fits = at <= header.since and header.until <= until
        alike = (header.services, header.shard, header.shards, header.maker) == same
        if not (fits and alike):
            continue
        # What had come late since then, or was erased.
        if fingerprint(client, _slice(window, header.since, header.until)) != header.fingerprint:
            continue
        if not (folder / part.folder.name).exists():
            shutil.copytree(part.folder, folder / part.folder.name, copy_function=_link)
        slices += [*_days(client, window, at, header.since), Part(folder / part.folder.name, header)]
        at = header.until
    return slices + _days(client, window, at, until)


def _days(client: Any, window: Window, since: int, until: int) -> list[Window]:
    """[since, until) cut at midnights, and where a day does not fit in memory."""
    if since >= until:
        return []
    # Before the first day that has spans there are none.
    inner = days(client, _slice(window, since, until))[1:]
    bounds = zip([since, *inner], [*inner, until], strict=True)
    return [part for day in bounds for part in cut(client, _slice(window, *day), None)]


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _headers(folder: Path) -> list[Part]:
    """In order of shard and time."""
    found = [(path, read_header(path)) for path in folder.iterdir()] if folder.is_dir() else []
    parts = [Part(path, header) for path, header in found if header is not None]
    return sorted(parts, key=lambda part: (part.header.shard, part.header.since, part.header.until))


def window_of(part: Part) -> Window:
    """What to read it from again."""
    header = part.header
    return Window(
        _moment(header.since), _moment(header.until), tuple(header.services), header.shard, header.shards,
        (header.since, header.until),
    )  # fmt: skip


def _moment(nanoseconds: int) -> datetime | None:
    """None: open."""
    if nanoseconds in (0, END_OF_TIME_NS):
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)


def whole_window(parts: Sequence[Part]) -> Window:
    """The window of which these are all pieces."""
    first, last = window_of(parts[0]), window_of(parts[-1])
    return Window(first.since, last.until, first.services)


def sharded(folder: Path) -> bool:
    """Whether pieces of shards wait there for a merge."""
    return any(part.header.shards > 1 for part in _headers(folder / PIECES))


def finished_parts(folder: Path) -> list[Part]:
    """The pieces of all shards of one window.

    Raises:
        TransformError: a shard is missing, or they are of different windows or makers.
    """
    parts = _headers(folder / PIECES)
    hint = f"spanloop build --out {folder} --shard I/N --until … on each machine, then --merge again"
    if not parts:
        raise TransformError(f"there are no pieces in {folder}", hint)
    for name in ("services", "shards", "maker"):
        kinds = {str(getattr(part.header, name)) for part in parts}
        if len(kinds) > 1:
            # Whichever is older is in the way: reading again would leave it there.
            raise TransformError(
                f"the pieces in {folder} do not go together: {name} {' and '.join(sorted(kinds))}",
                f"remove {folder / PIECES} if no other dataset needs it, then {hint}",
            )
    shards = parts[0].header.shards
    missing = sorted(set(range(shards)) - {part.header.shard for part in parts})
    if missing:
        raise TransformError(
            f"{folder} lacks shard {', '.join(f'{shard + 1}/{shards}' for shard in missing)}", hint
        )
    spans = {
        shard: _covered([p for p in parts if p.header.shard == shard], folder, hint)
        for shard in range(shards)
    }
    if len(set(spans.values())) > 1:
        raise TransformError(f"the shards in {folder} are of different windows", hint)
    return parts


def _covered(parts: Sequence[Part], folder: Path, hint: str) -> tuple[int, int]:
    for one, other in pairwise(parts):
        if one.header.until != other.header.since:
            raise TransformError(f"the pieces in {folder} leave a gap or overlap", hint)
    return parts[0].header.since, parts[-1].header.until
