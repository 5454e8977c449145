"""What a run showed: held-out comparison, gate, and the numbers of result.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
import tasks as calculator
from learning import IMITATION, Loop, Round

from spanloop_store import registry
from spanloop_trainer.errors import PromotionRejected
from spanloop_trainer.evaluation import (
    EvaluationReport,
    compare,
    evaluate,
    held_out_episodes,
    paired_bootstrap,
)
from spanloop_trainer.promotion import promote
from spanloop_trainer.report.result import (
    Comparison,
    DecisionResult,
    RunResult,
    Stage,
    Trace,
    VersionResult,
)
from spanloop_trainer.transform import load_dataset
from spanloop_trainer.transform.episodes.tasks import read_tasks

IMITATED = f"{IMITATION}@1"


def judge(loop: Loop, played: Round) -> tuple[EvaluationReport, DecisionResult]:
    """Compare the final version with the base, and let the gate decide.

    Args:
        loop: the run.
        played: the dataset with the held-out episodes of both.
    """
    base, final = loop.versions[0].id, loop.versions[-1].id
    loop.command(
        "evaluate", "--store", loop.store, "--dataset", played.dataset, "--baseline", base, "--candidate", final,
        "--by", "task_wording", "--config", loop.out / "spanloop.toml",
    )  # fmt: skip
    report = evaluate(
        played.dataset,
        base,
        final,
        by="task_wording",
        tasks=read_tasks(loop.config),
        seed=loop.seed,
        client=loop.client,
    )
    loop.command("promote", final, "--evaluation", report.id, "--store", loop.store)
    try:
        decision = promote(loop.client, final, registry.PRODUCTION, evaluation_id=report.id)
        return report, DecisionResult(version=final, promoted=True, reason=decision.reason)
    except PromotionRejected as error:
        return report, DecisionResult(version=final, promoted=False, reason=error.message)


def result(
    loop: Loop, played: Round, report: EvaluationReport, decision: DecisionResult, seconds: float
) -> RunResult:
    """Everything that the run found."""
    _, frame = load_dataset(played.dataset)
    held_out = held_out_episodes(frame)
    scores = {
        str(version): part["reward"].drop_nulls().to_numpy()
        for (version,), part in held_out.partition_by("version", as_dict=True).items()
    }
    base, final = loop.versions[0].id, loop.versions[-1].id
    before, after = _traces(frame, base, final, {task.prompt: task for task in loop.test})
    pooled = report.pooled
    extras: dict[str, Any] = {
        "seed": loop.seed,
        "algorithm": loop.plan.algorithm,
        "shuffled_rewards": loop.shuffle_rewards,
        "pairs": _pairs(held_out, base, final),
    }
    imitated = scores.get(IMITATED)
    if imitated is not None:
        paired = compare(frame, IMITATED, final, seed=loop.seed).pooled
        extras["final_minus_sft"] = Comparison(**asdict(paired))
    return RunResult(
        title="Spanloop demo: two calculator agents"
        + (" (control: rewards shuffled)" if loop.shuffle_rewards else ""),
        gain=pooled.gain,
        gain_ci95_low=pooled.gain_ci95_low,
        gain_ci95_high=pooled.gain_ci95_high,
        tasks=pooled.tasks,
        base=pooled.baseline_mean,
        final=pooled.candidate_mean,
        best_possible=float(np.mean([calculator.oracle(task) for task in loop.test])),
        sft_on_successes=None if imitated is None else float(imitated.mean()),
        seconds=round(seconds, 1),
        versions=_versions(loop, scores),
        per_agent={name: Comparison(**asdict(part)) for name, part in report.per_agent.items()},
        per_wording={name: Comparison(**asdict(part)) for name, part in report.per_group.items()},
        stages=[Stage(name=name, seconds=value) for name, value in loop.stages],
        decisions=[decision],
        decoders=decoders(loop.client),
        trace_before=before,
        trace_after=after,
        notes=_notes(loop, report),
        **extras,
    )


def decoders(client: Any) -> dict[str, int]:
    """Spans in the store by who decoded them."""
    rows = client.query(
        "SELECT decoder, sum(rows) FROM ingest_segments WHERE signal = 'traces' GROUP BY decoder"
    )
    return {str(name): int(count) for name, count in rows.result_rows}


def _versions(loop: Loop, scores: dict[str, Any]) -> list[VersionResult]:
    """Yesterday, then every version, each with the data that it was made from."""
    played = {one.version: one for one in loop.rounds if one.version}
    made_from = {one.dataset_id: one for one in loop.rounds}
    rows = []
    if "yesterday" in played:
        rows.append(
            VersionResult(
                version="yesterday",
                algorithm="scripted",
                mean_reward=played["yesterday"].mean_reward,
                measured_on="training tasks",
            )
        )
    for number, version in enumerate(loop.versions):
        source = made_from.get(version.dataset_id)
        row = VersionResult(
            version=version.id,
            algorithm=str(version.metadata.get("algorithm", "")),
            parent=version.parent,
            dataset_id=version.dataset_id,
            episodes=source.episodes if source else None,
            transitions=source.transitions if source else None,
        )
        if number in (0, len(loop.versions) - 1):
            row = row.model_copy(update={**_mean(scores[version.id]), "measured_on": "held-out"})
        elif version.id in played:
            row = row.model_copy(
                update={"mean_reward": played[version.id].mean_reward, "measured_on": "training tasks"}
            )
        rows.append(row)
    if IMITATED in scores:
        source = made_from.get(registry.resolve(loop.client, IMITATED).dataset_id)
        rows.append(
            VersionResult(
                version=IMITATED,
                algorithm="sft on successes",
                parent=loop.versions[0].id,
                dataset_id=source.dataset_id if source else "",
                episodes=source.episodes if source else None,
                measured_on="held-out",
                **_mean(scores[IMITATED]),
            )
        )
    return rows


def _mean(rewards: Any) -> dict[str, Any]:
    """Mean and its 95 % bootstrap interval."""
    low, high = paired_bootstrap(rewards, np.arange(len(rewards)))
    return {"mean_reward": float(rewards.mean()), "ci95_low": low, "ci95_high": high}


def _pairs(held_out: pl.DataFrame, base: str, final: str) -> list[dict[str, Any]]:
    """Agent, task and both rewards of every pair: what a pooled interval over several runs needs."""
    sides = [
        held_out.filter((pl.col("version") == version) & pl.col("reward").is_not_null())
        .group_by("agent", "task_id")
        .agg(pl.col("reward").mean().alias(name))
        for version, name in ((base, "base"), (final, "final"))
    ]
    return sides[0].join(sides[1], on=["agent", "task_id"]).sort("agent", "task_id").to_dicts()


def _traces(
    frame: pl.DataFrame, base: str, final: str, known: dict[str, calculator.Task]
) -> tuple[Trace | None, Trace | None]:
    """One held-out task that the base failed and the final version solved, as both played it."""
    last = frame.filter((pl.col("split") == "test") & pl.col("done") & pl.col("action").is_not_null())
    failed = last.filter((pl.col("policy_version") == base) & (pl.col("reward") == 0))
    solved = last.filter((pl.col("policy_version") == final) & (pl.col("reward") == 1))
    both = failed.join(solved, on=["agent", "task_id"], suffix="_after").sort(
        "step", "task_id", descending=[True, False]
    )
    if both.is_empty():
        return None, None
    row = both.row(0, named=True)

    def trace(suffix: str) -> Trace:
        messages = [*json.loads(row["state" + suffix]), json.loads(row["action" + suffix])]
        prompt = str(messages[0]["content"])
        return Trace(
            prompt=prompt,
            messages=messages,
            reward=row["reward" + suffix],
            version=row["policy_version" + suffix],
            agent=row["agent"],
            expected=known[prompt].expected if prompt in known else "",
        )

    return trace(""), trace("_after")


def _notes(loop: Loop, report: EvaluationReport) -> list[str]:
    notes = list(report.notes)
    if "unseen" in report.per_group:
        unseen = report.per_group["unseen"]
        notes.append(
            f"{unseen.tasks} of the held-out tasks are worded in ways that training never saw: "
            f"mean reward {unseen.baseline_mean:.2f} → {unseen.candidate_mean:.2f}."
        )
    if loop.plan.successes is not None and not loop.shuffle_rewards:
        notes.append(
            "SFT on the successes learns from the same nights as the final version, the later ones included, which "
            "were played by versions that RL had already made better."
        )
    if loop.shuffle_rewards:
        notes.append(
            "Control: rewards were shuffled between episodes before every training, so nothing could be learnt."
        )
    return notes


def against_imitation(result: RunResult) -> str:
    """How the final version stands against SFT on the successes, in one honest sentence."""
    paired = result.final_minus_sft
    if paired is None:
        return "SFT on the successes was not measured in this run."
    low, high = paired.gain_ci95_low, paired.gain_ci95_high
    verdict = "does not beat it" if low <= 0 else "beats it"
    return (
        f"SFT on the successes of the same nights reaches {result.sft_on_successes:.3f}; the final version {verdict} "
        f"here: {paired.gain:+.3f} [{low:+.3f}, {high:+.3f}], paired."
    )


def table(result: RunResult) -> str:
    """The versions for the terminal."""
    lines = [
        f"{'version':<18} {'algorithm':<17} {'dataset':<13} {'episodes':>8}  {'mean reward':>11}  95 % interval"
    ]
    for row in result.versions:
        mean = "–" if row.mean_reward is None else f"{row.mean_reward:.3f}"
        interval = "" if row.ci95_low is None else f"[{row.ci95_low:.3f}, {row.ci95_high:.3f}]"
        where = " (training tasks)" if row.measured_on == "training tasks" else ""
        episodes = "–" if row.episodes is None else f"{row.episodes:,}"
        lines.append(
            f"{row.version:<18} {row.algorithm:<17} {row.dataset_id[:12] or '–':<13} {episodes:>8}  {mean:>11}  {interval}{where}"
        )
    lines += ["", f"{'held-out tasks':<26} {'pairs':>6} {'base':>6} {'final':>6} {'gain':>7}  95 % interval"]
    groups = [(f"agent {name}", part) for name, part in result.per_agent.items()]
    groups += [(f"wording {name}", part) for name, part in result.per_wording.items()]
    for name, part in groups:
        lines.append(
            f"{name:<26} {part.pairs:>6} {part.baseline_mean:>6.3f} {part.candidate_mean:>6.3f} {part.gain:>+7.3f}"
            f"  [{part.gain_ci95_low:+.3f}, {part.gain_ci95_high:+.3f}]"
        )
    lines.append(
        f"{'all':<26} {result.tasks:>6} {result.base:>6.3f} {result.final:>6.3f} {result.gain:>+7.3f}"
        f"  [{result.gain_ci95_low:+.3f}, {result.gain_ci95_high:+.3f}]"
    )
    return "\n".join(lines)
