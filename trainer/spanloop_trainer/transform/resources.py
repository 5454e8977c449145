"""How model versions and prompt versions did in a window: episodes, rewards with an interval, tokens.

The calls of the window go through the same stages as in `build`, so that an episode is the same here and there. Rewards are
the rows of table `rewards`, what `build` computed among them; nothing is computed anew, and no judge is asked.
"""

from __future__ import annotations

import math
from collections import defaultdict
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
from spanloop_trainer.transform.rewards.stored import OF_CALL

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
        low, high: 95 % interval of the mean, by task; None: fewer than two are scored.
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
        config: for the weights of rewards; no rule is evaluated.
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
    # A rule that judged an episode again when it had grown, or the rule had changed: what was written last counts. What judges
    # calls has one a call.
    again: pl.Expr = (
        pl.when(pl.col("id").str.starts_with(OF_CALL)).then("span_id")
        .when(pl.col("session_id") == "").then("id")
        .otherwise(pl.lit(""))
    )  # fmt: skip
    newest = (
        judgements.filter("computed")
        .with_columns(again.alias("of"))
        .sort("time", "received", "id")
        .unique(["source", "name", "session_id", "of"], keep="last", maintain_order=True)
        .drop("of")
    )
    counted = pl.concat([judgements.filter(~pl.col("computed")), newest]).drop("computed", "received")
    found = address(
        name_answers(counted, slim.calls, slim.gateway, slim.ancestors), calls, slim.ancestors, Funnel()
    )
    # What judges a call of another agent is that agent's; what `build` computed of an episode names its last call, whosever it is.
    whole = newest.filter(~pl.col("id").str.starts_with(OF_CALL)).select("source", "name").unique()
    of_whole = found.of_calls.join(whole, on=["source", "name"], how="semi")
    of_own = found.of_calls.join(whole, on=["source", "name"], how="anti").join(
        calls.filter("selected"), on="row", how="semi"
    )
    names = calls.select("row", "episode_id")
    parts = [
        total(found.of_episodes.drop("by"), "episode_id", config).select("episode_id", "reward"),
        total(pl.concat([of_whole, of_own]).drop("by"), "row", config)
        .join(names, on="row")
        .select("episode_id", "reward"),
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
        calls.select(*pair, "episode_id", "task_id").unique()
        .join(rewards, on="episode_id")
        .sort(*pair, "task_id", "reward")
        .group_by(pair, maintain_order=True).agg(pl.col("reward").alias("rewards"), pl.col("task_id").alias("tasks"))
    )  # fmt: skip
    table = of_calls.join(scored, on=pair, how="left").sort(pair)
    found = []
    for row in table.iter_rows(named=True):
        rewards_of = row.pop("rewards") or []
        mean, low, high = interval(rewards_of, row.pop("tasks") or [])
        found.append(ByResource(**row, scored=len(rewards_of), mean=mean, low=low, high=high))
    return found


def interval(
    values: Sequence[float], tasks: Sequence[str]
) -> tuple[float | None, float | None, float | None]:
    """Mean and its 95 % interval, tasks taken as independent.

    Episodes of one task are alike: ten runs of each of ten tasks tell less of the next task than runs of a hundred. So the variance
    of the mean is that of the sums of tasks (Liang and Zeger 1986, with the factor m / (m - 1) for m tasks). Of zeros and ones Wilson's
    interval (1927), which does not shrink to nothing where all succeed, with as many episodes as would have that variance if
    each had a task of its own; else Student's t. Episodes of one task alone are taken as independent.

    Args:
        values, tasks: of each episode.
    """
    count = len(values)
    if not count:
        return None, None, None
    mean = fmean(values)
    if count < 2:
        return mean, None, None
    of_tasks: dict[str, float] = defaultdict(float)
    for value, task in zip(values, tasks, strict=True):
        of_tasks[task] += value - mean
    groups = len(of_tasks) if len(of_tasks) > 1 else count
    repeated = groups < count
    if repeated:
        variance = groups / (groups - 1) * math.fsum(of**2 for of in of_tasks.values()) / count**2
    else:
        variance = stdev(values) ** 2 / count
    quantile = _student(groups - 1)
    if set(values) <= {0.0, 1.0}:
        size = float(count)
        if repeated:
            # Where all are alike nothing tells how alike those of a task are: each task counts once.
            size = min(size, mean * (1 - mean) / variance if variance else size if 0 < mean < 1 else groups)
        else:
            quantile = _Z
        middle = (mean + quantile**2 / (2 * size)) / (1 + quantile**2 / size)
        half = quantile * math.sqrt(mean * (1 - mean) / size + quantile**2 / (4 * size**2))
        half /= 1 + quantile**2 / size
        return mean, max(0.0, middle - half), min(1.0, middle + half)
    half = quantile * math.sqrt(variance)
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
