"""A dataset on disk: `transitions.parquet`, and `manifest.json` written last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from spanloop_trainer.errors import DatasetError
from spanloop_trainer.transform.datasets.parquet import write_rows
from spanloop_trainer.transform.datasets.schema import ORDER, TRANSITIONS
from spanloop_trainer.transform.funnel import LOST

PARQUET, MANIFEST, LOST_ROWS = "transitions.parquet", "manifest.json", "lost.parquet"
# Of the columns and their meaning; a dataset of another one is refused.
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a dataset is made of.

    Attributes:
        id: SHA-256 over `sha256` and `config_hash`; the same spans, rewards and settings give the same id.
        sha256: of `transitions.parquet`.
        query: window and filters.
        credit: method and its options.
        counts: the funnel; `lost` holds reason → number.
        splits: split → episodes.
        parent: id of the dataset that it was made from; empty: none.
        decoders: spans by decoder in the store's log, for information; no part of the id.
        format: of columns and their meaning.
    """

    id: str
    sha256: str
    query: dict[str, Any]
    config_hash: str
    credit: str
    counts: dict[str, Any]
    splits: dict[str, int]
    parent: str
    decoders: dict[str, int]
    format: int


def in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame in the contract's columns, types and order."""
    return frame.select(pl.col(name).cast(dtype) for name, dtype in TRANSITIONS.items()).sort(ORDER)


def write_dataset(
    folder: Path,
    rows: pl.DataFrame | Iterable[pl.DataFrame],
    *,
    query: dict[str, Any],
    config_hash: str,
    credit: str,
    counts: dict[str, Any],
    splits: dict[str, int],
    decoders: dict[str, int],
    parent: str = "",
    lost: pl.DataFrame | None = None,
) -> Manifest:
    """Write a dataset; a folder without `manifest.json` is unfinished.

    Args:
        rows: one frame, or frames of `in_order` one behind the other in that order; how many there are has no say in the bytes.
        counts: looked at once all rows are written.
        lost: `Funnel.lost_rows`, for `spanloop dataset lost`; no part of the id.

    Raises:
        DatasetError: the folder cannot be written.
    """
    temporary, lost_part, part = (
        folder / f".{name}.{os.getpid()}" for name in (PARQUET, LOST_ROWS, MANIFEST)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        write_rows(temporary, [in_order(rows)] if isinstance(rows, pl.DataFrame) else rows)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = Manifest(
            id=_id(digest, config_hash),
            sha256=digest,
            query=query,
            config_hash=config_hash,
            credit=credit,
            counts=counts,
            splits=splits,
            parent=parent,
            decoders=decoders,
            format=FORMAT,
        )
        text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
        part.write_text(text, encoding="utf-8")
        some_lost = lost is not None and lost.height > 0
        if lost is not None and some_lost:
            lost.write_parquet(lost_part, compression="zstd", statistics=False)
        # Only now, so that a full disk leaves the dataset that was there before; a manifest never stands beside
        # rows that are not its own.
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / LOST_ROWS).unlink(missing_ok=True)
        if some_lost:
            lost_part.replace(folder / LOST_ROWS)
        temporary.replace(folder / PARQUET)
        part.replace(folder / MANIFEST)
    except (OSError, pl.exceptions.PolarsError, pa.ArrowException) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise DatasetError(
            f"the dataset cannot be written to {folder}: {why}", "choose another folder with --out"
        ) from error
    finally:
        for path in (temporary, lost_part, part):
            path.unlink(missing_ok=True)
    return manifest


def _id(sha256: str, config_hash: str) -> str:
    return hashlib.sha256(f"{sha256}:{config_hash}".encode()).hexdigest()


def _remove_unfinished(folder: Path) -> None:
    """What builds that were killed while they wrote left in the folder: it holds texts, and no dataset tells of it."""
    for path in folder.glob(".*.*.*"):
        name, _, process = path.name[1:].rpartition(".")
        if name in (PARQUET, LOST_ROWS, MANIFEST) and process.isdecimal() and not _runs(int(process)):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def read_manifest(folder: Path) -> Manifest:
    """What a dataset says of itself; its rows are not looked at.

    Raises:
        DatasetError: the folder is no finished dataset.
    """
    hint = f"spanloop build --out {folder}"
    try:
        manifest = _manifest((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{folder} is not a finished dataset: {MANIFEST} cannot be read", hint) from error
    except ValueError as error:
        raise DatasetError(f"{folder / MANIFEST} is not a manifest: {error}", hint) from error
    if manifest.id != _id(manifest.sha256, manifest.config_hash):
        raise DatasetError(f"{folder / MANIFEST} changed after it was built", hint)
    return manifest


def open_dataset(folder: Path) -> tuple[Manifest, pl.LazyFrame]:
    """A dataset whose rows are read by column, for what needs few of them.

    Raises:
        DatasetError: the folder is no finished dataset, or its rows are not those of its manifest.
    """
    manifest, path, hint = read_manifest(folder), folder / PARQUET, f"spanloop build --out {folder}"
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"{folder} is not a finished dataset: {PARQUET} cannot be read", hint) from error
    if digest != manifest.sha256:
        raise DatasetError(f"{path} changed after it was built", hint)
    return manifest, _scan(path, TRANSITIONS, hint)


def scan_lost(folder: Path) -> pl.LazyFrame:
    """The spans that a build lost, as far as it kept them: columns `funnel.LOST`; none, where it lost none.

    Raises:
        DatasetError: they cannot be read.
    """
    path = folder / LOST_ROWS
    return _scan(path, LOST, f"spanloop build --out {folder}") if path.exists() else LOST.to_frame().lazy()


def _scan(path: Path, schema: pl.Schema, hint: str) -> pl.LazyFrame:
    """Raises DatasetError: it is no Parquet file of these columns."""
    try:
        rows = pl.scan_parquet(path, glob=False)
        found = rows.collect_schema()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(f"{path} is no Parquet file: {str(error).splitlines()[0]}", hint) from error
    if found != schema:
        differing = [name for name in {**schema, **found} if found.get(name) != schema.get(name)]
        what = f"column {differing[0]} is missing, unknown or of another type" if differing else "their order"
        raise DatasetError(f"{path} has other columns than a dataset of this version: {what}", hint)
    return rows


def load_dataset(folder: Path | str) -> tuple[Manifest, pl.DataFrame]:
    """Read a dataset.

    Raises:
        DatasetError: the folder is no finished dataset, or its rows are not those of its manifest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}", f"spanloop build --out {folder}")
    manifest, rows = open_dataset(folder)
    return manifest, rows.collect()


def _manifest(text: str) -> Manifest:
    """Raises ValueError for anything else."""
    record = from_json(text)
    known = {field.name for field in fields(Manifest)}
    if isinstance(record, dict) and "sha256" in record and record.get("format") != FORMAT:
        raise ValueError(
            f"it was written by another version of spanloop (format {record.get('format', 0)}, and this one reads {FORMAT})"
        )
    if not isinstance(record, dict) or record.keys() != known:
        missing = sorted(known - record.keys()) if isinstance(record, dict) else sorted(known)
        raise ValueError(f"it lacks {', '.join(missing)}" if missing else "it has fields that we do not know")
    try:
        return TypeAdapter(Manifest).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
