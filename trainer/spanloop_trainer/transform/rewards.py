"""Rewards of episodes and calls: rules from the configuration, and the rows of table `rewards`."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl

from spanloop_trainer.config import Config, RewardRule
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform.episodes import MAX_DEPTH
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.schema import REWARD_PART

_PART = ("name", "value", "source", "evaluator", "version")
# Facts of an episode that a rule may use, beside `expected` and `task_<field>`.
EPISODE_COLUMNS = (
    "episode_id", "task_id", "agent", "service", "split", "policy_version", "answer", "finish_reason",
    "status", "steps", "errors", "tool_calls", "duration_s",
)  # fmt: skip


def score_rules(episodes: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Evaluate every rule over every episode.

    Args:
        episodes: one row an episode, with `EPISODE_COLUMNS`, `expected` and `task_<field>` columns.

    Returns:
        `episode_id` and the fields of a reward part, one row for every non-null value, ordered by rule.

    Raises:
        TransformError: an expression does not parse, names an unknown column, or gives no number.
    """
    visible = [
        name
        for name in episodes.columns
        if name in EPISODE_COLUMNS or name == "expected" or name.startswith("task_")
    ]
    frame = episodes.select(visible)
    parts = [_score(frame, rule) for rule in config.rewards if rule.expression]
    schema = {"episode_id": pl.String, **REWARD_PART.to_schema()}
    return pl.concat([pl.DataFrame(schema=schema), *parts])


def _score(frame: pl.DataFrame, rule: RewardRule) -> pl.DataFrame:
    try:
        values = frame.select("episode_id", pl.sql_expr(rule.expression).cast(pl.Float64).alias("value"))
    except pl.exceptions.ColumnNotFoundError as error:
        raise TransformError(
            f"reward {rule.name!r}: {str(error).splitlines()[0].split(';')[0]}; valid columns: {', '.join(frame.columns)}",
            "correct `expression` in spanloop.toml; nothing was written",
        ) from error
    except pl.exceptions.PolarsError as error:
        raise TransformError(
            f"reward {rule.name!r}: {rule.expression!r} cannot be evaluated: {str(error).splitlines()[0]}",
            "correct `expression` in spanloop.toml (Polars SQL giving a number or null); nothing was written",
        ) from error
    return values.filter(pl.col("value").is_not_null() & pl.col("value").is_not_nan()).select(
        "episode_id",
        pl.lit(rule.name).alias("name"),
        "value",
        pl.lit("rule").alias("source"),
        pl.lit(rule.name).alias("evaluator"),
        pl.lit(rule.version).alias("version"),
    )


def name_answers(judgements: pl.DataFrame, calls: pl.DataFrame, gateway: pl.DataFrame) -> pl.DataFrame:
    """Give a judgement of a span the id of the answer that the span reports.

    One call may be reported by several spans, the gateway's among them, of which a dataset keeps one: a judgement of any of
    them is of the call. One that names a span alone gets its trace as well, if just one trace has such a span.

    Args:
        judgements: rows of table `rewards`.
        calls, gateway: all of them, with `trace_id`, `span_id` and `response_id`.
    """
    columns = ("trace_id", "span_id", pl.col("response_id").alias("known"))
    spans = pl.concat([calls.select(columns), gateway.select(columns)])
    # A span id is unique in its trace, and no further; judgements often name it alone.
    of_spans = spans.select(pl.col("trace_id").alias("its_trace"), "span_id").unique()
    of_spans = of_spans.unique("span_id", keep="none")
    known = spans.filter(pl.col("known").is_not_null()).unique(["trace_id", "span_id"], keep="none")
    alone = (pl.col("trace_id") == "") & pl.col("its_trace").is_not_null()
    named = (pl.col("response_id") == "") & pl.col("known").is_not_null()
    return (
        judgements.join(of_spans, on="span_id", how="left", maintain_order="left")
        .with_columns(pl.when(alone).then("its_trace").otherwise("trace_id").alias("trace_id"))
        .join(known, on=["trace_id", "span_id"], how="left", maintain_order="left")
        .with_columns(pl.when(named).then("known").otherwise("response_id").alias("response_id"))
        .drop("its_trace", "known")
    )


