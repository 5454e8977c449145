"""Compares two policy versions on the held-out tasks that both have run: paired differences and their interval."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spanloop_trainer.errors import EvaluationError
from spanloop_trainer.transform import load_dataset

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from spanloop_store.registry import Evaluation

RESAMPLES = 10_000  # the ends of a 95 % interval then move by about 1 % of its width between seeds
_CHUNK = 4_000_000  # resampled indices held at once (32 MB)
FEW_PAIRS = 30  # below this a percentile interval is too narrow more often than 5 % of the time; we say so
PAIR = ("agent", "task_id")


@dataclass(frozen=True)
class Comparison:
    """Candidate against baseline over some pairs; every pair is one (agent, task) and weighs the same."""

    pairs: int
    tasks: int  # distinct; two agents on one task are two pairs that are drawn together
    baseline_mean: float  # mean episode reward
    candidate_mean: float
    gain: float  # mean of candidate - baseline
    gain_ci95_low: float
    gain_ci95_high: float


@dataclass(frozen=True)
class Side:
    """What became of one version's held-out episodes."""

    version: str
    episodes: int
    scored: int
    unscored: int  # ended well, but nothing has judged them: left out, never counted as 0
    failed_unscored: (
        int  # ended in an error or a cut stream and unjudged: left out as well, see EvaluationReport.notes
    )
    unpaired: int  # pairs (agent, task) that only this side has scored


@dataclass(frozen=True)
class EvaluationReport:
    """One evaluation, as it is printed and recorded."""

    id: str  # hash of what was compared and how: the same evaluation has the same id
    dataset_id: str
    baseline: Side
    candidate: Side
    mixed_episodes: int  # left out: a version switch fell into them
    pooled: Comparison
    per_agent: dict[str, Comparison]
    by: str  # task field that groups; empty: none
    per_group: dict[str, Comparison]  # by value of that field
    seed: int
    resamples: int
    notes: list[str] = field(default_factory=list)

    def record(self) -> Evaluation:
        """The registry's row."""
        from spanloop_store.registry import Evaluation

        details = asdict(self)
        for name in ("id", "dataset_id"):
            del details[name]
        return Evaluation(
            id=self.id,
            dataset_id=self.dataset_id,
            baseline=self.baseline.version,
            candidate=self.candidate.version,
            tasks=self.pooled.pairs,
            baseline_mean=self.pooled.baseline_mean,
            candidate_mean=self.pooled.candidate_mean,
            gain=self.pooled.gain,
            gain_ci95_low=self.pooled.gain_ci95_low,
            gain_ci95_high=self.pooled.gain_ci95_high,
            details=details,
        )


