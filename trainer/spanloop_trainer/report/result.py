"""`result.json` of a run: the numbers behind every sentence of its report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spanloop_trainer.errors import ReportError

RESULT = "result.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class VersionResult(_Part):
    """One model version on the held-out tasks, and what it was made from."""

    version: str  # NAME@VERSION
    algorithm: str = ""  # sft, reinforce, rloo, … or `scripted`
    parent: str = ""  # version that training started from; empty: fresh weights
    dataset_id: str = ""  # content hash; empty: not trained here
    episodes: int | None = None  # episodes in that dataset; None: not trained here
    transitions: int | None = None  # model calls in that dataset
    mean_reward: float | None = None  # mean episode reward; None: not measured
    ci95_low: float | None = None  # 95 % interval of that mean
    ci95_high: float | None = None
    measured_on: str = ""  # `held-out`, or `training tasks` for a version seen only while collecting


class Comparison(_Part):
    """Final against base over some pairs; the fields of `evaluation.Comparison`."""

    pairs: int  # (agent, task) pairs
    tasks: int | None = None  # distinct tasks
    baseline_mean: float
    candidate_mean: float
    gain: float
    gain_ci95_low: float
    gain_ci95_high: float


class Stage(_Part):
    """One stretch of the run."""

    name: str
    seconds: float = Field(ge=0)


class DecisionResult(_Part):
    """One decision of the gate."""

    version: str
    alias: str = "production"
    promoted: bool
    reason: str


class Trace(_Part):
    """One episode as it was recorded."""

    prompt: str  # the task
    messages: list[dict[str, Any]]  # OpenAI chat form, the final answer included
    reward: float | None = None  # None: unscored
    version: str  # that played it
    agent: str = ""
    expected: str = ""  # the right answer, if the task has one


class RunResult(_Part):
    """What a run found. Further fields are kept and ignored by the page."""

    title: str = "Spanloop run"
    gain: float  # mean paired difference of the episode reward, final - base
    gain_ci95_low: float  # 95 % bootstrap interval
    gain_ci95_high: float
    tasks: int  # held-out tasks that the gain is measured on
    base: float  # mean reward of the base
    final: float  # mean reward of the final version
    best_possible: float | None = None  # score of an oracle on the same tasks
    sft_on_successes: float | None = None  # score of SFT on the successful episodes of the same data
    final_minus_sft: Comparison | None = None  # final against that model, paired on the same tasks
    seconds: float  # whole run
    versions: list[VersionResult] = []  # oldest first
    per_agent: dict[str, Comparison] = {}
    per_wording: dict[str, Comparison] = {}
    stages: list[Stage] = []  # in the order they ran
    decisions: list[DecisionResult] = []  # oldest first; the last one is the run's outcome
    decoders: dict[str, int] = {}  # spans by decoder: engine, fallback, quarantine
    trace_before: Trace | None = None
    trace_after: Trace | None = None
    notes: list[str] = []

    @property
    def engine_share(self) -> float | None:
        """Share of spans that the engine itself decoded; None where none was counted."""
        total = sum(self.decoders.values())
        return self.decoders.get("engine", 0) / total if total else None


def load_result(run: Path) -> RunResult:
    """Read a run's result.

    Raises:
        ReportError: there is none, or it is not one.
    """
    path = run / RESULT
    try:
        return RunResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ReportError(
            f"{path} cannot be read: {error.strerror}", "name the folder of a finished run: --run runs/demo"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ReportError(f"{path}: {where}: {first['msg']}", "run it again: `make demo`") from error


def save_result(run: Path, result: RunResult) -> Path:
    """Write `result.json`, whole or not at all."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / RESULT
    part = run / f".{RESULT}.{os.getpid()}"
    part.write_text(result.model_dump_json(indent=2) + "\n")
    part.replace(path)
    return path
