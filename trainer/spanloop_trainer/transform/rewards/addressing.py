"""What a judgement by others judges: by explicit link, then by subtree, then by time.

docs/rewards.md has the order, and what each step gives: a call, or a whole episode. What stays ambiguous is counted and given to
nobody: a reward on the wrong one of two agents teaches worse than a lost one.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.rewards.places import NOTHING, OF_CALL, by_place, coded
from spanloop_trainer.transform.rewards.subtrees import by_subtree

PART = ("name", "value", "source", "evaluator", "version")


class Found(NamedTuple):
    """Parts of reward by what they judge; `by` tells how that was found: `link`, `subtree`, `time`, `trace` or `session`.

    Attributes:
        of_calls: `row`, `by`, and the fields of a reward part.
        of_episodes: `episode_id`, `by`, and the fields of a reward part.
    """

    of_calls: pl.DataFrame
    of_episodes: pl.DataFrame

    def within(self, calls: pl.DataFrame) -> Found:
        """What judges these calls and their episodes."""
        return Found(
            self.of_calls.join(calls, on="row", how="semi"),
            self.of_episodes.join(calls, on="episode_id", how="semi"),
        )


def address(judgements: pl.DataFrame, calls: pl.DataFrame, ancestors: pl.DataFrame, funnel: Funnel) -> Found:
    """Find what each row of table `rewards` judges.

    Args:
        judgements: from `naming.name_answers`.
        calls: of stage B, all of them: with those left out that are waited for, a judgement of two runs would be of the other.
        ancestors: the skeleton of their traces.
    """
    judgements = judgements.with_row_index("judgement")
    calls = coded(calls)
    open_, targets = judgements, [NOTHING]
    hit = _by_response(open_.filter(pl.col("response_id") != ""), calls)
    targets.append(hit)
    open_ = open_.join(hit, on="judgement", how="anti")
    # An answer that the dataset leaves out: its run is not judged by it. (Of one that several calls gave, it may be.)
    left_out = (pl.col("span_id") == "") & pl.col("of_call")
    open_ = open_.filter(~left_out | pl.col("response_id").is_in(calls["response_id"].drop_nulls().implode()))
    code = pl.struct("trace_id", "span_id").hash().alias("code")
    named = open_.filter(pl.col("span_id") != "").select("judgement", code)
    hit = named.join(calls.select("row", code), on="code")
    targets.append(hit.select("judgement", "row", pl.lit("link").alias("by")))
    open_ = open_.join(hit, on="judgement", how="anti")
    hit, settled = by_subtree(open_, calls, ancestors)
    targets.append(hit)
    open_ = open_.join(settled, on="judgement", how="anti")
    # A judgement of what has no span here is about its trace, else about its session.
    for column, own, by in (("trace_id", "trace_id", "trace"), ("session_id", "session", "session")):
        named = open_.filter(pl.col(column) != "").select("judgement", pl.col(column).alias("place"), "time")
        hit = by_place(named, calls.select(pl.col(own).alias("place"), *OF_CALL), by)
        targets.append(hit)
        open_ = open_.join(hit, on="judgement", how="anti")
    found = pl.concat(targets, how="diagonal_relaxed").join(
        judgements.select("judgement", *PART), on="judgement"
    )
    funnel.count("judgements_outside", judgements.height - found["judgement"].n_unique())
    of_episodes = found.filter(pl.col("episode").is_not_null())
    ids = calls.join(of_episodes, on="episode", how="semi").select("episode", "episode_id").unique("episode")
    return Found(
        found.filter(pl.col("row").is_not_null()).select("row", "by", *PART),
        of_episodes.join(ids, on="episode").select("episode_id", "by", *PART),
    )


def _by_response(named: pl.DataFrame, calls: pl.DataFrame) -> pl.DataFrame:
    """`judgement`, `row`, `by` of those whose response id is of one call, or of one in the trace that they name.

    Some servers number their answers from 1 again, and a cache gives one answer twice.
    """
    if named.is_empty():
        return NOTHING
    hit = named.select("judgement", "response_id", "trace_id").join(
        calls.select("response_id", "row", pl.col("trace_id").alias("its_trace")), on="response_id"
    )
    same = hit.filter(pl.col("trace_id") == pl.col("its_trace"))
    hit = pl.concat([same, hit.join(same, on="judgement", how="anti")])
    return hit.filter(~pl.col("judgement").is_duplicated()).select(
        "judgement", "row", pl.lit("link").alias("by")
    )
