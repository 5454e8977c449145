"""Stage D of the filters: what must be known of an episode's texts, as one slim row an episode."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.config.filters import Filters, Keep
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform.selection.duplicates import contents, signatures
from spanloop_trainer.transform.selection.evaluation import HIT, Texts, read_texts
from spanloop_trainer.transform.selection.words import episode_messages

# Of a row, what an expression may name; the rest of the contract's columns is lists, or text of whole prompts.
ROW_COLUMNS = (
    "episode_id", "step", "choice", "task_id", "agent", "service", "trace_id", "span_id", "response_id", "start",
    "done", "taken", "status", "error_type", "failure", "finish_reason", "parent_episode_id", "messages", "tool_calls", "duration_s", "reward",
    "return_", "advantage", "policy", "policy_version", "temperature", "weight", "split", "answer",
)  # fmt: skip
ANSWER = {"row": pl.UInt32, "place": pl.Int32, "answer": pl.String}
# Of an episode, known in stage E alone.
SETTLED = ("start", "reward", "task_episodes", "task_reward_min", "task_reward_max")


@dataclass(frozen=True)
class Screened:
    """Of one bucket or of all.

    Attributes:
        episodes: `episode_id`; `content` and `signature` where duplicates are looked for; the columns that filters of episodes name.
        hits: columns `evaluation.HIT`.
        answers: columns `ANSWER`, the texts of all answers; empty unless a filter of rows names them.
    """

    episodes: pl.DataFrame
    hits: pl.DataFrame
    answers: pl.DataFrame


@dataclass(frozen=True)
class Screen:
    """The filters of a build, and the evaluation's texts, read once."""

    filters: Filters
    texts: Texts | None

    def look(self, bucket: pl.DataFrame, facts: pl.DataFrame) -> Screened:
        """Look at the episodes of a bucket.

        Args:
            bucket: of stage D.
            facts: one row an episode: what expressions may name.

        Raises:
            TransformError: a filter names an unknown column, or is no expression.
        """
        episodes = facts.select("episode_id", *self._named(facts))
        filters = self.filters
        looks = filters.exact_duplicates or filters.near_duplicates is not None or self.texts is not None
        hits = pl.DataFrame(schema=HIT)
        if looks:
            messages = episode_messages(bucket)
            found = []
            if filters.exact_duplicates:
                found.append(contents(bucket, messages))
            if filters.near_duplicates is not None:
                found.append(signatures(messages))
            episodes = reduce(
                lambda left, right: left.join(right, on="episode_id", how="left", maintain_order="left"),
                found,
                episodes,
            )
            if self.texts is not None:
                hits = self.texts.hits(messages)
        return Screened(episodes, hits, self._answers(bucket))

    def _answers(self, bucket: pl.DataFrame) -> pl.DataFrame:
        named = {
            name for keep in self.filters.rows for name in named_columns(keep, "rows", list(ROW_COLUMNS))
        }
        if "answer" not in named:
            return pl.DataFrame(schema=ANSWER)
        return (
            bucket.filter((pl.col("status") == "ok") & (pl.col("texts").list.len() > 0))
            .select("row", pl.int_ranges(0, pl.col("texts").list.len()).alias("place"), pl.col("texts").alias("answer"))
            .explode("place", "answer")
            .cast(ANSWER)  # type: ignore[arg-type]  # a dict of types
        )  # fmt: skip

    def _named(self, facts: pl.DataFrame) -> list[str]:
        valid = [*facts.columns, *SETTLED]
        used = {name for keep in self.filters.episodes for name in named_columns(keep, "episodes", valid)}
        return sorted(used - set(SETTLED) - {"episode_id"})


def named_columns(keep: Keep, of: str, valid: list[str]) -> list[str]:
    """The columns that an expression names.

    Raises:
        TransformError: it does not parse, or names a column that there is not.
    """
    hint = f"correct `expression` under [[filters.{of}]] in spanloop.toml; nothing was written"
    try:
        names = pl.sql_expr(keep.expression).meta.root_names()
    except pl.exceptions.PolarsError as error:
        raise TransformError(
            f"filter {keep.name!r}: {keep.expression!r} cannot be read: {str(error).splitlines()[0]}", hint
        ) from error
    for name in names:
        if name not in valid:
            raise TransformError(
                f"filter {keep.name!r}: there is no column {name!r}; valid columns: {', '.join(valid)}", hint
            )
    return names


def screen_of(config: Config) -> Screen:
    """Read what filters need.

    Raises:
        ConfigError: an evaluation file cannot be read.
    """
    filters = config.filters
    return Screen(filters, read_texts(config) if filters.decontaminate else None)


def together(screened: list[Screened]) -> Screened:
    """Of all buckets."""
    return Screened(
        pl.concat([one.episodes for one in screened], how="diagonal_relaxed"),
        pl.concat([one.hits for one in screened]),
        pl.concat([one.answers for one in screened]),
    )
