"""How model versions and prompt versions did in a window: episodes, rewards with an interval, tokens.

The calls of the window go through the same stages as in `build`, so that an episode is the same here and there. Rewards are
the rows of table `rewards`, what `build` computed among them; nothing is computed anew, and no judge is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.transform.episodes.tasks import read_tasks
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.pieces.gather import looked_at
from spanloop_trainer.transform.pieces.piece import Slim
from spanloop_trainer.transform.pipeline import link
from spanloop_trainer.transform.reading.read import Window, read_all_rewards, read_usage
from spanloop_trainer.transform.rewards import address, name_answers, total

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class ByResource:
    """What one model version did with one prompt version.

    Attributes:
        model: `policy_version` of the calls; empty: nobody says.
        prompt: `NAME@VERSION` that the gateway sent, else the hash of the system prompt; empty: there was none.
        episodes: in which the two took part; an episode in which versions changed counts once for each pair.
        scored: of these, with a reward.
        mean: of the rewards of scored episodes; None: none is scored. With rewards of 0 and 1 the share of successes.
        low, high: 95 % interval of the mean; None: fewer than two are scored.
        calls, failed: model calls, and those of them without a usable answer.
        input_tokens, output_tokens: as reported; calls for which nobody reported any count 0.
    """

    model: str
    prompt: str
    episodes: int
    scored: int
    mean: float | None
    low: float | None
    high: float | None
    calls: int
    failed: int
    input_tokens: int
    output_tokens: int


def by_resource(
    client: Any,
    window: Window,
    config: Config,
    *,
    agents: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> list[ByResource]:
    """By model and prompt, in alphabetical order.

    Args:
        config: for the weights of rewards and for which rules judge calls; no rule is evaluated.
        agents: only these; empty: all.

    Raises:
        ConfigError: a task file is missing or malformed.
        StoreUnavailable: the store did not answer.
    """
    with looked_at(client, window, progress) as (slim, _):
        calls = link(slim, read_tasks(config), agents=tuple(agents), funnel=Funnel())
    rewards = _rewards(calls, slim, read_all_rewards(client), config)
    return _summed(_with_tokens(calls.filter("selected"), read_usage(client, window)), rewards)


def _rewards(calls: pl.DataFrame, slim: Slim, judgements: pl.DataFrame, config: Config) -> pl.DataFrame:
    """`episode_id` and `reward` (weighted sum of all that was said of it and of its calls) of scored episodes."""
    of_calls = [rule.name for rule in config.rewards if rule.level == "call"]
    # A rule that judged an episode again when it had grown: the newer value counts. What judges calls has one a call.
    again: pl.Expr = (
        pl.when(pl.col("name").is_in(of_calls)).then("span_id")
        .when(pl.col("session_id") == "").then("id")
        .otherwise(pl.lit(""))
    )  # fmt: skip
    newest = (
        judgements.filter("computed")
        .with_columns(again.alias("of"))
        .sort("time", "id")
        .unique(["source", "name", "session_id", "of"], keep="last", maintain_order=True)
        .drop("of")
    )
    counted = pl.concat([judgements.filter(~pl.col("computed")), newest]).drop("computed")
    found = address(
        name_answers(counted, slim.calls, slim.gateway, slim.ancestors), calls, slim.ancestors, Funnel()
    )
    names = calls.select("row", "episode_id")
    parts = [
        total(found.of_episodes.drop("by"), "episode_id", config).select("episode_id", "reward"),
        total(found.of_calls.drop("by"), "row", config).join(names, on="row").select("episode_id", "reward"),
    ]
    return (
        pl.concat(parts)
        .sort("episode_id", "reward")
        .group_by("episode_id", maintain_order=True)
        .agg(pl.col("reward").sum())
    )


def _with_tokens(calls: pl.DataFrame, usage: pl.DataFrame) -> pl.DataFrame:
    """Adds `input_tokens` and `output_tokens` of the call's own span, else of the gateway's of the same answer."""
    tokens = ("input_tokens", "output_tokens")
    own = usage.filter(~pl.col("is_gateway")).select("trace_id", "span_id", *tokens)
    served = (
        usage.filter(pl.col("is_gateway") & (pl.col("response_id") != ""))
        .unique("response_id", keep="first", maintain_order=True)
        .select("response_id", *(pl.col(name).alias(f"{name}_served") for name in tokens))
    )
    return (
        calls.join(own, on=["trace_id", "span_id"], how="left", maintain_order="left")
        .join(served, on="response_id", how="left", maintain_order="left")
        .with_columns(pl.coalesce(name, f"{name}_served").fill_null(0).alias(name) for name in tokens)
    )


def _summed(calls: pl.DataFrame, rewards: pl.DataFrame) -> list[ByResource]:
    pair = ["model", "prompt"]
    calls = calls.with_columns(
        pl.col("policy_version").fill_null("").alias("model"),
        pl.col("resources").list.eval(
            pl.element().filter(pl.element().str.starts_with("prompt:")).str.strip_prefix("prompt:")
        ).list.first().fill_null("").alias("prompt"),
    )  # fmt: skip
    of_calls = calls.group_by(pair).agg(
        pl.col("episode_id").n_unique().alias("episodes"),
        pl.len().alias("calls"),
        (pl.col("status") != "ok").sum().alias("failed"),
        pl.col("input_tokens", "output_tokens").sum(),
    )
    scored = (
        calls.select(*pair, "episode_id").unique()
        .join(rewards, on="episode_id")
        .sort(*pair, "reward")
        .group_by(pair, maintain_order=True).agg(pl.col("reward").alias("rewards"))
    )  # fmt: skip
    table = of_calls.join(scored, on=pair, how="left").sort(pair)
    found = []
    for row in table.iter_rows(named=True):
        rewards_of = row.pop("rewards") or []
        mean, low, high = interval(rewards_of)
        found.append(ByResource(**row, scored=len(rewards_of), mean=mean, low=low, high=high))
    return found


def interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Mean and its 95 % interval, episodes taken as independent.

    Of zeros and ones Wilson's (1927), which does not shrink to nothing where all succeed; else Student's t.
    """
    count = len(values)
    if not count:
        return None, None, None
    mean = fmean(values)
    if count < 2:
        return mean, None, None
    if set(values) <= {0.0, 1.0}:
        middle = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
        half = _Z * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
        return mean, max(0.0, middle - half), min(1.0, middle + half)
    half = _student(count - 1) * stdev(values) / math.sqrt(count)
    return mean, mean - half, mean + half


def _student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: closed forms, from 3 on the expansion (Abramowitz and Stegun 26.7.5), good to 1 %."""
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