def paired_bootstrap(
    differences: NDArray[np.float64],
    clusters: NDArray[np.int64],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean paired difference.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3. What is drawn with replacement is the
    cluster (a task with every pair that ran it): pairs of one task share its difficulty, so drawing them one by one
    would make the interval too narrow. With one pair a task it is the ordinary paired bootstrap.

    Args:
        differences: (N,) candidate - baseline.
        clusters: (N,) number of each pair's cluster, 0 … K-1, none empty.
        resamples: how often to draw.
        seed: of the draws.

    Returns:
        the 2.5th and 97.5th percentile of the resampled means.
    """
    sums = np.bincount(clusters, weights=differences)  # (K,)
    counts = np.bincount(clusters).astype(np.float64)  # (K,)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CHUNK // len(sums))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, len(sums), size=(rows, len(sums)))
        means[start : start + rows] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def held_out_episodes(transitions: pl.DataFrame) -> pl.DataFrame:
    """One row for each test-split episode.

    Args:
        transitions: columns of `transitions.parquet`.

    Returns:
        `episode_id`, `agent`, `task_id`, `version` (null: a version switch fell into it), `reward` (null: unscored;
        the mean of the scored rows, which is the reward itself wherever all steps carry the same), `failed`.
    """
    return (
        transitions.filter(pl.col("split") == "test")
        .sort("episode_id", "step", "choice")
        .group_by("episode_id", maintain_order=True)
        .agg(
            pl.col("agent").first(),
            pl.col("task_id").first(),
            pl.when(pl.col("policy_version").n_unique() == 1)
            .then(pl.col("policy_version").first())
            .alias("version"),
            pl.col("policy_version").unique().alias("versions"),
            pl.col("reward").mean(),
            (pl.col("status").last() != "ok").alias("failed"),
        )
    )


def compare(
    transitions: pl.DataFrame,
    baseline: str,
    candidate: str,
    *,
    dataset_id: str = "",
    by: str = "",
    tasks: pl.DataFrame | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> EvaluationReport:
    """Compare two versions on the held-out tasks of a dataset.

    Args:
        transitions: columns of `transitions.parquet`.
        baseline: a value of `policy_version`.
        candidate: another one.
        dataset_id: for the record.
        by: a column of `tasks` to report apart, such as `task_wording`; empty: none.
        tasks: columns `task_id` and `by`.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        EvaluationError: fewer than two pairs, or no such task field.
    """
    if baseline == candidate:
        raise EvaluationError(f"{baseline} cannot be compared with itself", "name two versions")
    episodes = held_out_episodes(transitions)
    mixed = episodes.filter(
        pl.col("version").is_null()
        & pl.col("versions").list.set_intersection([baseline, candidate]).list.len().gt(0)
    )
    sides = {name: episodes.filter(pl.col("version") == name) for name in (baseline, candidate)}
    means = {
        name: frame.filter(pl.col("reward").is_not_null()).group_by(PAIR).agg(pl.col("reward").mean())
        for name, frame in sides.items()
    }
    pairs = (
        means[baseline]
        .join(means[candidate], on=PAIR, suffix="_candidate")
        .with_columns((pl.col("reward_candidate") - pl.col("reward")).alias("difference"))
        .sort(PAIR)
    )
    if pairs.height < 2:
        raise _nothing_pairs(episodes, baseline, candidate, pairs.height)
    if by:
        pairs = _with_field(pairs, by, tasks)
    report = EvaluationReport(
        id=_identity(dataset_id, baseline, candidate, by, resamples, seed),
        dataset_id=dataset_id,
        baseline=_side(baseline, sides[baseline], means[baseline], pairs),
        candidate=_side(candidate, sides[candidate], means[candidate], pairs),
        mixed_episodes=mixed.height,
        pooled=_comparison(pairs, resamples, seed),
        per_agent=_groups(pairs, "agent", resamples, seed),
        by=by,
        per_group=_groups(pairs, by, resamples, seed) if by else {},
        seed=seed,
        resamples=resamples,
    )
    report.notes.extend(_notes(report))
    return report


def evaluate(
    dataset: Path,
    baseline: str,
    candidate: str,
    *,
    by: str = "",
    tasks: pl.DataFrame | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    client: Client | None = None,
) -> EvaluationReport:
    """`compare` on a dataset folder; with a client the result becomes a row of `evaluations`.

    Raises:
        DatasetError: the folder is no finished dataset.
        EvaluationError: as `compare`; nothing is written.
    """
    manifest, transitions = load_dataset(dataset)
    report = compare(
        transitions,
        baseline,
        candidate,
        dataset_id=manifest.id,
        by=by,
        tasks=tasks,
        resamples=resamples,
        seed=seed,
    )
    if client is not None:
        from spanloop_store import registry

        registry.record_evaluation(client, report.record())
    return report


def _comparison(pairs: pl.DataFrame, resamples: int, seed: int) -> Comparison:
    differences = pairs["difference"].to_numpy()
    clusters = pairs["task_id"].rank("dense").to_numpy().astype(np.int64) - 1
    low, high = paired_bootstrap(differences, clusters, resamples=resamples, seed=seed)
    return Comparison(
        pairs=pairs.height,
        tasks=int(clusters.max()) + 1,
        baseline_mean=float(pairs["reward"].to_numpy().mean()),
        candidate_mean=float(pairs["reward_candidate"].to_numpy().mean()),
        gain=float(differences.mean()),
        gain_ci95_low=low,
        gain_ci95_high=high,
    )


def _groups(pairs: pl.DataFrame, column: str, resamples: int, seed: int) -> dict[str, Comparison]:
    parts: Mapping[tuple[Any, ...], pl.DataFrame] = pairs.partition_by(column, as_dict=True)
    named = {"(none)" if key is None else str(key): part for (key,), part in parts.items()}
    return {name: _comparison(named[name], resamples, seed) for name in sorted(named)}


def _side(version: str, episodes: pl.DataFrame, means: pl.DataFrame, pairs: pl.DataFrame) -> Side:
    unscored = pl.col("reward").is_null()
    return Side(
        version=version,
        episodes=episodes.height,
        scored=episodes.filter(~unscored).height,
        unscored=episodes.filter(unscored & ~pl.col("failed")).height,
        failed_unscored=episodes.filter(unscored & pl.col("failed")).height,
        unpaired=means.join(pairs, on=PAIR, how="anti").height,
    )


def _with_field(pairs: pl.DataFrame, by: str, tasks: pl.DataFrame | None) -> pl.DataFrame:
    known = (
        []
        if tasks is None
        else [name for name in tasks.columns if name.startswith("task_") and name != "task_id"]
    )
    if tasks is None or by not in known:
        raise EvaluationError(
            f"the task files have no field {by!r}; fields: {', '.join(known) or 'none'}",
            "name a field of the task files in spanloop.toml: --by task_FIELD --config spanloop.toml",
        )
    return pairs.join(tasks.select("task_id", by), on="task_id", how="left", maintain_order="left")


def _notes(report: EvaluationReport) -> list[str]:
    notes = []
    if report.pooled.tasks < FEW_PAIRS:
        notes.append(f"only {report.pooled.tasks} tasks: the interval is rough, and likely too narrow")
    failed = (report.baseline.failed_unscored, report.candidate.failed_unscored)
    if any(failed):
        note = f"failed episodes without a reward are left out ({failed[0]} of the baseline, {failed[1]} of the candidate)"
        if failed[1] > failed[0]:
            note += "; the candidate fails more often, so the gain is overstated unless a reward rule scores failures"
        notes.append(note)
    if report.mixed_episodes:
        notes.append(
            f"{report.mixed_episodes} episodes are left out because the version changed while they ran"
        )
    return notes


def _nothing_pairs(episodes: pl.DataFrame, baseline: str, candidate: str, found: int) -> EvaluationError:
    if not episodes.height:
        return EvaluationError(
            "the dataset has no held-out episodes (split test)",
            'run the agents on the test tasks, and list them in spanloop.toml with split = "test"',
        )
    counts = (
        episodes.group_by("version", "agent")
        .agg(pl.len(), pl.col("reward").is_not_null().sum().alias("scored"))
        .sort("version", "agent", nulls_last=True)
    )
    listed = "; ".join(
        f"{version or 'mixed'} by {agent}: {number} episodes, {scored} scored"
        for version, agent, number, scored in counts.rows()
    )
    return EvaluationError(
        f"{found} pairs of {baseline} and {candidate} on the same agent and task; at least 2 are needed. "
        f"Held-out episodes: {listed}",
        "run both versions with the same agents on the same test tasks, then `spanloop build` again",
    )


def _identity(*parts: object) -> str:
    return "eval-" + hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]
