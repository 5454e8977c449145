"""Episodes that are so young that judgements of them may still come stay out of a dataset."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

from spanloop_trainer.config.rewards import Watermark
from spanloop_trainer.transform.funnel import Funnel


def watermark_of(settings: Watermark, now: datetime | None = None) -> datetime | None:
    """What ended later than this (UTC) is waited for; None: nothing is."""
    return (now or datetime.now(UTC)) - timedelta(hours=settings.wait_h) if settings.wait_h else None


def waited_for(calls: pl.DataFrame, watermark: datetime | None, funnel: Funnel) -> pl.DataFrame:
    """The calls of episodes whose last call ended before the watermark; the others are counted.

    Args:
        calls: of whole episodes.
    """
    if watermark is None:
        return calls
    end = pl.col("start") + pl.duration(nanoseconds=pl.col("duration_ns").cast(pl.Int64))
    ended = calls.group_by("episode_id").agg(end.max().alias("end"))
    limit = pl.lit(watermark.astimezone(UTC).replace(tzinfo=None)).cast(pl.Datetime("ns"))
    ripe = ended.filter(pl.col("end") < limit)
    kept = calls.join(ripe, on="episode_id", how="semi", maintain_order="left")
    young = calls.join(ripe, on="episode_id", how="anti")
    funnel.lose("call of an episode younger than the watermark", young.height, young)
    funnel.count("calls", kept.height)
    return kept
