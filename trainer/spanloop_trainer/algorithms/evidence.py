"""What a dataset can teach: counts its evidence, picks the algorithm that it carries, and selects the rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from spanloop_trainer.errors import TrainError
from spanloop_trainer.settings import POLICY_GRADIENT, ResolvedSettings
from spanloop_trainer.transform.credit import among_rollouts, episode_returns

_HAS_TOKENS = (
    pl.col("prompt_ids").is_not_null()
    & pl.col("completion_ids").is_not_null()
    & pl.col("logprobs").is_not_null()
)
_USABLE = (pl.col("split") == "train") & (pl.col("status") == "ok") & pl.col("action").is_not_null()


@dataclass(frozen=True)
class Evidence:
    """Counts over the rows that may be trained on (split train, status ok).

    Attributes:
        dataset: the folder, for messages.
        rows: such transitions.
        with_tokens: of these, with captured prompt ids, completion ids and log-probabilities.
        scored: of these, with a reward.
        rewards: distinct rewards, ascending.
        differ_with_tokens: whether rewards differ among the rows with tokens, which policy gradient learns from.
        uneven_groups: tasks with two rollouts or more whose rewards differ, among rows with tokens.
    """

    dataset: Path
    rows: int
    with_tokens: int
    scored: int
    rewards: tuple[float, ...]
    differ_with_tokens: bool
    uneven_groups: int

    @classmethod
    def of(cls, frame: pl.DataFrame, dataset: Path) -> Evidence:
        """Count.

        Raises:
            TrainError: no row may be trained on.
        """
        usable = frame.filter(_USABLE)
        if usable.is_empty():
            in_train = frame.filter(pl.col("split") == "train").height
            raise TrainError(
                f"{dataset} has no transition to train on: {frame.height} rows, {in_train} of split train, none of"
                " these with status ok.",
                "widen the window of spanloop build, or check its funnel for what became of the spans",
            )
        groups = (
            episode_returns(usable.filter(_HAS_TOKENS))
            .group_by("group")
            .agg(pl.col("score").n_unique().alias("levels"))
        )
        return cls(
            dataset=dataset,
            rows=usable.height,
            with_tokens=usable.filter(_HAS_TOKENS).height,
            scored=usable.filter(pl.col("reward").is_not_null()).height,
            rewards=tuple(usable["reward"].drop_nulls().unique().sort().to_list()),
            differ_with_tokens=usable.filter(_HAS_TOKENS)["reward"].drop_nulls().n_unique() > 1,
            uneven_groups=groups.filter(pl.col("levels") > 1).height,
        )


class Choice(NamedTuple):
    """The algorithm to run."""

    algorithm: str
    reason: str  # one sentence
    min_reward: float | None = (
        None  # SFT on successes: what counts as one; None leaves the user's setting alone
    )


def choose(algorithm: str, evidence: Evidence, min_reward: float | None = None) -> Choice:
    """The algorithm to run and one sentence why.

    A named algorithm is taken; `auto` takes the strongest that is honest for the evidence.

    Args:
        min_reward: the user's own bar for a success, if there is one.

    Raises:
        TrainError: `auto`, and the rewards say nothing, or do not say what a success is.
    """
    if algorithm != "auto":
        return Choice(algorithm, "as asked for")
    rewards = evidence.rewards
    if not rewards:
        return Choice("sft", "no reward anywhere: the model can only learn to imitate what was logged")
    if len(rewards) == 1:
        raise _no_signal(evidence)
    if evidence.with_tokens and evidence.uneven_groups:
        return Choice(
            "rloo",
            f"token ids and log-probabilities were captured, and rewards differ within {evidence.uneven_groups} tasks",
        )
    if evidence.differ_with_tokens:
        return Choice(
            "reinforce", "token ids and log-probabilities were captured, and rewards differ between tasks"
        )
    if min_reward is not None or len(rewards) == 2:
        bar = rewards[-1] if min_reward is None else min_reward
        return Choice(
            "sft",
            f"no reward differs where token ids were captured: only successes (reward >= {bar:g}) are imitated",
            bar,
        )
    raise TrainError(
        f"rewards in {evidence.dataset} have {len(rewards)} values from {rewards[0]:g} to {rewards[-1]:g}, and none"
        " differs where token ids were captured, so only successes can be imitated, and nothing says which those are.",
        "add --min-reward X, or run the agents through the gateway to capture token ids",
    )


def _no_signal(evidence: Evidence) -> TrainError:
    return TrainError(
        f"no reward differs in {evidence.dataset}: all {evidence.scored} scored transitions have"
        f" {evidence.rewards[0]:g}.",
        "collect rollouts that succeed and fail (temperature above 0, harder tasks), or check the reward rule",
    )


def select_rows(
    frame: pl.DataFrame, algorithm: str, settings: ResolvedSettings, evidence: Evidence
) -> pl.DataFrame:
    """The rows that `algorithm` trains on, column `advantage` final.

    SFT takes every usable row, or with `min_reward` those with at least that reward. Policy gradient takes rows
    with captured tokens and an advantage.

    Raises:
        TrainError: what the algorithm needs is not there.
    """
    usable = frame.filter(_USABLE).sort("episode_id", "step", "choice")
    if algorithm in POLICY_GRADIENT:
        return _policy_gradient_rows(usable, algorithm, evidence)
    usable = usable.filter(pl.col("weight").fill_null(1.0) > 0)
    if settings.min_reward is None:
        return usable
    if not evidence.scored:
        raise _no_rewards(evidence)
    kept = usable.filter(pl.col("reward") >= settings.min_reward)
    if kept.is_empty():
        raise TrainError(
            f"no transition in {evidence.dataset} has a reward of at least {settings.min_reward:g};"
            f" the highest is {evidence.rewards[-1]:g}.",
            "lower --min-reward, or collect rollouts that succeed",
        )
    return kept


def _no_rewards(evidence: Evidence) -> TrainError:
    return TrainError(
        f"{evidence.dataset} has no rewards: none of its {evidence.rows} usable transitions is scored.",
        "add a [[rewards]] rule to spanloop.toml and build again, or use --algorithm sft to imitate everything",
    )


def _policy_gradient_rows(usable: pl.DataFrame, algorithm: str, evidence: Evidence) -> pl.DataFrame:
    if not evidence.scored:
        raise _no_rewards(evidence)
    if not evidence.with_tokens:
        raise TrainError(
            f"{algorithm} needs token ids and log-probabilities, and none of the {evidence.rows} usable transitions in"
            f" {evidence.dataset} has them.",
            "run the agents through the gateway on vLLM or spanloop serve, or use --algorithm sft --min-reward 1",
        )
    if len(evidence.rewards) == 1:
        raise _no_signal(evidence)
    rows = usable.filter(_HAS_TOKENS)
    _check_aligned(rows, evidence)
    _check_temperature(rows, evidence)
    if algorithm != "reinforce":  # which takes the credit that the dataset was built with
        rows = among_rollouts(rows, "rloo" if algorithm == "rloo" else "grpo")
    rows = rows.filter(pl.col("advantage").is_not_null()).with_columns(
        advantage=pl.col("advantage") * pl.col("weight").fill_null(1.0)
    )
    if rows.is_empty():
        raise TrainError(
            f"{algorithm} compares rollouts of one task, and no task in {evidence.dataset} was run twice.",
            "run each task several times, or use --algorithm reinforce",
        )
    flat = (
        rows["advantage"].n_unique() == 1
        if algorithm == "reinforce"
        else bool((rows["advantage"] == 0).all())
    )
    if flat:
        raise TrainError(
            f"no reward differs where {algorithm} compares: {rows.height} transitions, all with advantage"
            f" {rows['advantage'][0]:g}.",
            "collect rollouts that succeed and fail on one task"
            + ("" if algorithm == "reinforce" else ", or use --algorithm reinforce"),
        )
    return rows


def _check_aligned(rows: pl.DataFrame, evidence: Evidence) -> None:
    broken = rows.filter(
        (pl.col("completion_ids").list.len() != pl.col("logprobs").list.len())
        | (pl.col("completion_ids").list.len() == 0)
        | pl.col("logprobs").list.eval(pl.element().is_null() | ~pl.element().is_finite()).list.any()
    )
    if not broken.is_empty():
        first = broken.row(0, named=True)
        raise TrainError(
            f"{broken.height} transitions in {evidence.dataset} have log-probabilities that do not match their"
            f" completion ids; the first is span {first['span_id']}.",
            "check the server that produced them: it must return one finite log-probability a sampled token",
        )


def sampling_temperature(rows: pl.DataFrame) -> list[float]:
    """Distinct temperatures that the rows were sampled at, ascending; a request without one means 1."""
    values = rows["sampling"].struct.field("temperature").fill_null(1.0)
    return [float(value) for value in values.unique().sort().to_list()]


def _check_temperature(rows: pl.DataFrame, evidence: Evidence) -> None:
    values = sampling_temperature(rows)
    if values != [1.0]:
        raise TrainError(
            f"{evidence.dataset} was sampled at temperature {', '.join(f'{value:g}' for value in values)};"
            " log-probabilities there are not those of the model that is trained.",
            "collect rollouts at temperature 1 and top_p 1, or use --algorithm sft --min-reward 1",
        )
