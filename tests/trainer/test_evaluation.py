"""Pairing, counting and the interval of an evaluation."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from spanloop.commands.evaluate import command
from spanloop_store import connect, registry
from spanloop_trainer.errors import EvaluationError
from spanloop_trainer.evaluation import compare, paired_bootstrap
from spanloop_trainer.promotion import promote
from spanloop_trainer.transform.datasets.dataset import write_dataset
from spanloop_trainer.transform.datasets.schema import TRANSITIONS

Row = tuple[str, str, str, str, float | None, str]  # episode, agent, task, version, reward, status


def frame(rows: list[Row], split: str = "test") -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "episode_id": episode, "step": step, "choice": 0, "agent": agent, "task_id": task,
                "policy_version": version, "reward": reward, "status": status, "split": split,
            }
            for step, (episode, agent, task, version, reward, status) in enumerate(rows)
        ],
        schema_overrides={"reward": pl.Float64},
    )  # fmt: skip


def two_sided(rewards: list[tuple[float, float]], agent: str = "a") -> list[Row]:
    rows: list[Row] = []
    for task, (before, after) in enumerate(rewards):
        rows.append((f"{agent}-b{task}", agent, f"t{task}", "m@1", before, "ok"))
        rows.append((f"{agent}-c{task}", agent, f"t{task}", "m@2", after, "ok"))
    return rows


def test_the_interval_is_that_of_the_normal_theory_on_many_pairs() -> None:
    differences = np.random.default_rng(1).normal(0.2, 1.0, 2000)
    low, high = paired_bootstrap(differences, np.arange(2000))
    error = differences.std(ddof=1) / np.sqrt(2000)
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.15 * error)
    assert (low, high) == paired_bootstrap(differences, np.arange(2000))
    assert (low, high) != paired_bootstrap(differences, np.arange(2000), seed=1)


def test_pairs_of_one_task_are_drawn_together() -> None:
    differences = np.random.default_rng(1).normal(0.0, 1.0, 400)
    single = paired_bootstrap(differences, np.arange(400))
    # Every difference twice carries no new information: the interval must not shrink.
    double = paired_bootstrap(np.repeat(differences, 2), np.repeat(np.arange(400), 2))
    assert double == pytest.approx(single, abs=1e-12)


def test_means_gain_and_groups() -> None:
    rows = two_sided([(0, 1), (0, 1), (1, 1), (0, 0)]) + two_sided(
        [(1, 0), (0, 0), (0, 1), (0, 1)], agent="b"
    )
    tasks = pl.DataFrame(
        {"task_id": ["t0", "t1", "t2", "t3"], "task_wording": ["seen", "seen", "unseen", None]}
    )
    report = compare(frame(rows), "m@1", "m@2", by="task_wording", tasks=tasks)
    assert (report.pooled.pairs, report.pooled.tasks) == (8, 4)
    assert report.pooled.gain == pytest.approx((2 + 1) / 8)
    assert report.pooled.baseline_mean == pytest.approx(2 / 8)
    assert report.pooled.gain_ci95_low <= report.pooled.gain <= report.pooled.gain_ci95_high
    assert {name: part.gain for name, part in report.per_agent.items()} == {"a": 0.5, "b": 0.25}
    assert {name: part.pairs for name, part in report.per_group.items()} == {
        "(none)": 2,
        "seen": 4,
        "unseen": 2,
    }


def test_several_episodes_of_a_pair_are_averaged_and_steps_do_not_count() -> None:
    rows: list[Row] = [
        *two_sided([(0, 1), (0, 1)]),
        ("again", "a", "t0", "m@2", 0.0, "ok"),
        ("again", "a", "t0", "m@2", 0.0, "ok"),
        ("again", "a", "t0", "m@2", 0.0, "ok"),
    ]
    report = compare(frame(rows), "m@1", "m@2")
    assert report.pooled.candidate_mean == pytest.approx((0.5 + 1) / 2)
    assert report.candidate.episodes == 3


def test_what_is_left_out_is_counted() -> None:
    rows: list[Row] = [
        *two_sided([(0, 1), (1, 1)]),
        ("u", "a", "t7", "m@1", None, "ok"),
        ("f", "a", "t7", "m@2", None, "truncated"),
        ("x", "a", "t8", "m@2", 1.0, "ok"),
        ("y", "a", "t9", "m@3", 1.0, "ok"),
        ("mixed", "a", "t5", "m@1", 1.0, "ok"),
        ("mixed", "a", "t5", "m@2", 1.0, "ok"),
    ]
    report = compare(frame(rows), "m@1", "m@2")
    assert report.pooled.gain == 0.5  # had an unscored episode counted as 0, t7 would be a pair
    assert (report.baseline.unscored, report.baseline.failed_unscored, report.baseline.unpaired) == (1, 0, 0)
    assert (report.candidate.unscored, report.candidate.failed_unscored, report.candidate.unpaired) == (
        0,
        1,
        1,
    )
    assert report.mixed_episodes == 1
    notes = " ".join(report.notes)
    assert "gain is overstated" in notes
    assert "version changed" in notes
    assert "rough" in notes


def test_a_failed_episode_that_is_scored_counts() -> None:
    rows = [*two_sided([(1, 1), (1, 1)]), ("f", "a", "t0", "m@2", 0.0, "error")]
    assert compare(frame(rows), "m@1", "m@2").pooled.gain == pytest.approx(-0.25)


def test_nothing_that_pairs_lists_what_there_is() -> None:
    rows: list[Row] = [("1", "a", "t1", "m@1", 1.0, "ok"), ("2", "b", "t1", "m@2", None, "ok")]
    with pytest.raises(
        EvaluationError, match="m@1 by a: 1 episodes, 1 scored; m@2 by b: 1 episodes, 0 scored"
    ):
        compare(frame(rows), "m@1", "m@2")
    with pytest.raises(EvaluationError, match="no held-out episodes"):
        compare(frame(two_sided([(0, 1), (0, 1)]), split="train"), "m@1", "m@2")
    with pytest.raises(EvaluationError, match="with itself"):
        compare(frame(rows), "m@1", "m@1")
    tasks = pl.DataFrame({"task_id": ["t1"], "task_kind": ["x"]})
    with pytest.raises(EvaluationError, match="fields: task_kind"):
        compare(frame(two_sided([(0, 1), (0, 1)])), "m@1", "m@2", by="task_wording", tasks=tasks)


def test_order_of_rows_changes_nothing() -> None:
    data = frame(two_sided([(0, 1), (1, 0), (0, 1), (1, 1), (0, 0)]))
    assert compare(data, "m@1", "m@2") == compare(data.sample(fraction=1, shuffle=True, seed=3), "m@1", "m@2")


def test_the_command_prints_and_records_what_the_gate_then_reads(tmp_path: Path) -> None:
    store = f"chdb://{tmp_path}/store"
    data = frame(two_sided([(0, 1)] * 30 + [(1, 1)] * 10))
    full = data.with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in TRANSITIONS.items() if name not in data.columns
    )
    written = write_dataset(
        tmp_path / "data",
        full,
        query={},
        config_hash="c",
        credit="identical",
        counts={},
        splits={},
        decoders={},
    )
    with closing(connect(store)) as client:
        for _ in range(2):
            registry.register_model(client, "m", "/models/m")
        registry.point_alias(client, "m", "candidate", 2, action="point")
    wanted = [
        "--dataset",
        str(tmp_path / "data"),
        "--baseline",
        "m@1",
        "--candidate",
        "m@candidate",
        "--store",
        store,
    ]
    printed = CliRunner().invoke(command, [*wanted, "--json"])
    assert printed.exit_code == 0, printed.output
    report = json.loads(printed.output)
    assert report["candidate"]["version"] == "m@2"
    table = CliRunner().invoke(command, wanted)
    assert "+0.750" in table.output
    with closing(connect(store)) as client:
        row = registry.evaluation(client, report["id"])
        assert (row.dataset_id, row.tasks, row.gain) == (written.id, 40, 0.75)
        assert promote(client, "m@2", evaluation_id=row.id).promoted
