"""Texts and tokens of calls, fetched for one bucket of whole episodes at a time: from memory, or shuffled on disk.

A bucket is a range of episode ids, so that buckets in order are the contract's order. On disk each piece is read once and its rows are
appended to the buckets' files; then each bucket is read where a stage needs it. Memory holds one piece or one bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import polars as pl

from spanloop_trainer.transform.pieces.exchange import Exchange
from spanloop_trainer.transform.pieces.piece import PLACE_BITS, shifted

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
    """Those of a window that is one piece; put together a bucket at a time all the same, since that takes a few times as much.

    A key is the place of its row (see `piece.canonical`).
    """

    texts: pl.DataFrame
    tokens: pl.DataFrame
    bucket_bytes: int = BUCKET_BYTES

    def buckets(self, calls: pl.DataFrame) -> Iterator[pl.DataFrame]:
        if int(calls["bytes"].sum()) <= self.bucket_bytes:
            yield self._fetch(calls)
            return
        firsts = first_of_buckets(calls, self.bucket_bytes)
        of_calls = bucket_of(calls["episode_id"], firsts)
        for bucket in range(firsts.len() + 1):
            yield self._fetch(calls.filter(of_calls == bucket))

    def _fetch(self, calls: pl.DataFrame) -> pl.DataFrame:
        texts = self.texts.select(pl.exclude("call").gather(calls["call"]))
        return calls.hstack(texts).hstack(self.tokens.select(pl.exclude("tokens").gather(calls["tokens"])))


class OnDisk:
    """Those of several pieces, each a folder with `texts.parquet` and `tokens.parquet`."""

    def __init__(self, pieces: Sequence[Path], scratch: Path, bucket_bytes: int = BUCKET_BYTES) -> None:
        """Args:
        scratch: an empty folder for the shuffled rows; it takes about as much space as the pieces do.
        """
        self._pieces, self._bucket_bytes = pieces, bucket_bytes
        self._texts, self._tokens = Exchange(scratch / "texts"), Exchange(scratch / "tokens")
        self._shuffled = False

    def buckets(self, calls: pl.DataFrame) -> Iterator[pl.DataFrame]:
        firsts = first_of_buckets(calls, self._bucket_bytes)
        of_calls = bucket_of(calls["episode_id"], firsts)
        if not self._shuffled:
            shuffle(self._pieces, calls.select("call", "tokens", of_calls), self._texts, self._tokens)
            self._shuffled = True
        for bucket in range(firsts.len() + 1):
            some = calls.filter(of_calls == bucket)
            yield fetch(some, self._texts.take(bucket), self._tokens.take(bucket))


def first_of_buckets(episodes: pl.DataFrame, bucket_bytes: int) -> pl.Series:
    """The first episode id of every bucket but the first.

    Args:
        episodes: `episode_id`, `bytes` of texts and tokens; one row an episode, or several.
    """
    episodes = episodes.group_by("episode_id").agg(pl.col("bytes").sum()).sort("episode_id")
    bucket = episodes["bytes"].cum_sum() // bucket_bytes
    return episodes["episode_id"].filter((bucket != bucket.shift(1)).fill_null(value=False))


def bucket_of(episodes: pl.Series, firsts: pl.Series) -> pl.Series:
    """The bucket of each episode id."""
    found = firsts.search_sorted(episodes, side="right")
    return found.alias("bucket")


def shuffle(pieces: Sequence[Path], calls: pl.DataFrame, texts: Exchange, tokens: Exchange) -> None:
    """Put the texts and tokens of all pieces aside by bucket.

    Args:
        calls: `call`, `tokens?`, `bucket`.
    """
    for name, key, apart in (("texts", "call", texts), ("tokens", "tokens", tokens)):
        # One answer's tokens may belong to calls of two buckets.
        wanted = calls.select(key, "bucket").drop_nulls().unique()
        piece_of = wanted[key] // (1 << PLACE_BITS)
        for number, piece in enumerate(pieces):
            rows = shifted(pl.read_parquet(piece / f"{name}.parquet"), number, key)
            rows = rows.join(wanted.filter(piece_of == number), on=key, how="inner")
            apart.put(rows.drop("bucket"), rows["bucket"])
