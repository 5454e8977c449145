"""Pieces on disk: a folder each, with a header that is written last."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from spanloop_trainer.transform.flavours import flavours
from spanloop_trainer.transform.pieces.piece import Piece, Slim

# Raise it when what a piece holds changes its meaning.
FORMAT = 3
HEADER = "piece.json"
_SLIM = ("calls", "gateway", "ancestors")
_LONG = ("texts", "tokens")


@dataclass(frozen=True)
class Header:
    """What a piece was made from.

    Attributes:
        since, until: half-open interval of span starts, nanoseconds since 1970.
        services: as `Window.services`.
        shard, shards: as `Window.shard` and `Window.shards`.
        fingerprint: of the store's rows then.
        maker: of the code; pieces of two makers cannot be put together.
        counts: as `Spans.counts`.
    """

    since: int
    until: int
    services: list[str]
    shard: int
    shards: int
    fingerprint: str
    maker: str
    counts: dict[str, int]


def maker() -> str:
    """Equal where the codes of equal messages are equal: these are hashes that another Polars computes otherwise."""
    probe = pl.select(pl.struct(pl.lit(1).alias("place"), pl.lit("probe").alias("key")).hash()).item()
    return f"{FORMAT}-{pl.__version__}-{probe:x}-{'+'.join(flavour.name for flavour in flavours())}"


def write_piece(folder: Path, piece: Piece, header: Header) -> None:
    """Write a piece; a folder without header is unfinished.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HEADER).unlink(missing_ok=True)
    for name in _SLIM:
        getattr(piece.slim, name).write_parquet(
            folder / f"{name}.parquet", compression="lz4", statistics=False
        )
    for name in _LONG:
        getattr(piece, name).write_parquet(folder / f"{name}.parquet", compression="lz4", statistics=False)
    temporary = folder / f".{HEADER}"
    temporary.write_text(json.dumps(asdict(header)))
    temporary.replace(folder / HEADER)


def read_header(folder: Path) -> Header | None:
    """None: there is no finished piece of this version, or its files are damaged; it is read again then."""
    try:
        record: dict[str, Any] = json.loads((folder / HEADER).read_text())
        for name in (*_SLIM, *_LONG):
            pl.read_parquet_schema(folder / f"{name}.parquet")
    except (OSError, ValueError, pl.exceptions.PolarsError):
        return None
    if record.keys() != {field.name for field in fields(Header)}:
        return None
    return Header(**record)


def read_slim(folder: Path, header: Header) -> Slim:
    """The slim rows of a piece."""
    calls, gateway, ancestors = (pl.read_parquet(folder / f"{name}.parquet") for name in _SLIM)
    return Slim(calls, gateway, ancestors, header.counts)