def address(
    judgements: pl.DataFrame, calls: pl.DataFrame, ancestors: pl.DataFrame, funnel: Funnel
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Find what each row of table `rewards` judges: by response id, else span id, else subtree, else trace, else session.

    Args:
        judgements: from `name_answers`.
        calls: `row`, `episode_id`, `trace_id`, `span_id`, `parent_span_id`, `response_id`, `session`.
        ancestors: `trace_id`, `span_id`, `parent_span_id` of the spans above them.

    Returns:
        Parts of calls (`row` and the fields of a part) and of episodes (`episode_id` and the fields): a judgement that names
        a call goes to that call, one that names a span above calls, a trace or a session to its episode, if it has just one
        there.
    """
    open_ = judgements.with_row_index("judgement")
    found = []
    for names in (["response_id"], ["trace_id", "span_id"]):
        named = open_.filter(pl.col(names[-1]) != "")
        hit = named.join(calls.select("row", *names), on=names, how="inner")
        found.append(hit.select("judgement", "row", *_PART))
        open_ = open_.join(hit, on="judgement", how="anti")
    of_calls = pl.concat(found).drop("judgement")
    hit = open_.join(_above(open_, calls, ancestors), on=["trace_id", "span_id"], how="inner")
    wider = [hit.select("judgement", "episode_id", *_PART)]
    open_ = open_.join(hit, on="judgement", how="anti")
    # A judgement of another span (a tool, a whole request) is about its trace.
    for column, key in (("trace_id", "trace_id"), ("session_id", "session")):
        places = (
            calls.filter(pl.col(key).is_not_null()).select(pl.col(key).alias(column), "episode_id").unique()
        )
        places = places.filter(~pl.col(column).is_duplicated())
        hit = open_.filter(pl.col(column) != "").join(places, on=column, how="inner")
        wider.append(hit.select("judgement", "episode_id", *_PART))
        open_ = open_.join(hit, on="judgement", how="anti")
    funnel.count("judgements_outside", open_.height)
    return of_calls, pl.concat(wider).drop("judgement")


def _above(open_: pl.DataFrame, calls: pl.DataFrame, ancestors: pl.DataFrame) -> pl.DataFrame:
    """`trace_id`, `span_id`, `episode_id` of judged spans below which there are calls of one episode alone."""
    key = ["trace_id", "span_id"]
    judged = open_.filter((pl.col("span_id") != "") & (pl.col("trace_id") != "")).select(key).unique()
    walk = calls.filter(pl.col("trace_id").is_in(judged["trace_id"].implode())).select(
        "episode_id", "trace_id", pl.col("parent_span_id").alias("span_id")
    )
    found = []
    for _ in range(MAX_DEPTH):
        walk = walk.filter(pl.col("span_id") != "").unique()
        if judged.is_empty() or walk.is_empty():
            break
        found.append(walk.join(judged, on=key, how="semi"))
        walk = walk.join(ancestors, on=key, how="inner").select(
            "episode_id", "trace_id", pl.col("parent_span_id").alias("span_id")
        )
    below = pl.concat([walk.clear(), *found]).unique()
    return below.filter(~pl.struct(key).is_duplicated()).select(*key, "episode_id")


def total(parts: pl.DataFrame, key: str, config: Config) -> pl.DataFrame:
    """`key`, `reward` (weighted sum) and `reward_parts` (a list in canonical order)."""
    weights = {rule.name: rule.weight for rule in config.rewards}
    ordered = parts.sort(key, *_PART)
    weight = pl.col("name").replace_strict(weights, default=1.0, return_dtype=pl.Float64)
    return ordered.group_by(key, maintain_order=True).agg(
        (pl.col("value") * weight).sum().alias("reward"), pl.struct(_PART).alias("reward_parts")
    )


def write_rule_rewards(client: Any, parts: pl.DataFrame, last_calls: pl.DataFrame, config: Config) -> int:
    """Write rule rewards to table `rewards`, so that dashboards see them; returns how many were new.

    The id is made from the rule and the episode's last call: building twice writes once, and an episode that grew, or a
    rule that changed, gets a new row.

    Args:
        last_calls: `episode_id`, `trace_id`, `span_id`, `response_id`, `end` (UTC) of the last call of every episode.
    """
    if parts.is_empty():
        return 0
    digests = {rule.name: hashlib.sha256(rule.expression.encode()).hexdigest()[:8] for rule in config.rewards}
    rows = parts.join(last_calls, on="episode_id").select(
        pl.concat_str(
            pl.lit("rule:"), "name", pl.lit("@"), "version", pl.lit(":"), pl.col("name").replace_strict(digests),
            pl.lit(":"), "episode_id", pl.lit(":"), "span_id",
        ).alias("id"),
        pl.col("end").dt.replace_time_zone("UTC").alias("time"),
        "trace_id", "span_id", pl.col("response_id").fill_null(""), pl.col("episode_id").alias("session_id"), "name",
        "value", "source", "evaluator", pl.col("version").alias("evaluator_version"),
    )  # fmt: skip
    first, last = rows["time"].min(), rows["time"].max()
    known = client.query(
        "SELECT id FROM rewards WHERE source = 'rule' AND time >= {first:DateTime64(9, 'UTC')} - INTERVAL 1 SECOND "
        "AND time <= {last:DateTime64(9, 'UTC')} + INTERVAL 1 SECOND",
        parameters={"first": first, "last": last},
    )
    ids = pl.Series("id", [row[0] for row in known.result_rows], dtype=pl.String)
    new = rows.filter(~pl.col("id").is_in(ids.implode())).sort("id")
    if new.height:
        client.insert_arrow("rewards", new.to_arrow(compat_level=pl.CompatLevel.oldest()))
    return new.height
