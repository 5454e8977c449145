"""The episode, or the call, that a judgement of a whole place (a trace, a session, the spans below one span) is about."""

from __future__ import annotations

import polars as pl

# What is needed of a call: `row`, codes of its episode and of the one that called that (null: none), and its time. Numbers are
# joined faster than ids.
OF_CALL = ("row", "episode", "caller", "start", "duration_ns")


def coded(calls: pl.DataFrame) -> pl.DataFrame:
    """The calls of stage B with `episode` and `caller`."""
    return calls.with_columns(
        pl.col("episode_id").hash().alias("episode"),
        pl.when(pl.col("parent_episode_id").is_not_null())
        .then(pl.col("parent_episode_id").hash())
        .alias("caller"),
    )


NOTHING = pl.DataFrame(
    schema={"judgement": pl.UInt32, "row": pl.UInt32, "episode": pl.UInt64, "by": pl.String}
)


def by_place(judged: pl.DataFrame, calls: pl.DataFrame, by: str) -> pl.DataFrame:
    """The one episode of a place, else the latest call of the one that ran when the judgement was made.

    Args:
        judged: `judgement`, `place`, `time`.
        calls: `place` (null: none) and `OF_CALL`.
        by: how a place's only episode is said to be found.

    Returns:
        `judgement`, `row` or `episode`, `by`, for what was found.
    """
    if judged.is_empty():
        return NOTHING
    calls = calls.join(judged.select("place").unique(), on="place", how="semi")
    inside = calls.select("place", "episode", "caller").unique()
    whole = judged.join(top(inside), on="place").select("judgement", "episode", pl.lit(by).alias("by"))
    rest = judged.join(whole, on="judgement", how="anti")
    return pl.concat([whole, running(rest, calls)], how="diagonal")


def top(inside: pl.DataFrame) -> pl.DataFrame:
    """`place` and `episode` where there is one episode alone, or one that called all others.

    Args:
        inside: `place`, `episode`, `caller`; distinct.
    """
    callers = inside.select("place", pl.col("episode").alias("caller")).unique()
    called = inside.join(callers, on=["place", "caller"], how="semi")
    tops = inside.join(called, on=["place", "episode"], how="anti").select("place", "episode").unique()
    return tops.filter(~pl.col("place").is_duplicated())


def running(judged: pl.DataFrame, calls: pl.DataFrame) -> pl.DataFrame:
    """The latest call before the judgement, of the one episode of the place that was running then; nothing if several were.

    Args:
        judged: `judgement`, `place`, `time`.
        calls: `place` and `OF_CALL`.

    Returns:
        `judgement`, `row`, `by`.
    """
    end = pl.col("start") + pl.duration(nanoseconds=pl.col("duration_ns").cast(pl.Int64))
    episodes = calls.group_by("place", "episode").agg(
        pl.col("start").min().alias("first"), end.max().alias("end")
    )
    then = (
        judged.join(episodes, on="place")
        .filter((pl.col("first") <= pl.col("time")) & (pl.col("time") <= pl.col("end")))
        .filter(~pl.col("judgement").is_duplicated())
    )
    return latest(then.select("judgement", "place", "episode", "time"), calls)


def latest(judged: pl.DataFrame, calls: pl.DataFrame) -> pl.DataFrame:
    """The call of an episode in a place that started last before a time, whether it had ended by then or not.

    Args:
        judged: `judgement`, `place`, `episode`, `time`.
        calls: `place`, `episode`, `row`, `start`.

    Returns:
        `judgement`, `row`, `by`.
    """
    return (
        judged.sort("time", "judgement")
        .join_asof(
            calls.select("place", "episode", "row", "start").sort("start", "row"),
            left_on="time",
            right_on="start",
            by=["place", "episode"],
            check_sortedness=False,
        )
        .filter(pl.col("row").is_not_null())
        .select("judgement", "row", pl.lit("time").alias("by"))
    )
