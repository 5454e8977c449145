"""Rules: Polars SQL expressions of the configuration over the facts of episodes or calls."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from spanloop_trainer.config.rewards import RewardRule
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform.datasets.schema import REWARD_PART

# Texts, quoted names and comments: in this order of appearance, since each may hold the others' marks.
_NO_CODE = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/""", re.DOTALL)
# What looks at other rows, so that its value would depend on which episodes are read together; or makes several of one.
_BEYOND_THE_ROW = re.compile(r"\b(?:OVER|SELECT|ROW_NUMBER|UNNEST)\b", re.IGNORECASE)


def check_rules(rules: Sequence[RewardRule], blank: pl.DataFrame) -> None:
    """Try every expression on no rows: what is wrong with it shows before anything is read.

    Args:
        blank: of `facts.blank`, for the level of these rules.

    Raises:
        TransformError: an expression does not parse, names an unknown column, gives no number or looks beyond its row.
    """
    score_rules(rules, blank, blank.columns[0])


def score_rules(rules: Sequence[RewardRule], facts: pl.DataFrame, key: str) -> pl.DataFrame:
    """Evaluate rules over facts.

    Args:
        facts: of `facts.episode_facts` or `facts.call_facts`.
        key: column that names a row: `episode_id` or `row`.

    Returns:
        `key` and the fields of a reward part, one row for every finite value, ordered by rule.

    Raises:
        TransformError: as `check_rules`.
    """
    none = pl.DataFrame(schema={key: facts.schema[key], **REWARD_PART.to_schema()})
    return pl.concat([none, *(_score(rule, facts, key) for rule in rules)])


def _score(rule: RewardRule, facts: pl.DataFrame, key: str) -> pl.DataFrame:
    hint = "correct `expression` in spanloop.toml (Polars SQL giving a number or null); nothing was written"
    if _BEYOND_THE_ROW.search(_NO_CODE.sub(" ", rule.expression)):
        raise TransformError(
            f"reward {rule.name!r}: {rule.expression!r} cannot be evaluated: it looks at other rows than its own",
            hint,
        )
    visible = [name for name in facts.columns if name != "row"]
    try:
        # A name that no column has, for what is the row's own; the line break ends a comment in the expression.
        # What a task file says as lists and objects of many shapes is bytes of JSON; here it is text.
        frame = facts.select(pl.col(key).alias("_key"), pl.col(visible)).cast({pl.Binary: pl.String})
        values = frame.sql(f'SELECT "_key", (\n{rule.expression}\n) AS "_value" FROM self')  # noqa: S608  # the user's own
    except pl.exceptions.ColumnNotFoundError as error:
        raise TransformError(
            f"reward {rule.name!r}: {str(error).splitlines()[0].split(';')[0]}; valid columns: {', '.join(visible)}",
            "correct `expression` in spanloop.toml; nothing was written",
        ) from error
    except pl.exceptions.PolarsError as error:
        raise TransformError(
            f"reward {rule.name!r}: {rule.expression!r} cannot be evaluated: {str(error).splitlines()[0]}",
            hint,
        ) from error
    given = values.schema["_value"]
    if not (given.is_numeric() or given in (pl.Boolean, pl.Null)):
        raise TransformError(
            f"reward {rule.name!r}: {rule.expression!r} cannot be evaluated: it gives {given}, no number",
            hint,
        )
    value = pl.col("_value").cast(pl.Float64)
    return values.select(pl.col("_key").alias(key), value.alias("value")).filter(
        pl.col("value").is_finite()
    ).select(
        key,
        pl.lit(rule.name).alias("name"),
        "value",
        pl.lit("rule").alias("source"),
        pl.lit(rule.name).alias("evaluator"),
        pl.lit(rule.version).alias("version"),
    )  # fmt: skip
