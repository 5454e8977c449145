"""Episodes that are too young to have their judgements stay out, and are counted; what came late makes another dataset."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client

from spanloop_trainer.config import Config
from spanloop_trainer.config.rewards import Watermark
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform import build, load_dataset
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.rewards import waited_for, watermark_of

from .conftest import Agent, insert, said, user

NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)


def calls(*ends: tuple[str, float]) -> pl.DataFrame:
    """`episode_id` and how many hours before `NOW` each call ended; all took a minute."""
    start = [NOW.replace(tzinfo=None) - timedelta(hours=hours, minutes=1) for _, hours in ends]
    return pl.DataFrame(
        {
            "episode_id": [name for name, _ in ends],
            "start": pl.Series(start, dtype=pl.Datetime("ns")),
            "duration_ns": pl.Series([60_000_000_000] * len(ends), dtype=pl.UInt64),
            "trace_id": "t",
            "span_id": [str(number) for number in range(len(ends))],
        }
    )


def test_an_episode_waits_for_its_last_call() -> None:
    frame = calls(("old", 30), ("young", 30), ("old", 25), ("young", 23.9), ("edge", 24))
    funnel = Funnel()
    kept = waited_for(frame, watermark_of(Watermark(wait_h=24), NOW), funnel)
    assert kept["span_id"].to_list() == ["0", "2"]
    assert funnel.lost == {"call of an episode younger than the watermark": 3}
    assert funnel.counts == {"calls": 2}
    assert funnel.lost_rows()["episode_id"].to_list() == ["young", "edge", "young"]


def test_without_a_watermark_nothing_waits() -> None:
    frame, funnel = calls(("young", 0)), Funnel()
    assert watermark_of(Watermark()) is None
    assert waited_for(frame, None, funnel) is frame
    assert (funnel.lost, funnel.counts) == ({}, {})


def test_a_build_leaves_young_episodes_for_another_day(client: Client, tmp_path: Path) -> None:
    agent = Agent()
    old, young = agent.call([user("p")], said("a"), at=0), agent.call([user("q")], said("b"), at=0)
    young["Timestamp"] = int((datetime.now(UTC) - timedelta(minutes=5)).timestamp() * 1e9)
    insert(client, [old, young])
    waiting = Config(watermark=Watermark(wait_h=1))
    manifest = build(client, tmp_path / "dataset", config=waiting)
    assert load_dataset(tmp_path / "dataset")[1]["span_id"].to_list() == [old["SpanId"]]
    assert manifest.counts["lost"]["call of an episode younger than the watermark"] == 1
    assert datetime.fromisoformat(manifest.query["watermark"]) < datetime.now(UTC) - timedelta(minutes=55)
    assert "watermark" not in build(client, tmp_path / "all", config=Config()).query
    with pytest.raises(TransformError, match="1 × call of an episode younger than the watermark"):
        build(client, tmp_path / "none", config=waiting, since=datetime.now(UTC) - timedelta(hours=1))


def test_what_is_waited_for_gives_its_judgements_to_no_other(client: Client, tmp_path: Path) -> None:
    """A judgement of a request with two runs is of neither, also while one of them waits."""
    agents = [Agent(f"i{n}") for n in range(2)]
    rows = [agent.call([user(f"p{n}")], said("a"), at=n) for n, agent in enumerate(agents)]
    rows[1]["Timestamp"] = int((datetime.now(UTC) - timedelta(minutes=5)).timestamp() * 1e9)
    rows = [{**row, "TraceId": "t"} for row in rows]
    insert(client, rows)
    for number, names in enumerate([{"trace_id": "t"}, {"trace_id": "t", "span_id": rows[1]["SpanId"]}]):
        columns = {"id": str(number), "time": NOW, "name": "r", "value": 1.0, "source": "feedback", **names}
        client.insert("rewards", [list(columns.values())], column_names=list(columns))
    manifest = build(client, tmp_path / "dataset", config=Config(watermark=Watermark(wait_h=1)))
    frame = load_dataset(tmp_path / "dataset")[1]
    assert frame.select("span_id", "reward").rows() == [(rows[0]["SpanId"], None)]
    assert manifest.counts["judgements_outside"] == 1  # the other one waits with its call


def test_a_late_reward_makes_another_dataset_which_names_its_parent(client: Client, tmp_path: Path) -> None:
    rows = [Agent(f"i{n}").call([user(f"p{n}")], said("a"), at=n) for n in range(3)]
    insert(client, rows)
    first = build(client, tmp_path / "first", config=Config())
    columns: dict[str, Any] = {
        "id": "1", "time": NOW, "name": "thumb", "value": 1.0, "source": "feedback", "span_id": rows[1]["SpanId"],
    }  # fmt: skip
    client.insert("rewards", [list(columns.values())], column_names=list(columns))
    second = build(client, tmp_path / "second", config=Config(), parent=tmp_path / "first")
    assert second.id != first.id
    assert second.parent == first.id
    before, after = (load_dataset(tmp_path / name)[1] for name in ("first", "second"))
    changed = after.join(before, on=["span_id", "reward"], how="anti", nulls_equal=True)
    assert changed.select("span_id", "reward").rows() == [(rows[1]["SpanId"], 1.0)]
