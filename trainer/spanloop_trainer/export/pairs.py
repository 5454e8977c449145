"""Preferences: two answers to one prompt, of which one earned more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from spanloop_trainer.export.rows import Chosen

_KEY = ("trace_id", "span_id", "choice")
_BATCH_BYTES = 256 << 20  # of texts, as they are in the file


def pairs(chosen: Chosen) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows (better, worse) with one task, one state and one list of tools, in the order of the dataset.

    The best goes with the worst, the second best with the second worst, and so on while they differ, so that no answer is in two
    pairs; equal answers make none. What an answer earned is its `return_`, which credit made of the reward. Texts of some pairs are
    held in memory at a time; the dataset is read once for each of these.
    """
    texts = pl.col("state", "tools", "action").str.len_bytes().fill_null(0).cast(pl.UInt64)
    slim = (
        chosen.scan()
        .with_row_index("at")
        .select("at", *_KEY, "task_id", "return_", pl.struct("state", "tools").hash().alias("prompt"), pl.col("action").hash(),
                pl.sum_horizontal(texts).alias("bytes"))
        .filter(pl.col("return_").is_not_null())
        .collect(engine="streaming")
    )  # fmt: skip
    ranked = (
        # Equal answers with one return say nothing twice.
        slim.unique(["task_id", "prompt", "action", "return_"], keep="first", maintain_order=True)
        .sort("task_id", "prompt", "return_", "at", descending=[False, False, True, False])
        .with_columns(
            pl.int_range(0, pl.len()).over("task_id", "prompt").alias("rank"),
            pl.len().over("task_id", "prompt").alias("size"),
        )
    )
    worse = ranked.with_columns(rank=pl.col("size").cast(pl.Int64) - 1 - pl.col("rank"))
    matched = ranked.join(worse, on=["task_id", "prompt", "rank"], suffix="_worse").filter(
        (pl.col("return_") > pl.col("return__worse")) & (pl.col("action") != pl.col("action_worse"))
    ).sort("at")  # fmt: skip
    batch = (pl.col("bytes") + pl.col("bytes_worse")).cum_sum() // _BATCH_BYTES
    for some in matched.with_columns(batch.alias("batch")).partition_by("batch", maintain_order=True):
        of_worse = some.select(pl.col(f"{name}_worse").alias(name) for name in _KEY)
        wanted = pl.concat([some.select(_KEY), of_worse])
        known = {
            tuple(row[name] for name in _KEY): row
            for row in chosen.rows(*_KEY, "state", "tools", "action", only=wanted)
        }
        for one, other in zip(some.select(_KEY).iter_rows(), of_worse.iter_rows(), strict=True):
            yield known[one], known[other]
