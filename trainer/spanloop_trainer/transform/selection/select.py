"""Stage E of the filters: which rows a dataset keeps, in a fixed order, each loss counted with its reason.

Conditions, decontamination, exact and near duplicates, the cap. All of it comes after rewards and credit: a filter chooses what is
learned from, and an advantage says how an answer did among all that happened.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from spanloop_trainer.config.filters import Keep
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.selection.duplicates import near_copies
from spanloop_trainer.transform.selection.screen import ROW_COLUMNS, Screen, Screened, named_columns

# Shown in the manifest, for each file.
_EXAMPLES = 5


def select_rows(
    rows: pl.DataFrame, calls: pl.DataFrame, screened: Screened, screen: Screen, funnel: Funnel
) -> pl.DataFrame:
    """The rows that no filter drops, in their order.

    Args:
        rows: of stage E, with credit.
        calls: of stage B.
        screened: of stage D, all episodes.

    Raises:
        TransformError: a condition names an unknown column, or gives no truth value.
    """
    filters = screen.filters
    if filters == type(filters)():
        return rows
    drop = _Drop(rows, calls, funnel)
    settled = _settled(rows)
    episodes = (
        screened.episodes.drop([name for name in settled.columns if name != "episode_id"], strict=False)
        .join(settled, on="episode_id", how="left")
        .sort("start", "episode_id")
    )
    for keep in filters.episodes:
        left = drop.left(episodes)
        drop.episodes(f"filter {keep.name}", left.filter(~_holds(left, keep, "episodes")))
    for keep in filters.rows:
        drop.rows(f"filter {keep.name}", keep, screened.answers)
    if screen.texts is not None:
        _decontaminate(drop, screened, screen, funnel)
    if filters.exact_duplicates:
        left = drop.left(episodes)
        first = pl.col("episode_id").first().over("content")
        copies = left.filter(first != pl.col("episode_id"))
        detail = left.select(first.alias("detail"), "episode_id")
        drop.episodes("exact duplicate of an earlier episode", copies.join(detail, on="episode_id"))
    if filters.near_duplicates is not None:
        left = drop.left(episodes).filter(pl.col("signature").is_not_null())
        drop.episodes("near duplicate of an earlier episode", _near(left, filters.near_duplicates))
    if filters.episodes_per_task is not None:
        best = drop.left(episodes).sort(
            "reward", "start", "episode_id", descending=[True, True, False], nulls_last=True
        )
        rank = pl.int_range(0, pl.len()).over("task_id")
        drop.episodes(
            "more episodes of a task than `episodes_per_task`", best.filter(rank >= filters.episodes_per_task)
        )
    return drop.kept


class _Drop:
    """The rows that are left; each loss goes to the funnel."""

    def __init__(self, rows: pl.DataFrame, calls: pl.DataFrame, funnel: Funnel) -> None:
        self.kept, self._calls, self._funnel = rows, calls, funnel

    def left(self, episodes: pl.DataFrame) -> pl.DataFrame:
        """Those with rows that are left."""
        return episodes.join(self.kept, on="episode_id", how="semi", maintain_order="left")

    def episodes(self, reason: str, dropped: pl.DataFrame) -> None:
        """Args:
        dropped: `episode_id`, and `detail` if there is something to say.
        """
        names = ["episode_id", *(["detail"] if "detail" in dropped.columns else [])]
        lost = self.kept.join(dropped.select(names), on="episode_id", how="inner")
        self._lose(reason, lost)
        self.kept = self.kept.join(dropped, on="episode_id", how="anti", maintain_order="left")

    def rows(self, reason: str, keep: Keep, answers: pl.DataFrame) -> None:
        visible = _visible(self.kept, self._calls, answers)
        holds = visible.select(_holds(visible, keep, "rows").alias("holds"))["holds"]
        self._lose(reason, self.kept.filter(~holds))
        self.kept = self.kept.filter(holds)

    def _lose(self, reason: str, lost: pl.DataFrame) -> None:
        where = self._calls.select("row", "trace_id", "span_id")
        self._funnel.lose(reason, lost.height, lost.join(where, on="row", how="left"))


def _settled(rows: pl.DataFrame) -> pl.DataFrame:
    """What stage E knows of an episode: `screen.SETTLED`, `task_id`, `split`, `start`."""
    of_episodes = rows.group_by("episode_id").agg(
        pl.col("task_id").first(), pl.col("split").first(), pl.col("start").min(),
        pl.col("reward_episode").drop_nulls().first(),
        # Sorted, so that a sum of floats does not depend on the order of rows.
        pl.col("reward_call").drop_nulls().sort().sum(),
        pl.any_horizontal(pl.col("reward_episode", "reward_call").is_not_null()).any().alias("scored"),
    )  # fmt: skip
    # What credit takes for the episode's return, whatever its method discounts.
    earned = pl.col("reward_episode").fill_null(0.0) + pl.col("reward_call")
    return (
        of_episodes.with_columns(
            pl.when("scored").then(earned).alias("reward"),
        )
        .drop("reward_episode", "reward_call", "scored")
        .with_columns(
            pl.len().over("task_id").cast(pl.Int64).alias("task_episodes"),
            pl.col("reward").min().over("task_id").alias("task_reward_min"),
            pl.col("reward").max().over("task_id").alias("task_reward_max"),
        )
    )


def _visible(rows: pl.DataFrame, calls: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    answer = pl.col("answers").list.get(pl.col("place"), null_on_oob=True).struct
    joined = rows.join(
        calls.drop([name for name in calls.columns if name in rows.columns and name != "row"]),
        on="row", how="left", maintain_order="left",
    ).join(answers, on=["row", "place"], how="left", maintain_order="left")  # fmt: skip
    return joined.with_columns(
        pl.coalesce(
            answer.field("finish"), pl.col("finish_reasons").list.get(pl.col("choice"), null_on_oob=True)
        ).alias("finish_reason"),
        answer.field("tool_calls").fill_null(0).cast(pl.Int64).alias("tool_calls"),
        pl.col("length").cast(pl.Int64).alias("messages"),
        (pl.col("duration_ns") / 1e9).alias("duration_s"),
        pl.coalesce("temperature", "gateway_temperature").alias("temperature"),
    ).select(ROW_COLUMNS)


def _holds(frame: pl.DataFrame, keep: Keep, of: str) -> pl.Series:
    """Whether each row fulfils a condition; null: it does not."""
    named_columns(keep, of, frame.columns)
    try:
        values = frame.select(pl.sql_expr(keep.expression).alias("holds"))["holds"]
        if values.dtype not in (pl.Boolean, pl.Null):
            raise pl.exceptions.InvalidOperationError(f"it gives {values.dtype} and no truth value")
    except pl.exceptions.PolarsError as error:
        raise TransformError(
            f"filter {keep.name!r}: {keep.expression!r} cannot be evaluated: {str(error).splitlines()[0]}",
            f"correct `expression` under [[filters.{of}]] in spanloop.toml; nothing was written",
        ) from error
    return values.cast(pl.Boolean).fill_null(value=False)


def _decontaminate(drop: _Drop, screened: Screened, screen: Screen, funnel: Funnel) -> None:
    assert screen.texts is not None
    train = drop.kept.filter(pl.col("split") == "train")
    hits = screened.hits.join(train, on="episode_id", how="semi").sort("episode_id", "text")
    first = hits.unique("episode_id", keep="first", maintain_order=True)
    examples = [screen.texts.example(hit) for hit in first.iter_rows(named=True)]
    detail = pl.Series(
        "detail", [f"{e['file']}:{e['line']}: {e['words']}" for e in examples], dtype=pl.String
    )
    drop.episodes("shares words with an evaluation", first.select("episode_id", detail))
    shown = [
        example
        for evaluation in dict.fromkeys(e.file for e in screen.filters.decontaminate)
        for example in [one for one in examples if one["file"] == evaluation][:_EXAMPLES]
    ]
    if shown:
        funnel.examples["shares words with an evaluation"] = shown


def _near(episodes: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """`episode_id` and `detail` of near copies; the earliest stays."""
    if episodes.is_empty():
        return episodes
    ids = episodes["episode_id"]
    copies = near_copies(episodes["signature"].to_numpy().astype(np.uint32), threshold)
    return copies.select(
        ids.gather(copies["episode"]).alias("episode_id"),
        pl.concat_str(
            ids.gather(copies["stays"]), pl.col("similarity").round(2).cast(pl.String), separator=" "
        ).alias("detail"),
    )
