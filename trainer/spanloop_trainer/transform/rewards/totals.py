"""Several judgements to one reward: a sum weighted by the configuration, with every part kept."""

from __future__ import annotations

import polars as pl

from spanloop_trainer.config import Config

_PART = ("name", "value", "source", "evaluator", "version")


def total(parts: pl.DataFrame, key: str, config: Config) -> pl.DataFrame:
    """`key`, `reward` (weighted sum; a name that no `[[rewards]]` has weighs 1) and `reward_parts` (in canonical order).

    What weighs 0 is kept and judges nothing: with no other part the reward is null, unscored.
    """
    weights = {rule.name: rule.weight for rule in config.rewards}
    ordered = parts.sort(key, *_PART)
    weight = pl.col("name").replace_strict(weights, default=1.0, return_dtype=pl.Float64)
    return ordered.group_by(key, maintain_order=True).agg(
        pl.when((weight != 0).any()).then((pl.col("value") * weight).sum()).alias("reward"),
        pl.struct(_PART).alias("reward_parts"),
    )
