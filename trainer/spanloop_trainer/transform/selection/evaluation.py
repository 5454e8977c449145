"""Decontamination: episodes that share words with texts of an evaluation.

As for GPT-3 (arXiv 2005.14165, appendix C): n-grams of words without case and punctuation, 13 by default. A text with fewer words
is looked for as a whole user message, since its words in another's sentence are no sign of anything.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.config.filters import Evaluation
from spanloop_trainer.errors import ConfigError
from spanloop_trainer.transform.selection.words import WORD, Grams, Messages, grams, words_of

# What E needs of a hit: which message of an episode shares which words with which text.
HIT = {
    "episode_id": pl.String, "step": pl.Int32, "text": pl.UInt32, "place": pl.Int32, "grams": pl.UInt32
}  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """The texts of all evaluation files.

    Attributes:
        size: words of an n-gram.
        texts: `text` (u32), `file`, `line` (from 1), `words`.
        grams: `code`, `short`, `text`, `place`; one row a code, of the first text that has it.
    """

    size: int
    texts: pl.DataFrame
    grams: pl.DataFrame

    def hits(self, messages: Messages) -> pl.DataFrame:
        """Episodes that share words with a text: columns `HIT`, one row an episode and text; `grams` is how many are shared."""
        distinct = messages.distinct
        found = _frame(grams(distinct["text"], self.size), distinct["message"], "message").drop("place")
        asked = distinct.filter(pl.col("role") == "user").select("message")
        shared = found.join(self.grams, on=["code", "short"], how="inner").filter(
            ~pl.col("short") | pl.col("message").is_in(asked["message"].implode())
        )
        of_messages = shared.group_by("message", "text").agg(
            pl.col("place").min(), pl.col("code").n_unique().alias("grams")
        )
        return (
            messages.uses.group_by("episode_id", "message")
            .agg(pl.col("step").min())
            .join(of_messages, on="message", how="inner")
            .sort("episode_id", "text", "step", "place")
            .group_by("episode_id", "text", maintain_order=True)
            .agg(pl.col("step").first(), pl.col("place").first(), pl.col("grams").max())
            .select(pl.col(name).cast(dtype) for name, dtype in HIT.items())
        )  # fmt: skip

    def example(self, hit: dict[str, Any]) -> dict[str, Any]:
        """A hit for people to read: the words are those of the evaluation's text."""
        row = self.texts.row(hit["text"], named=True)
        words = row["words"][hit["place"] : hit["place"] + self.size]
        return {
            "file": row["file"], "line": row["line"], "words": " ".join(words), "episode_id": hit["episode_id"],
            "step": hit["step"], "grams": hit["grams"],
        }  # fmt: skip


def _frame(found: Grams, numbers: pl.Series, name: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            name: numbers.gather(pl.Series(found.text)),
            "place": pl.Series(found.place, dtype=pl.Int32),
            "short": found.short,
            "code": found.code,
        }
    )


def read_texts(config: Config) -> Texts:
    """The texts of all files under [[filters.decontaminate]].

    Raises:
        ConfigError: a file cannot be read, or lacks its column.
    """
    size = config.filters.decontaminate_words
    frames = [_read(config.evaluation_path(one), one) for one in config.filters.decontaminate]
    texts = pl.concat(frames).with_row_index("text")
    found = _frame(grams(texts["words"], size), texts["text"], "text")
    known = found.unique(["code", "short"], keep="first", maintain_order=True)
    return Texts(size, texts.with_columns(words_of(texts["words"]).alias("words")), known)


def _read(path: Path, evaluation: Evaluation) -> pl.DataFrame:
    """`file`, `line`, `words` (the text); several rows where a line has several messages."""
    readers: dict[str, Callable[[bytes], pl.DataFrame]] = {
        ".jsonl": lambda raw: pl.read_ndjson(raw, infer_schema_length=None),
        # As text: a number would lose its leading zeros.
        ".csv": lambda raw: pl.read_csv(raw, infer_schema=False),
        ".parquet": pl.read_parquet,
    }
    where = f"evaluation file {evaluation.file}"
    hint = "correct [[filters.decontaminate]] in spanloop.toml"
    if (kind := path.suffix.lower()) not in readers:
        raise ConfigError(f"{where} is neither .jsonl nor .csv nor .parquet", hint)
    try:
        # Editors of Windows begin a file with a mark of its encoding.
        frame = readers[kind](path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{where} cannot be read: {str(error).splitlines()[0]}", hint) from error
    if evaluation.column not in frame.columns:
        raise ConfigError(
            f"{where} has no column {evaluation.column!r}; it has {', '.join(map(repr, frame.columns))}", hint
        )
    try:
        texts = _texts(frame[evaluation.column])
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"{where}: column {evaluation.column!r} is no text: {str(error).splitlines()[0]}", hint
        ) from error
    if texts["words"].str.contains(WORD).any():
        return texts.select(pl.lit(evaluation.file).alias("file"), "line", "words")
    raise ConfigError(
        f"{where}: column {evaluation.column!r} has no text, so that nothing would be found", hint
    )


def _texts(column: pl.Series) -> pl.DataFrame:
    """`line` (from 1) and `words`: of chat messages those of the user, since a system prompt may be that of every episode."""
    frame = column.alias("words").to_frame().with_row_index("line", 1)
    while (dtype := frame.schema["words"]) != pl.String:
        if isinstance(dtype, pl.Struct):
            fields = [field.name for field in dtype.fields]
            if "role" in fields:
                frame = frame.filter(pl.col("words").struct.field("role") == "user")
            inner = next((name for name in ("content", "text") if name in fields), None)
            if inner is None:
                raise pl.exceptions.InvalidOperationError(f"it has fields {', '.join(fields)} and no content")
            frame = frame.with_columns(pl.col("words").struct.field(inner).alias("words"))
        elif isinstance(dtype, pl.List | pl.Array):
            frame = frame.explode("words", empty_as_null=True)
        else:
            frame = frame.with_columns(pl.col("words").cast(pl.String))
    return frame.with_columns(pl.col("words").fill_null(""))
