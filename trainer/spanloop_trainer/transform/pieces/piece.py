"""One shard of a window in canonical form: slim columns that all stages see, and texts and tokens apart from them.

Slim rows of all pieces lie in memory together, since conversations and twins cross traces; texts and tokens are fetched
for a bucket of whole episodes at a time (see `pipeline`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from spanloop_trainer.transform.calls.distinct import refused, with_status
from spanloop_trainer.transform.reading.messages import read_messages
from spanloop_trainer.transform.reading.read import Spans

# What can be long. Everything else of a call is slim.
TEXTS = ("messages", "chats", "texts", "tools_json")
TOKENS = ("prompt_ids", "completion_ids", "logprobs")
# A key is the piece's number and, in the low bits, a place in it.
PLACE_BITS = 32


@dataclass(frozen=True)
class Slim:
    """What is short of one piece, or of all together; row order means nothing.

    Attributes:
        calls: one row a span that reports a model call: ids, times, facts, codes (see `pipeline`).
            `call` (u64) is its key in the texts; `own_tokens` (u64, null: none) the one in the tokens of what the exporter
            recorded; `bytes` (u64) about what its texts and tokens take in memory.
        gateway: one row a gateway span; `tokens` likewise.
        ancestors: `trace_id`, `span_id`, `parent_span_id` and the facts of `sql/ancestors.sql` of the spans of every trace in
            which a call has a parent.
        counts: as `Spans.counts`.
    """

    calls: pl.DataFrame
    gateway: pl.DataFrame
    ancestors: pl.DataFrame
    counts: dict[str, int]


@dataclass(frozen=True)
class Piece:
    """What stage A makes of some spans.

    Attributes:
        texts: `call`, `messages`, `chats`, `texts`, `tools_json`.
        tokens: `tokens` (u64), `prompt_ids`, `completion_ids`, `logprobs`; only spans that have some.
    """

    slim: Slim
    texts: pl.DataFrame
    tokens: pl.DataFrame


def canonical(spans: Spans) -> Piece:
    """Read the messages of some spans and set apart what is long; keys count from 0."""
    calls = (
        with_status(read_messages(spans.calls))
        .with_row_index("call")
        .with_columns(pl.col("call").cast(pl.UInt64))
    )
    long = pl.sum_horizontal(
        pl.col("messages", "chats", "texts").list.eval(pl.element().str.len_bytes() + 16).list.sum(),
        pl.col("tools_json").str.len_bytes(),
        4 * pl.col("own_prompt_ids").list.len(),
        12 * pl.col("own_completion_ids").list.eval(pl.element().list.len()).list.sum(),
    )
    calls = calls.with_columns(
        long.cast(pl.UInt64).alias("bytes"), pl.col("tools_json").is_not_null().alias("has_tools"), refused()
    )
    calls, own = set_apart(calls, "own_")
    gateway, served = set_apart(spans.gateway, "", own.height)
    return Piece(
        Slim(calls.drop(TEXTS), gateway, spans.ancestors, spans.counts),
        texts=calls.select("call", *TEXTS),
        tokens=pl.concat([own, served]),
    )


def together(pieces: Sequence[Slim]) -> Slim:
    """The slim rows of all pieces; the number of the piece goes into the keys."""
    if len(pieces) == 1:
        return pieces[0]
    shifted_ = [numbered(piece, number) for number, piece in enumerate(pieces)]
    return without_copies(
        pl.concat([piece.calls for piece in shifted_], how="diagonal_relaxed"),
        pl.concat([piece.gateway for piece in shifted_]),
        pl.concat([piece.ancestors for piece in shifted_]),
        {name: sum(piece.counts[name] for piece in pieces) for name in pieces[0].counts},
    )


def numbered(piece: Slim, number: int) -> Slim:
    """With keys that are unique among all pieces."""
    calls = shifted(piece.calls, number, "call", "own_tokens")
    return Slim(calls, shifted(piece.gateway, number, "tokens"), piece.ancestors, piece.counts)


def without_copies(
    calls: pl.DataFrame, gateway: pl.DataFrame, ancestors: pl.DataFrame, counts: dict[str, int]
) -> Slim:
    """Rows of several pieces, each once.

    Slices of a window overlap in what lies around their calls: gateway spans of the minute after, and spans above.
    """
    key = ["trace_id", "span_id"]
    return Slim(
        # A span that was sent twice, with two starts: the earlier stays, as within a piece.
        calls.sort(*key, "start").unique(key, keep="first", maintain_order=True),
        gateway.sort(*key, "in_window", descending=[False, False, True]).unique(
            key, keep="first", maintain_order=True
        ),
        ancestors.unique(key, keep="first"),
        counts,
    )


def shifted(frame: pl.DataFrame, number: int, *keys: str) -> pl.DataFrame:
    """Keys of piece `number`: unique among all pieces."""
    return frame.with_columns(pl.col(keys) + (number << PLACE_BITS))


def set_apart(frame: pl.DataFrame, prefix: str = "", first: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Replace the token lists of a frame by `tokens` (a key from `first` on; null: none) and `tokens_code` (null: no completion).

    Args:
        prefix: of the names of all these columns.

    Returns:
        The frame, and the lists by key.
    """
    names = [f"{prefix}{name}" for name in TOKENS]
    some = pl.any_horizontal(pl.col(name).list.len().fill_null(0) > 0 for name in names)
    completion = pl.col(f"{prefix}completion_ids")
    frame = frame.with_columns(
        pl.when(some).then((some.cum_sum() - 1).cast(pl.UInt64) + first).alias(f"{prefix}tokens"),
        pl.when(completion.list.len().fill_null(0) > 0).then(completion.hash()).alias(f"{prefix}tokens_code"),
    )
    tokens = frame.filter(pl.col(f"{prefix}tokens").is_not_null()).select(
        pl.col(f"{prefix}tokens").alias("tokens"),
        *(pl.col(name).alias(apart) for name, apart in zip(names, TOKENS, strict=True)),
    )
    return frame.drop(names), tokens
