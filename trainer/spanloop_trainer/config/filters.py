"""`[filters]` of `spanloop.toml`: which episodes and rows a dataset leaves out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Keep(_Strict):
    """One condition; what does not fulfil it is left out."""

    name: str
    """In the funnel: `filter NAME`."""
    expression: str
    """Polars SQL giving true or false; null counts as false."""


class Evaluation(_Strict):
    """Texts that must not be learned from."""

    file: str
    """JSON lines (`.jsonl`), CSV (`.csv`) or Parquet (`.parquet`); relative to the folder of `spanloop.toml`."""
    column: str
    """Its texts, or chat messages, of which those of the user count."""


class Filters(_Strict):
    """What is left out, in this order; all of it comes after rewards and credit, which see every episode."""

    episodes: tuple[Keep, ...] = ()
    """Over the columns of an episode; drops whole episodes."""
    rows: tuple[Keep, ...] = ()
    """Over the columns of a row; drops rows."""
    decontaminate: tuple[Evaluation, ...] = ()
    """Drops episodes of the split `train` that share words with one of these texts."""
    decontaminate_words: int = Field(default=13, ge=2)
    """So many words in a row. A text with fewer is looked for as a whole user message."""
    exact_duplicates: bool = False
    """Drop an episode whose messages are those of an earlier one."""
    near_duplicates: float | None = Field(default=None, gt=0, le=1)
    """Drop an episode from this similarity to an earlier one on (Jaccard, of five words in a row); null: do not look."""
    episodes_per_task: int | None = Field(default=None, ge=1)
    """Keep at most so many episodes of a task: the best rewarded, then the newest; null: all."""
