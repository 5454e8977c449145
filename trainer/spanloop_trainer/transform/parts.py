"""A window in parts that fit in memory: which, read one after another, and those of an earlier build taken over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform.pieces import Slim, canonical, together
from spanloop_trainer.transform.read import Window, days, fingerprint, read_ancestors, read_spans, size
from spanloop_trainer.transform.storage import Header, maker, read_header, read_slim, write_piece

# Of attributes in the store. Read, canonicalised and slim together a part takes about six times as much.
PART_BYTES = 96 << 20
PIECES = "pieces"
# Traces named in one query.
_TRACES_ASKED = 2000


class Part(NamedTuple):
    """A piece on disk."""

    folder: Path
    header: Header


def cut(client: Any, window: Window, parts: int | None) -> list[Window]:
    """Slices of a window, in order; one: it fits in memory.

    Args:
        parts: how many (about: equal starts stay together); None: as many as memory asks for.
    """
    if parts is None:
        parts = 1 + size(client, window, 1).bytes // PART_BYTES
    if parts == 1:
        return [window]
    since, until = window.bounds()
    inner = sorted({at for at in size(client, window, parts).cuts if since < at < until})
    return [_slice(window, *bounds) for bounds in zip([since, *inner], [*inner, until], strict=True)]


def _slice(window: Window, since: int, until: int) -> Window:
    return Window(window.since, window.until, window.services, window.shard, window.shards, (since, until))


def read_parts(
    client: Any, slices: Sequence[Window], folder: Path, *, progress: Callable[[str], None]
) -> list[Part]:
    """Read slices into pieces, one after another; those that are there already, of the same rows, stay.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    parts = []
    for number, window in enumerate(slices, 1):
        since, until = window.bounds()
        name = f"{since}-{until}" + (f"-{window.shard}of{window.shards}" if window.shards > 1 else "")
        rows = fingerprint(client, window)
        header = read_header(folder / name)
        if header is None or (header.fingerprint, header.maker) != (rows, maker()):
            progress(f"reading part {number} of {len(slices)}")
            spans = read_spans(client, window)
            header = Header(
                since, until, list(window.services), window.shard, window.shards, rows, maker(), spans.counts
            )
            write_piece(folder / name, canonical(spans), header)
        parts.append(Part(folder / name, header))
    return parts


def read_shard(client: Any, window: Window, out: Path, *, progress: Callable[[str], None]) -> list[Part]:
    """Leave the pieces of one shard of a window in `out`, for a build elsewhere that merges all shards.

    Raises:
        TransformError: the window has no end, so that other shards would not be of the same one.
        StoreUnavailable: the store did not answer.
    """
    if window.until is None:
        raise TransformError(
            "a shard needs the end of its window: without it each shard would end when it is read",
            "add --until with the same time on every machine",
        )
    parts = read_parts(client, cut(client, window, None), out / PIECES, progress=progress)
    # Those of an earlier run that was cut elsewhere.
    for part in _headers(out / PIECES):
        if (part.header.shard, part.header.shards) == (window.shard, window.shards) and part not in parts:
            shutil.rmtree(part.folder)
    return parts


def slim(client: Any, parts: Sequence[Part], *, older: bool) -> Slim:
    """The slim rows of all parts.

    Args:
        older: some pieces are of an earlier build. Where a span above their calls had not arrived then, it is looked for again.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    whole = together([read_slim(part.folder, part.header) for part in parts])
    pending = _pending(whole) if older else []
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


def take_over(client: Any, parent: Path | None, folder: Path, window: Window) -> list[Window]:
    """Link the pieces of an earlier build that lie in the window into `folder`.

    Returns:
        The slices of the window: theirs, and what is left around them, cut at midnights (UTC), so that tomorrow's build finds
        today's pieces whole.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    since, until = window.bounds()
    taken: list[Window] = []
    same = (list(window.services), window.shard, window.shards, maker())
    for part in _headers(parent / PIECES) if parent else []:
        header = part.header
        fits = since <= header.since and header.until <= until
        alike = (header.services, header.shard, header.shards, header.maker) == same
        if fits and alike and (not taken or taken[-1].bounds()[1] <= header.since):
            taken.append(_slice(window, header.since, header.until))
            if not (folder / part.folder.name).exists():
                shutil.copytree(part.folder, folder / part.folder.name, copy_function=_link)
    slices: list[Window] = []
    at = since
    for piece in taken:
        slices += [*_days(client, window, at, piece.bounds()[0]), piece]
        at = piece.bounds()[1]
    return slices + _days(client, window, at, until)


def _days(client: Any, window: Window, since: int, until: int) -> list[Window]:
    """[since, until) cut at midnights, and where a day does not fit in memory."""
    if since >= until:
        return []
    inner = [day for day in days(client, _slice(window, since, until)) if since < day < until]
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


def finished_parts(folder: Path) -> list[Part]:
    """The pieces of all shards of one window.

    Raises:
        TransformError: a shard is missing, or they are of different windows or makers.
    """
    parts = _headers(folder / PIECES)
    hint = f"spanloop build --out {folder} --shard I/N --until … on each machine, then --merge again"
    if not parts:
        raise TransformError(f"there are no pieces in {folder}", hint)
    shards = parts[0].header.shards
    missing = sorted(set(range(shards)) - {part.header.shard for part in parts})
    if missing:
        raise TransformError(
            f"{folder} lacks shard {', '.join(f'{shard + 1}/{shards}' for shard in missing)}", hint
        )
    for name in ("services", "shards", "maker"):
        kinds = {str(getattr(part.header, name)) for part in parts}
        if len(kinds) > 1:
            raise TransformError(
                f"the pieces in {folder} do not go together: {name} {' and '.join(sorted(kinds))}", hint
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
