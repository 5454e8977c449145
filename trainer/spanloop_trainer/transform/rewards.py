"""Rewards of episodes and calls: rules from the configuration, and the rows of table `rewards`."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl

from spanloop_trainer.config import Config, RewardRule
from spanloop_trainer.errors import TransformError
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


def address(
    judgements: pl.DataFrame, calls: pl.DataFrame, funnel: Funnel
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Find what each row of table `rewards` judges: by response id, else span id, else trace, else session.

    Args:
        calls: `row`, `episode_id`, `trace_id`, `span_id`, `response_id`, `session`.

    Returns:
        Parts of calls (`row` and the fields of a part) and of episodes (`episode_id` and the fields): a judgement that names
        a call goes to that call, one that names a trace or session to its episode, if it has just one there.
    """
    open_ = judgements.with_row_index("judgement")
    found = []
    for column in ("response_id", "span_id"):
        named = open_.filter(pl.col(column) != "")
        hit = named.join(calls.select("row", column), on=column, how="inner")
        found.append(hit.select("judgement", "row", *_PART))
        open_ = open_.join(hit, on="judgement", how="anti")
    of_calls = pl.concat(found).drop("judgement")
    wider = []
    # A judgement of a span that is no model call (a tool, an agent) is about its trace.
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
