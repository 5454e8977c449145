"""Messages to words and n-grams as numbers, working once per distinct message.

Hashes of words are made with BLAKE2 and not with Polars: which of two similar episodes stays must not depend on a version.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

# Scripts without spaces between words: each sign counts as one.
_SIGNS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = rf"[{_SIGNS}]|[\w--[{_SIGNS}]]+"
# What differs between two runs that say the same, and JSON around texts.
IDS = r'"(?:id|tool_call_id)": ?"[^"]*",?'
_FRAME = r'"(?:type|text|function|name|arguments)": ?(?:"(?:text|function)"(?:,|\}))?'
_DATA = r"data:[\w/.+-]+;base64,[\w+/=]*"
# An odd factor, so that multiplying loses nothing: 2^64 divided by the golden ratio.
_FACTOR = 0x9E3779B97F4A7C15
# Characters of text that are taken apart at a time; words and hashes of them take about ten times as much.
_CHUNK_CHARACTERS = 8 << 20

Codes = npt.NDArray[np.uint64]


class Messages(NamedTuple):
    """The messages of some episodes, each distinct one once."""

    distinct: pl.DataFrame  # `message` (u32), `role`, `text` (the words that were said), `raw` (JSON)
    uses: pl.DataFrame  # `episode_id`, `step`, `place` (answers behind the prompt), `message`


def episode_messages(bucket: pl.DataFrame) -> Messages:
    """All messages that calls sent or received.

    Args:
        bucket: of stage D: `episode_id`, `step`, `messages`, `chats`.
    """
    uses = (
        bucket.select("episode_id", "step", pl.concat_list(pl.col("messages", "chats").fill_null([])).alias("raw"))
        .with_columns(pl.int_ranges(0, pl.col("raw").list.len(), dtype=pl.Int32).alias("place"))
        .filter(pl.col("raw").list.len() > 0)
        .explode("raw", "place")
        .with_columns(pl.col("raw").hash().alias("code"))
    )  # fmt: skip
    first = uses.unique("code", keep="first", maintain_order=True).with_row_index("message")
    raw = pl.col("raw")
    content = raw.str.json_path_match("$.content").fill_null("")
    calls = raw.str.json_path_match("$.tool_calls").fill_null("")
    # A tool's result may be a text that is JSON: its words count, ids and all.
    parts = content.str.starts_with("[{") & raw.str.contains(r'"content": ?\[')
    bare = pl.when(parts).then(_bare(content)).otherwise(content) + " " + _bare(calls)
    distinct = first.select(
        "message",
        raw.str.json_path_match("$.role").alias("role"),
        bare.alias("text"),
        "raw",
    )
    uses = uses.join(first.select("code", "message"), on="code", how="left", maintain_order="left")
    return Messages(distinct, uses.select("episode_id", "step", "place", "message"))


def _bare(json: pl.Expr) -> pl.Expr:
    """The texts in a JSON array of parts or of tool calls."""
    cleared = json.str.replace_all(_DATA, "").str.replace_all(IDS, "").str.replace_all(_FRAME, " ")
    return cleared.str.replace_all(r'\\(?:[nrtbf]|u00[0-9a-f]{2}|["\\/])', " ")


class Grams(NamedTuple):
    """n-grams of words, in the order of texts and places; a text with fewer words has one, of all of them."""

    text: npt.NDArray[np.int64]  # which text, as a place in the series
    place: npt.NDArray[np.int64]  # first word
    short: npt.NDArray[np.bool_]  # it is all of a text with fewer than n words
    code: Codes


def grams(texts: pl.Series, size: int) -> Grams:
    """The n-grams of texts; case and punctuation do not count, and no n-gram crosses the end of a text."""
    found = []
    lengths = texts.str.len_chars().fill_null(0).to_numpy().astype(np.int64)
    chunk = np.maximum(np.cumsum(lengths) - 1, 0) // _CHUNK_CHARACTERS
    starts = np.flatnonzero(np.diff(chunk, prepend=-1))
    for first, last in pairwise([*starts.tolist(), len(texts)]):
        part = _grams(texts[first:last], size)
        found.append(part._replace(text=part.text + first))
    if not found:
        return Grams(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.uint64))
    return Grams(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def words_of(texts: pl.Series) -> pl.Series:
    """The words of texts, so that one word written in two ways is one: case, width, ligatures and accents of their own (NFKC)."""
    known = texts.alias("text").to_frame()
    # ASCII is normal already, and most texts are no more than that.
    plain = pl.col("text").str.len_bytes() == pl.col("text").str.len_chars()
    normal = pl.when(plain).then("text").otherwise(pl.col("text").str.normalize("NFKC"))
    return known.select(normal.str.to_lowercase().str.extract_all(WORD).alias("words"))["words"]


def _grams(texts: pl.Series, size: int) -> Grams:
    words = words_of(texts)
    count = words.list.len().fill_null(0).to_numpy().astype(np.int64)
    words = words.filter(words.list.len() > 0)
    codes = _word_codes(words.explode(empty_as_null=True) if len(words) else pl.Series([], dtype=pl.String))
    text = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(codes)) - np.repeat(np.cumsum(count) - count, count)
    left = np.repeat(count, count) - place  # words from this one to the end of its text
    total = np.zeros(len(codes), np.uint64)
    for ahead in range(min(size, int(count.max(initial=0)))):
        shifted = np.zeros_like(codes)
        shifted[: len(codes) - ahead] = codes[ahead:]
        total = np.where(left > ahead, total * np.uint64(_FACTOR) + shifted, total)
    short = (place == 0) & (left < size)
    kept = (left >= size) | short
    # Short ones of different lengths differ, whatever words they end with.
    total += np.where(short, left, 0).astype(np.uint64)
    return Grams(text[kept], place[kept], short[kept], mix(total[kept]))


def _word_codes(words: pl.Series) -> Codes:
    """64 bits of BLAKE2b of every word."""
    keys = words.alias("word").to_frame().with_columns(pl.col("word").hash().alias("key"))
    distinct = keys.unique("key")
    digests = b"".join(
        hashlib.blake2b(word.encode(), digest_size=8).digest() for word in distinct["word"].to_list()
    )
    table = distinct.select("key", pl.Series("code", np.frombuffer(digests, "<u8"), dtype=pl.UInt64))
    joined = keys.select("key").join(table, on="key", how="left", maintain_order="left")["code"]
    return joined.to_numpy().astype(np.uint64)


def mix(values: Codes) -> Codes:
    """Every bit of the result depends on every bit of the value (splitmix64's last steps)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
