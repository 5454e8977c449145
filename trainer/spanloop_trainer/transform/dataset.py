"""A dataset on disk: `transitions.parquet`, and `manifest.json` written last."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from spanloop_trainer.errors import DatasetError
from spanloop_trainer.transform.schema import ORDER, TRANSITIONS

PARQUET, MANIFEST = "transitions.parquet", "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a dataset is made of.

    Attributes:
        id: SHA-256 over `sha256` and `config_hash`; the same spans, rewards and settings give the same id.
        sha256: of `transitions.parquet`.
        query: window and filters.
        credit: method.
        counts: the funnel; `lost` holds reason → number.
        splits: split → episodes.
        parent: id of the dataset that it was made from; empty: none.
        decoders: spans by decoder in the store's log, for information; no part of the id.
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


def canonical(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame in the contract's columns, types and order."""
    return frame.select(pl.col(name).cast(dtype) for name, dtype in TRANSITIONS.items()).sort(ORDER).rechunk()


def write_dataset(
    folder: Path,
    frame: pl.DataFrame,
    *,
    query: dict[str, Any],
    config_hash: str,
    credit: str,
    counts: dict[str, Any],
    splits: dict[str, int],
    decoders: dict[str, int],
    parent: str = "",
) -> Manifest:
    """Write a dataset; a folder without `manifest.json` is unfinished.

    Raises:
        DatasetError: the folder cannot be written.
    """
    temporary = folder / f".{PARQUET}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        # Every setting that has a say in the bytes is named: defaults may change with Polars' version.
        canonical(frame).write_parquet(
            temporary, compression="zstd", compression_level=3, statistics=True, row_group_size=65_536
        )
        digest = hashlib.file_digest(temporary.open("rb"), "sha256").hexdigest()
        temporary.replace(folder / PARQUET)
        manifest = Manifest(
            id=hashlib.sha256(f"{digest}:{config_hash}".encode()).hexdigest(),
            sha256=digest,
            query=query,
            config_hash=config_hash,
            credit=credit,
            counts=counts,
            splits=splits,
            parent=parent,
            decoders=decoders,
        )
        text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
        part = folder / f".{MANIFEST}.{os.getpid()}"
        part.write_text(text)
        part.replace(folder / MANIFEST)
    except OSError as error:
        raise DatasetError(
            f"the dataset cannot be written to {folder}: {error.strerror}", "choose another folder with --out"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return manifest


def load_dataset(folder: Path | str) -> tuple[Manifest, pl.DataFrame]:
    """Read a dataset.

    Raises:
        DatasetError: the folder is no finished dataset, or its rows are not those of its manifest.
    """
    folder = Path(folder)
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text()))
        content = (folder / PARQUET).read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{folder} is not a finished dataset: {Path(error.filename or folder).name} cannot be read",
            f"spanloop build --out {folder}",
        ) from error
    except (ValueError, TypeError) as error:
        raise DatasetError(
            f"{folder / MANIFEST} is not a manifest: {error}", f"spanloop build --out {folder}"
        ) from error
    if hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise DatasetError(f"{folder / PARQUET} changed after it was built", f"spanloop build --out {folder}")
    return manifest, pl.read_parquet(content)
