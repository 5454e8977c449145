"""The rows that a build lost for one reason: from `lost.parquet`, else from the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from spanloop_trainer.errors import DatasetError
from spanloop_trainer.transform.datasets.dataset import LOST_ROWS, Manifest, read_manifest, scan_lost
from spanloop_trainer.transform.funnel import LOST, NO_MODEL_CALL, NOT_READ
from spanloop_trainer.transform.reading.read import Window, read_other_spans


def find_reason(manifest: Manifest, asked: str) -> str:
    """The reason that somebody means.

    Args:
        asked: its number in the funnel, from 1, or words of it.

    Raises:
        DatasetError: there is none, or several; the message lists all.
    """
    reasons: list[str] = list(manifest.counts.get("lost", {}))
    if asked.isdecimal() and 1 <= int(asked) <= len(reasons):
        return reasons[int(asked) - 1]
    found = [reason for reason in reasons if asked.casefold() in reason.casefold()]
    if len(found) == 1:
        return found[0]
    listed = "; ".join(f"{number}: {reason}" for number, reason in enumerate(reasons, 1)) or "it lost nothing"
    raise DatasetError(
        f"{'no reason has' if not found else f'{len(found)} reasons have'} {asked!r} in it",
        f"one of: {listed}",
    )


def lost_rows(folder: Path, reason: str, limit: int, connect: Callable[[], Any]) -> pl.DataFrame:
    """Rows lost for a reason, in the order of start: columns `funnel.LOST`.

    Args:
        reason: of `find_reason`.
        limit: the most rows.
        connect: opens the store; called for spans that no build reads.

    Raises:
        DatasetError: the folder is no finished dataset, or `lost.parquet` is broken or missing.
        StoreUnavailable: the store did not answer.
    """
    manifest = read_manifest(folder)
    if reason not in (NO_MODEL_CALL, NOT_READ):
        if not (folder / LOST_ROWS).exists():
            raise DatasetError(f"{folder} has no {LOST_ROWS} any more", f"spanloop build --out {folder}")
        return scan_lost(folder).filter(pl.col("reason") == reason).head(limit).collect()
    spans = read_other_spans(
        connect(), Window.of_query(manifest.query), model_calls=reason == NOT_READ, limit=limit
    )
    return LOST.to_frame().clear().vstack(
        spans.select(
            pl.lit(reason).alias("reason"), "trace_id", "span_id", "start",
            *(pl.lit(None, pl.String).alias(name) for name in ("episode_id", "task_id")), "detail",
        )
    )  # fmt: skip
