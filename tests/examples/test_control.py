"""The control of the demo shuffles rewards and nothing else."""

from __future__ import annotations

from pathlib import Path

import learning
import plan
import polars as pl

from spanloop_trainer.transform.datasets.dataset import load_dataset, write_dataset
from spanloop_trainer.transform.datasets.schema import TRANSITIONS


def test_rewards_move_between_episodes_and_stay_one_an_episode(tmp_path: Path) -> None:
    rows = [
        {
            "episode_id": f"e{episode:03d}",
            "step": step,
            "choice": 0,
            "task_id": f"t{episode}",
            "status": "ok",
            "reward": None if episode == 7 else float(episode % 3 == 0),
            "split": "train",
        }
        for episode in range(90)
        for step in range(2)
    ]
    original = pl.DataFrame(rows, schema=TRANSITIONS)
    made = write_dataset(
        tmp_path / "night1",
        original,
        query={},
        config_hash="",
        credit="identical",
        counts={},
        splits={},
        decoders={},
    )
    loop = learning.Loop(
        out=tmp_path / "run", plan=plan.SMALL, seed=3, say=lambda _: None, shuffle_rewards=True
    )
    played = learning.Round("calculator@1", tmp_path / "night1", made.id, 90, 180, 0.3)
    manifest, shuffled = load_dataset(loop._shuffled(played))

    assert manifest.parent == made.id
    assert manifest.id != made.id
    _, before = load_dataset(tmp_path / "night1")
    untouched = [name for name in TRANSITIONS if name not in ("reward", "return_", "advantage")]
    assert shuffled.select(untouched).equals(before.select(untouched))
    per_episode = shuffled.group_by("episode_id").agg(
        pl.col("reward").n_unique(), pl.col("reward").null_count().alias("no")
    )
    assert per_episode["reward"].to_list() == [1] * 90
    assert shuffled.filter(pl.col("reward").is_null())["episode_id"].unique().to_list() == ["e007"]
    assert shuffled["reward"].sum() == before["reward"].sum()
    assert not shuffled["reward"].equals(before["reward"])
    assert shuffled["advantage"].equals(shuffled["reward"].alias("advantage"))


def test_the_plan_keeps_what_the_demo_promises() -> None:
    assert plan.DEMO.nights >= 2
    assert sum(plan.DEMO.test.values()) >= 400
    assert plan.DEMO.algorithm == plan.SMALL.algorithm
