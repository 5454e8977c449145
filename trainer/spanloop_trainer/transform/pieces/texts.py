"""Texts and tokens of calls, fetched for one bucket of whole episodes at a time: from memory, or shuffled on disk.

A bucket is a range of episode ids, so that buckets in order are the contract's order. On disk each piece is read once and its rows are
appended to the buckets' files; then each bucket is read where a stage needs it. Memory holds one piece or one bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import polars as pl

from spanloop_trainer.transform.pieces.piece import shifted

# Of texts and tokens in a bucket; what is made of them takes a few times as much.
BUCKET_BYTES = 32 << 20


class Texts(Protocol):
    """Where the texts and tokens are."""

    def buckets(self, calls: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """The calls of stage B in buckets of whole episodes, in the order of `episode_id`, with texts and tokens.

        Every time the same buckets; there is at least one.
        """


def fetch(calls: pl.DataFrame, texts: pl.DataFrame, tokens: pl.DataFrame) -> pl.DataFrame:
    """The texts and tokens of some calls beside them."""
    return calls.join(texts, on="call", how="left", maintain_order="left").join(
        tokens, on="tokens", how="left", maintain_order="left"
    )


class InMemory(NamedTuple):
    """Those of a window that is one piece: one bucket."""

    texts: pl.DataFrame
    tokens: pl.DataFrame

    def buckets(self, calls: pl.DataFrame) -> Iterator[pl.DataFrame]:
        yield fetch(calls, self.texts, self.tokens)


class OnDisk:
    """Those of several pieces, each a folder with `texts.parquet` and `tokens.parquet`."""

    def __init__(self, pieces: Sequence[Path], scratch: Path, bucket_bytes: int = BUCKET_BYTES) -> None:
        """Args:
        scratch: an empty folder for the shuffled rows; it takes about as much space as the pieces do.
        """
        self._pieces, self._scratch, self._bucket_bytes = pieces, scratch, bucket_bytes
        self._count = 0  # of buckets; 0: not shuffled yet

    def buckets(self, calls: pl.DataFrame) -> Iterator[pl.DataFrame]:
        of_calls = self._bucket_of(calls)
        count = int(of_calls.max() or 0) + 1  # type: ignore[arg-type]
        if not self._count:
            self._shuffle(calls.select("call", "tokens", of_calls), count)
            self._count = count
        for bucket in range(count):
            yield fetch(
                calls.filter(of_calls == bucket), self._load(bucket, "texts"), self._load(bucket, "tokens")
            )

    def _bucket_of(self, calls: pl.DataFrame) -> pl.Series:
        """The bucket of each call."""
        episodes = calls.group_by("episode_id").agg(pl.col("bytes").sum()).sort("episode_id")
        episodes = episodes.select(
            "episode_id", (pl.col("bytes").cum_sum() // self._bucket_bytes).rle_id().alias("bucket")
        )
        return calls.select("episode_id").join(episodes, on="episode_id", how="left", maintain_order="left")[
            "bucket"
        ]

    def _shuffle(self, calls: pl.DataFrame, count: int) -> None:
        for number, piece in enumerate(self._pieces):
            for name, key in (("texts", "call"), ("tokens", "tokens")):
                rows = shifted(pl.read_parquet(piece / f"{name}.parquet"), number, key)
                # One answer's tokens may belong to calls of two buckets.
                wanted = calls.select(key, "bucket").drop_nulls().unique()
                rows = rows.join(wanted, on=key, how="inner")
                for (bucket,), part in rows.partition_by("bucket", as_dict=True, include_key=False).items():
                    folder = self._scratch / str(bucket)
                    folder.mkdir(exist_ok=True)
                    part.write_parquet(
                        folder / f"{name}-{number}.parquet", compression="lz4", statistics=False
                    )
        # A bucket without tokens needs their columns all the same.
        empty = {
            name: pl.read_parquet(self._pieces[0] / f"{name}.parquet", n_rows=0)
            for name in ("texts", "tokens")
        }
        for bucket in range(count):
            (self._scratch / str(bucket)).mkdir(exist_ok=True)
            for name, frame in empty.items():
                frame.write_parquet(self._scratch / str(bucket) / f"{name}-none.parquet")

    def _load(self, bucket: int, name: str) -> pl.DataFrame:
        files = sorted((self._scratch / str(bucket)).glob(f"{name}-*.parquet"))
        return pl.concat([pl.read_parquet(file) for file in files])
