"""Rows to a Parquet file whose bytes do not depend on the frames that they came in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from spanloop_trainer.transform.datasets.schema import TRANSITIONS

# A row group ends with the row that fills one of these, so that a reader of long conversations needs no more memory than others.
GROUP_ROWS = 65_536
GROUP_BYTES = 64 << 20
# Their values repeat within a row group; others are stored as they are (long texts only cost time in a dictionary).
_REPEATED = [
    "agent", "task_id", "episode_id", "tools", "status", "error_type", "finish_reason", "policy", "policy_version",
    "resources.list.element", "split", "parent_episode_id", "reward_parts.list.element.name",
    "reward_parts.list.element.source", "reward_parts.list.element.evaluator", "reward_parts.list.element.version",
]  # fmt: skip
_LONG = ("state", "tools", "action", "observation")


def write_rows(path: Path, frames: Iterable[pl.DataFrame]) -> None:
    """Write frames of `schema.TRANSITIONS`, one behind the other, as one file.

    Raises:
        OSError, ArrowException: it cannot be written.
    """
    schema = TRANSITIONS.to_frame().to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    # Every setting that has a say in the bytes is named: defaults may change with Arrow's version.
    with (
        pq.ParquetWriter(
            path, schema, version="2.6", compression="zstd", compression_level=3, use_dictionary=_REPEATED,
            write_statistics=True, data_page_size=1 << 20, write_batch_size=1024,
        ) as writer,
        # One group is compressed while the next is put together.
        ThreadPoolExecutor(1) as pool,
    ):  # fmt: skip
        writing: Future[None] | None = None
        for group in _groups(frames):
            table = group.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)
            if writing is not None:
                writing.result()
            writing = pool.submit(_write, writer, table)
        if writing is not None:
            writing.result()


def _write(writer: pq.ParquetWriter, table: pa.Table) -> None:
    # Chunks would end pages: a group is one piece of memory.
    writer.write_table(table.combine_chunks(), row_group_size=GROUP_ROWS)


def _groups(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The rows in the groups in which they are written."""
    waiting = TRANSITIONS.to_frame()
    for frame in frames:
        waiting = pl.concat([waiting, frame])
        while True:
            long = pl.sum_horizontal(pl.col(name).str.len_bytes() for name in _LONG)
            before_full = waiting.select((long.cum_sum() < GROUP_BYTES).sum()).item()
            size = min(before_full + 1, GROUP_ROWS)
            if waiting.height < size:
                break
            yield waiting[:size]
            waiting = waiting[size:]
    if waiting.height:
        yield waiting
