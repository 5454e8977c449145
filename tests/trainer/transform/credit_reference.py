"""The methods of credit as the papers write them: plain Python over lists, an episode at a time. Slow on purpose."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from spanloop_trainer.config.credit import Credit


@dataclass(frozen=True)
class Step:
    """One call: its own reward, whether it worked, what state it started from, what that state is worth."""

    reward: float | None = None
    ok: bool = True
    state: int = 0
    value: float | None = 0.0


@dataclass(frozen=True)
class Episode:
    """A run of one task by one agent; `reward` judges it as a whole."""

    task: int
    steps: tuple[Step, ...]
    reward: float | None = None
    agent: str = "a"


@dataclass
class _Run:
    episode: Episode
    times: list[int] = field(default_factory=list)
    earned: list[float | None] = field(default_factory=list)

    @property
    def total(self) -> float | None:
        known = [r for r in self.earned if r is not None]
        return math.fsum(known) if known else None

    def to_go(self, place: int, gamma: float) -> float | None:
        later = [
            (gamma ** (time - self.times[place])) * r
            for time, r in list(zip(self.times, self.earned, strict=True))[place:]
            if r is not None
        ]
        return math.fsum(later) if later else None


def _run(episode: Episode) -> _Run:
    run, worked = _Run(episode), 0
    for place, step in enumerate(episode.steps):
        worked += step.ok
        run.times.append(max(0, worked - 1))
        own = [step.reward] if step.reward is not None else []
        if place == len(episode.steps) - 1 and episode.reward is not None:
            own.append(episode.reward)
        run.earned.append(math.fsum(own) if own else None)
    return run


def _relative(value: float, group: list[float], *, scale: bool) -> float | None:
    if len(group) < 2:
        return None
    if max(group) - min(group) <= 1e-9 * max(abs(max(group)), abs(min(group))):
        return 0.0
    centred = value - statistics.fmean(group)
    return centred / statistics.stdev(group) if scale else centred


def reference(episodes: list[Episode], credit: Credit) -> list[tuple[float | None, float | None]]:
    """(return, advantage) of every step, episode after episode."""
    runs = [_run(episode) for episode in episodes]
    groups = defaultdict(list)
    states = defaultdict(list)
    gamma = credit.gamma or 1.0
    for run in runs:
        if run.total is not None:
            groups[run.episode.task, run.episode.agent].append(run.total)
        for place, step in enumerate(run.episode.steps):
            to_go = run.to_go(place, gamma)
            if step.ok and to_go is not None:
                states[run.episode.task, run.episode.agent, step.state].append(to_go)
    return [
        (run.to_go(place, gamma), _advantage(run, place, credit, groups, states))
        for run in runs
        for place in range(len(run.episode.steps))
    ]


def _advantage(run: _Run, place: int, credit: Credit, groups: Any, states: Any) -> float | None:
    total, step, gamma = run.total, run.episode.steps[place], credit.gamma or 1.0
    if total is None:
        return None
    group = groups[run.episode.task, run.episode.agent]
    match credit.method:
        case "identical":
            return total
        case "discounted":
            return gamma ** (run.times[-1] - run.times[place]) * total
        case "rewards_to_go":
            return run.to_go(place, gamma)
        case "grpo":
            return _relative(total, group, scale=bool(credit.scale_by_std))
        case "rloo":
            return total - (math.fsum(group) - total) / (len(group) - 1) if len(group) > 1 else None
        case "gigpo":
            of_episode = _relative(total, group, scale=bool(credit.scale_by_std))
            to_go = run.to_go(place, gamma)
            same = states[run.episode.task, run.episode.agent, step.state]
            compared = step.ok and to_go is not None
            of_state = _relative(to_go or 0.0, same, scale=bool(credit.scale_by_std)) if compared else 0.0
            return None if of_episode is None else of_episode + (credit.omega or 0.0) * (of_state or 0.0)
        case "gae":
            return _generalised(run, place, gamma, credit.lambda_ or 0.0)


def _generalised(run: _Run, place: int, gamma: float, lambda_: float) -> float | None:
    steps = run.episode.steps
    if not steps[place].ok or any(step.ok and step.value is None for step in steps):
        return None
    acted = [i for i, step in enumerate(steps) if step.ok]
    sums = 0.0
    for later, i in enumerate(acted[acted.index(place) :]):
        after = [j for j in acted if j > i]
        end = after[0] if after else len(steps)
        # What failed calls between two actions were given came of the first of them.
        earned = math.fsum(r for r in run.earned[i:end] if r is not None)
        value_after = steps[after[0]].value or 0.0 if after else 0.0
        delta = earned + gamma * value_after - (steps[i].value or 0.0)
        sums += (gamma * lambda_) ** later * delta
    return sums


def frame(episodes: list[Episode]) -> pl.DataFrame:
    """The rows of stage E, in the order of `reference`."""
    rows = [
        {
            "episode_id": f"e{number}",
            "step": place,
            "choice": 0,
            "task_id": f"t{episode.task}",
            "agent": episode.agent,
            "status": "ok" if step.ok else "error",
            "taken": True,
            "state_code": step.state,
            "reward_episode": episode.reward,
            "reward_call": step.reward,
            "value": step.value,
        }
        for number, episode in enumerate(episodes)
        for place, step in enumerate(episode.steps)
    ]
    return pl.DataFrame(
        rows,
        schema={
            "episode_id": pl.String,
            "step": pl.Int32,
            "choice": pl.Int32,
            "task_id": pl.String,
            "agent": pl.String,
            "status": pl.String,
            "taken": pl.Boolean,
            "state_code": pl.UInt64,
            "reward_episode": pl.Float64,
            "reward_call": pl.Float64,
            "value": pl.Float64,
        },
    )
