"""What `build` computed, as rows of table `rewards`, so that dashboards show it beside what others judged."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.config.rewards import RewardRule

# Ids that begin so are `build`'s own, whatever their source: it computes them anew and does not read them back.
OWN = "spanloop.build:"
# So begin the ids of what rules say of single calls: an episode has several of a name, of which each counts.
OF_CALL = "rule/call:"


def write_computed(
    client: Any, of_episodes: pl.DataFrame, of_calls: pl.DataFrame, calls: pl.DataFrame, config: Config
) -> int:
    """Write the rewards of rules and verifiers to table `rewards`; returns how many were new.

    The id is made from the rule and from the call that is named (of an episode the last): building twice writes once, and an
    episode that grew, or a rule that changed, gets a new row.

    Args:
        of_episodes: `episode_id` and the fields of a reward part.
        of_calls: `row` and the same.
        calls: of stage B.
    """
    ours = pl.col("source").is_in(["rule", "verifier"])
    end = pl.col("start") + pl.duration(nanoseconds=pl.col("duration_ns").cast(pl.Int64))
    columns = ("episode_id", "trace_id", "span_id", "response_id", end.alias("end"))
    parts = pl.concat(
        [
            of_episodes.filter(ours)
            .join(calls.filter("last").select(columns), on="episode_id")
            .with_columns(pl.lit("rule:").alias("of")),
            of_calls.filter(ours)
            .join(calls.select("row", *columns), on="row")
            .drop("row")
            .with_columns(pl.lit(OF_CALL).alias("of")),
        ],
        how="diagonal",
    )
    if parts.is_empty():
        return 0
    digests = {rule.name: digest(rule, config) for rule in config.rewards}
    rows = parts.select(
        pl.concat_str(
            pl.when(pl.col("source") == "rule").then("of").otherwise(pl.lit(f"{OWN}verifier:")),
            "name", pl.lit("@"), "version", pl.lit(":"), pl.col("name").replace_strict(digests),
            pl.lit(":"), "episode_id", pl.lit(":"), "span_id",
        ).alias("id"),
        pl.col("end").dt.replace_time_zone("UTC").alias("time"),
        "trace_id", "span_id", pl.col("response_id").fill_null(""), pl.col("episode_id").alias("session_id"), "name",
        "value", "source", "evaluator", pl.col("version").alias("evaluator_version"),
    )  # fmt: skip
    first, last = rows["time"].min(), rows["time"].max()
    known = client.query(
        "SELECT id FROM rewards WHERE (source = 'rule' OR startsWith(id, {own:String})) "
        "AND time >= {first:DateTime64(9, 'UTC')} - INTERVAL 1 SECOND "
        "AND time <= {last:DateTime64(9, 'UTC')} + INTERVAL 1 SECOND "
        "AND session_id >= {from:String} AND session_id <= {to:String}",
        parameters={
            "first": first,
            "last": last,
            "own": OWN,
            "from": rows["session_id"].min(),
            "to": rows["session_id"].max(),
        },
    )
    ids = pl.Series("id", [row[0] for row in known.result_rows], dtype=pl.String)
    new = rows.filter(~pl.col("id").is_in(ids.implode())).sort("id")
    if new.height:
        client.insert_arrow("rewards", new.to_arrow(compat_level=pl.CompatLevel.oldest()))
    return new.height


def digest(rule: RewardRule, config: Config) -> str:
    """What a rule does, in 32 bits: of its expression, or of its verifier with options and file."""
    if rule.expression:
        return hashlib.sha256(rule.expression.encode()).hexdigest()[:8]
    hashed = hashlib.sha256(rule.model_dump_json(include={"verifier", "options"}).encode())
    if path := config.verifier_path(rule):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:8]
