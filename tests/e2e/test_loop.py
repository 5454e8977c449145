"""The whole path, small: agents as processes, real OTLP, the real engine, training, a version switch while it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from spanloop_store import connect, read_owner, registry
from spanloop_store.owner import lock_holder
from spanloop_trainer.transform import load_dataset

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, str(ROOT / "examples" / "calculator" / "demo.py"), "--small"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished small run: its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "run"
    done = subprocess.run(
        [*DEMO, "--out", str(out)], capture_output=True, text=True, timeout=280, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return out, done.stdout


@pytest.fixture(scope="module")
def found(run: tuple[Path, str]) -> dict[str, Any]:
    """result.json."""
    result: dict[str, Any] = json.loads((run[0] / "result.json").read_text(encoding="utf-8"))
    return result


def test_result_has_what_is_promised(run: tuple[Path, str], found: dict[str, Any]) -> None:
    promised = {
        "gain",
        "gain_ci95_low",
        "gain_ci95_high",
        "tasks",
        "base",
        "final",
        "best_possible",
        "seconds",
    }
    assert promised | {"sft_on_successes"} <= found.keys()
    assert found["best_possible"] == 1.0
    assert found["tasks"] == 24
    assert found["gain"] == pytest.approx(found["final"] - found["base"])
    assert set(found["per_agent"]) == {"calculator-openai", "calculator-langgraph"}
    assert set(found["per_wording"]) == {"seen", "unseen"}
    page = (run[0] / "report.html").read_text(encoding="utf-8")
    assert "calculator@2" in page


def test_the_engine_decoded_the_spans(found: dict[str, Any]) -> None:
    decoded = found["decoders"]
    assert decoded["engine"] / sum(decoded.values()) >= 0.99


def test_every_episode_of_yesterday_arrived(run: tuple[Path, str]) -> None:
    _, frame = load_dataset(run[0] / "datasets" / "yesterday")
    assert frame["episode_id"].n_unique() == frame["task_id"].n_unique() == 264
    assert set(frame["agent"].unique()) == {"calculator-openai", "calculator-langgraph"}
    assert frame.filter(pl.col("step") == 0).height == 264
    # Right in one of three asked alike; 264 tasks are no multiple of all wordings times three.
    episodes = frame.group_by("episode_id").agg(pl.col("reward").mean())
    assert 0.25 < episodes["reward"].mean() < 0.42


def test_the_night_carries_tokens_of_the_version_that_played(run: tuple[Path, str]) -> None:
    _, frame = load_dataset(run[0] / "datasets" / "night1")
    assert frame["policy_version"].unique().to_list() == ["calculator@1"]
    assert frame["episode_id"].n_unique() == 56
    ok = frame.filter(pl.col("status") == "ok")
    assert ok["completion_ids"].null_count() == 0
    assert ok.filter(pl.col("completion_ids").list.len() != pl.col("logprobs").list.len()).is_empty()
    assert ok["logprobs"].explode().max() <= 0


def test_the_alias_moved_while_the_gateway_ran(run: tuple[Path, str]) -> None:
    """Held-out agents asked for calculator@candidate as the night's agents did; another version answered."""
    _, frame = load_dataset(run[0] / "datasets" / "held-out")
    held_out = frame.filter(pl.col("split") == "test")
    counts = dict(held_out.group_by("policy_version").agg(pl.col("episode_id").n_unique()).iter_rows())
    assert counts == {"calculator@1": 24, "calculator@2": 24}


def test_the_registry_tells_the_story(run: tuple[Path, str], found: dict[str, Any]) -> None:
    out, _ = run
    with closing(connect(f"chdb://{out / 'store'}")) as client:
        versions = registry.versions(client, "calculator")
        pointers = {(alias.name, alias.alias): alias.version for alias in registry.aliases(client)}
        trail = registry.promotions(client, "calculator", "production")
        judged = registry.evaluations(client)
    manifests = {
        name: load_dataset(out / "datasets" / name)[0].id for name in ("yesterday", "night1", "held-out")
    }
    assert [version.dataset_id for version in versions] == [manifests["yesterday"], manifests["night1"]]
    assert versions[1].parent == "calculator@1"
    assert pointers["calculator", "candidate"] == 2
    assert [evaluation.dataset_id for evaluation in judged] == [manifests["held-out"]]
    won = found["gain_ci95_low"] > 0
    assert [row.action for row in trail] == ["promote" if won else "reject"]
    assert (("calculator", "production") in pointers) == won
    assert found["decisions"][-1]["promoted"] == won


def test_nothing_is_left_running(run: tuple[Path, str]) -> None:
    store = f"chdb://{run[0] / 'store'}"
    assert read_owner(store) is None
    assert lock_holder(store) is None


def test_an_interrupted_run_stops_what_it_started(tmp_path: Path) -> None:
    out = tmp_path / "run"
    demo = subprocess.Popen(
        [*DEMO, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "yesterday:" in line:
                break
        assert read_owner(f"chdb://{out / 'store'}") is not None
        os.kill(demo.pid, signal.SIGINT)
        _, errors = demo.communicate(timeout=60)
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGKILL)
            demo.wait()
    assert demo.returncode == 130
    assert "stopped" in errors
    assert lock_holder(f"chdb://{out / 'store'}") is None


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    done = subprocess.run(
        [*DEMO, "--out", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert "untouched" in done.stderr
    assert (tmp_path / "precious.txt").read_text() == "keep me"
