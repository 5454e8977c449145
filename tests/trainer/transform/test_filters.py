"""`[filters]` in a build, the funnel and the rows it names, `dataset …` and `explain`, on one embedded store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from tests.helpers.commands import report, spanloop
from tests.helpers.stores import laid
from tests.trainer.algorithms.datasets import transitions, write

import spanloop_store
from spanloop_store import connect
from spanloop_store.errors import SpanloopError
from spanloop_trainer.config import Config, load_config
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform import build, load_dataset
from spanloop_trainer.transform.datasets.dataset import write_dataset
from spanloop_trainer.transform.datasets.schema import TRANSITIONS
from spanloop_trainer.transform.explain import Explanation, explain
from spanloop_trainer.transform.pieces.gather import Memory

from .conftest import Agent, Row, called, insert, result, said, user
from .test_build import gateway

LONG = "Tell me in how many days the river that runs past the old mill will freeze over"
REWARDS = '[[rewards]]\nname = "short"\nexpression = "CAST(steps = 1 AS DOUBLE)"\nweight = 2.0\n'


def conversation(agent: Agent, prompt: str, answer: str, *, at: int, call: str) -> list[Row]:
    history = [user(prompt), called("add", {"a": 1}, call), result(call, "1")]
    return [
        agent.call(history[:1], called("add", {"a": 1}, call), at=at),
        agent.call(history, said(answer), at=at + 1),
    ]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    agent, text = Agent(), " ".join(f"word{number}" for number in range(60))
    single = agent.call([user("one")], said("1"), at=0)
    wrapper = {**single, "SpanId": "wrapper", "TraceId": "elsewhere", "Timestamp": single["Timestamp"] - 1}
    wrapper["SpanAttributes"] = {
        name: value for name, value in single["SpanAttributes"].items() if name != "gen_ai.output.messages"
    }
    return {
        "single": [single],
        "twin": [wrapper],
        "gateway": [gateway(single)],
        "tool": [
            {
                **single, "SpanId": "tool", "SpanName": "add", "TraceId": "tool",
                "SpanAttributes": {"gen_ai.operation.name": "execute_tool"},
            }
        ],
        "first": conversation(agent, "two", "2", at=10, call="c1"),
        "copy": conversation(agent, "two", "2", at=20, call="c2"),
        "other answer": conversation(agent, "two", "3", at=30, call="c3"),
        "long": [agent.call([user(text)], said("ok"), at=40)],
        "near": [agent.call([user(text + " more")], said("ok"), at=50)],
        "leaked": [agent.call([user(f"Hm. {LONG}?")], said("four"), at=60)],
        "cut": [agent.call([user("three")], at=70)],
    }  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[Row]]) -> Iterator[Client]:
    judged = rows["first"][0]["SpanAttributes"]["gen_ai.response.id"]
    with closing(connect(laid(tmp_path_factory.mktemp("filters") / "store"))) as opened:
        insert(opened, [row for some in rows.values() for row in some])
        opened.insert(
            "rewards",
            [["1", judged, "thumb", 0.5, "feedback", "users", datetime(2026, 1, 1, tzinfo=UTC)]],
            column_names=["id", "response_id", "name", "value", "source", "evaluator", "time"],
        )
        yield opened


class Open:
    """The client for a command, which would open and close one of its own; that takes seconds."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def close(self) -> None:
        pass


@pytest.fixture
def served(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands use the store that is open here."""
    monkeypatch.setattr(spanloop_store, "connect", lambda *_, **__: Open(client))


def configured(folder: Path, filters: str = "") -> Path:
    (folder / "eval.jsonl").write_text(json.dumps({"question": LONG}) + "\n")
    (folder / "spanloop.toml").write_text(REWARDS + filters)
    return folder / "spanloop.toml"


def built(client: Client, folder: Path, filters: str = "") -> dict[str, Any]:
    return asdict(build(client, folder / "d", config=load_config(configured(folder, filters))))


ALL = """
[filters]
exact_duplicates = true
near_duplicates = 0.8
episodes_per_task = 1
decontaminate = [{ file = "eval.jsonl", column = "question" }]
[[filters.episodes]]
name = "answered"
expression = "status = 'ok' AND reward >= 0"
"""


@pytest.fixture(scope="module")
def filtered(client: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("built")
    plain = folder / "plain"
    plain.mkdir()
    manifest = built(client, plain)
    split = dict(load_dataset(plain / "d")[1].select("span_id", "split").iter_rows())
    # Decontamination is about what is learned from.
    test = [name for name, of in split.items() if of == "test"]
    done = built(client, folder, ALL)
    return folder, {"plain": manifest, "test": test, **done}


def test_each_filter_drops_its_own_and_says_which(
    filtered: tuple[Path, dict[str, Any]], rows: dict[str, list[Row]]
) -> None:
    folder, manifest = filtered
    leaks = 0 if rows["leaked"][0]["SpanId"] in manifest["test"] else 1
    lost = manifest["counts"]["lost"]
    assert lost["filter answered"] == 1
    assert lost.get("shares words with an evaluation", 0) == leaks
    assert lost["exact duplicate of an earlier episode"] == 2
    assert lost["near duplicate of an earlier episode"] == 1
    assert lost["more episodes of a task than `episodes_per_task`"] == 2
    assert manifest["counts"]["transitions"] == manifest["plain"]["counts"]["transitions"] - 6 - leaks

    def spans(reason: str) -> dict[str, str]:
        said = report("dataset", "lost", folder / "d", "--reason", reason)
        assert said["lost"] == len(said["rows"])
        return {row["span_id"]: row["detail"] for row in said["rows"]}

    assert set(spans("answered")) == {row["SpanId"] for row in rows["cut"]}
    duplicates = spans("exact")
    assert set(duplicates) == {row["SpanId"] for row in rows["copy"]}
    first = rows["first"][0]
    assert set(duplicates.values()) == {f"{first['TraceId']}-{first['SpanId']}"}
    ((near, detail),) = spans("near").items()
    assert near == rows["near"][0]["SpanId"]
    assert detail.startswith(f"{rows['long'][0]['TraceId']}-{rows['long'][0]['SpanId']} 0.9")
    # The best rewarded stays: the first was liked.
    assert set(spans("episodes_per_task")) == {row["SpanId"] for row in rows["other answer"]}
    if leaks:
        (example,) = manifest["counts"]["examples"]["shares words with an evaluation"]
        assert example["words"] == "tell me in how many days the river that runs past the old"
        assert (example["file"], example["line"]) == ("eval.jsonl", 1)


def test_credit_saw_what_filters_dropped(client: Client, tmp_path: Path) -> None:
    """A filter chooses what is learned from; an advantage says how an answer did among all of its group."""
    group = '[credit]\nmethod = "rloo"\n[filters]\nexact_duplicates = true\n'
    built(client, tmp_path, group)
    with_filter = load_dataset(tmp_path / "d")[1]
    built(client, tmp_path, '[credit]\nmethod = "rloo"\n')
    whole = load_dataset(tmp_path / "d")[1]
    kept = whole.join(with_filter, on=["span_id", "choice"], how="semi")
    assert kept["advantage"].to_list() == with_filter["advantage"].to_list()
    assert whole.height > with_filter.height


def test_parts_and_buckets_have_no_say(client: Client, tmp_path: Path) -> None:
    """Signatures and hits are found bucket by bucket; who is whose copy is decided over all."""
    config = load_config(configured(tmp_path, ALL))
    build(client, tmp_path / "whole", config=config)
    build(client, tmp_path / "cut", config=config, memory=Memory(parts=4, bucket_bytes=1))
    files = sorted(path.name for path in (tmp_path / "whole").glob("*.parquet"))
    assert files == ["lost.parquet", "transitions.parquet"]
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_rows_are_dropped_alone(client: Client, tmp_path: Path) -> None:
    manifest = built(
        client,
        tmp_path,
        '[[filters.rows]]\nname = "no tools"\nexpression = "tool_calls = 0 AND status = \'ok\'"\n',
    )
    rows = load_dataset(tmp_path / "d")[1]
    assert rows["action"].str.contains("tool_calls").sum() == 0
    assert manifest["counts"]["lost"]["filter no tools"] == 4


def test_rows_are_dropped_by_what_was_answered(client: Client, tmp_path: Path) -> None:
    """A failed call has no answer, one that calls a tool no text: null is no yes."""
    manifest = built(
        client,
        tmp_path,
        "[[filters.rows]]\nname = \"words\"\nexpression = \"answer = '2' OR answer = ''\"\n",
    )
    actions = [json.loads(action) for action in load_dataset(tmp_path / "d")[1]["action"]]
    assert [action["content"] for action in actions] == ["2", "2"]
    assert manifest["counts"]["lost"]["filter words"] == 9


@pytest.mark.parametrize(
    ("filters", "why"),
    [
        (
            '[[filters.episodes]]\nname = "f"\nexpression = "stepz < 3"\n',
            r"'stepz'; valid columns: .*steps.*reward",
        ),
        (
            '[[filters.rows]]\nname = "f"\nexpression = "stepz < 3"\n',
            r"'stepz'; valid columns: .*step.*advantage",
        ),
        ('[[filters.rows]]\nname = "f"\nexpression = "step + 1"\n', r"no truth value"),
        ('[[filters.rows]]\nname = "f"\nexpression = "step <"\n', r"cannot be read"),
        ("[filters]\nnear_duplicate = 0.8\n", r"filters.near_duplicate: there is no such setting"),
        ('[[filters.rows]]\nname = "f"\nexpression = "step > 99"\n', r"no transition is left of .* filter f"),
    ],
    ids=["episode column", "row column", "number", "half", "setting", "nothing left"],
)
def test_wrong_filters_are_named(client: Client, tmp_path: Path, filters: str, why: str) -> None:
    with pytest.raises(SpanloopError, match=why):
        built(client, tmp_path, filters)
    assert not (tmp_path / "d").exists()


@pytest.mark.usefixtures("served")
def test_the_funnel_names_the_rows_of_every_reason(
    filtered: tuple[Path, dict[str, Any]], rows: dict[str, list[Row]]
) -> None:
    folder, manifest = filtered
    for number, (reason, count) in enumerate(manifest["counts"]["lost"].items(), 1):
        said = report("dataset", "lost", folder / "d", "--reason", number)
        assert (said["reason"], said["lost"], len(said["rows"])) == (reason, count, min(count, 10))
    tool = report("dataset", "lost", folder / "d", "--reason", "no model call")
    assert [row["span_id"] for row in tool["rows"]] == [rows["tool"][0]["SpanId"]]
    twin = report("dataset", "lost", folder / "d", "--reason", "twin")
    assert [row["span_id"] for row in twin["rows"]] == ["wrapper"]
    unknown = spanloop("dataset", "lost", folder / "d", "--reason", "zzz")
    assert "1: " in getattr(unknown.exception, "hint", "")


def test_show_prints_what_a_dataset_is_made_of(filtered: tuple[Path, dict[str, Any]]) -> None:
    folder, manifest = filtered
    shown = spanloop("dataset", "show", folder / "d", "--limit", "2").output
    for text in (
        manifest["id"][:16],
        "near duplicate",
        f"spanloop dataset lost {folder / 'd'} --reason",
        "episodes by split",
    ):
        assert text in shown
    assert len(report("dataset", "show", folder / "d", "--limit", "2")["rows"]) == 2


def test_explain_tells_how_a_row_came_to_be(
    client: Client, filtered: tuple[Path, dict[str, Any]], rows: dict[str, list[Row]]
) -> None:
    folder, _ = filtered
    config = load_config(folder / "spanloop.toml")

    def explained(span_id: str) -> Explanation:
        return explain(client, span_id, config, dataset=folder / "d")

    one = explained(rows["single"][0]["SpanId"])
    assert one.call["flavour"] == "gen_ai"
    assert {merged["span_id"] for merged in one.merged} == {"wrapper", rows["gateway"][0]["SpanId"]}
    assert one.call["token_ids"]
    assert one.dataset == {}
    assert one.episode["why"] == "by itself: no other call goes on from it"
    first = explained(rows["first"][0]["SpanId"])
    assert first.episode["rule"] == "chain"
    assert (first.episode["step"], first.episode["steps"]) == (0, 2)
    assert first.episode["next_span_id"] == rows["first"][1]["SpanId"]
    (answer,) = first.rows
    parts = {part["name"]: part for part in answer["rewards"]}
    assert (parts["thumb"]["by"], parts["thumb"]["of"], parts["thumb"]["value"]) == ("link", "call", 0.5)
    assert (parts["short"]["source"], parts["short"]["weight"]) == ("rule", 2.0)
    assert answer["reward"] == sum(part["value"] * part["weight"] for part in answer["rewards"])
    assert answer["credit"]
    assert first.dataset == {}
    dropped = explained(rows["copy"][1]["SpanId"])
    assert [why.split(":")[0] for why in dropped.filters] == ["exact duplicate of an earlier episode"]
    assert dropped.dataset == {"rows": (0, 0)}
    assert "kept: " in explained("elsewhere-wrapper").why_not
    assert "merged into" in explained(rows["gateway"][0]["SpanId"]).why_not
    assert explained("tool").why_not == "no model call: no attribute of it says so"
    with pytest.raises(TransformError, match="the store has no span 'nowhere'"):
        explained("nowhere")


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({"services": ["another"]}, "its service is none of the dataset's: another"),
        ({"until": "2023-11-14T22:13:20+00:00"}, "it lies outside the dataset's window"),
    ],
    ids=["service", "window"],
)
def test_explain_says_what_a_dataset_did_not_look_at(
    client: Client, rows: dict[str, list[Row]], query: dict[str, Any], why: str, tmp_path: Path
) -> None:
    """And not that the span is no model call, as what was read of other services would have it."""
    write_dataset(
        tmp_path, transitions(1), query=query, config_hash="", credit="", counts={}, splits={}, decoders={}
    )
    told = explain(client, rows["single"][0]["SpanId"], Config(), dataset=tmp_path)
    assert told.why_not.startswith(why)


@pytest.mark.usefixtures("served")
def test_explain_as_a_command(filtered: tuple[Path, dict[str, Any]], rows: dict[str, list[Row]]) -> None:
    options = ("explain", rows["first"][0]["SpanId"], "--config", filtered[0] / "spanloop.toml")
    text = spanloop(*options).output
    for line in ("each prompt begins with the one before", "thumb = 0.5 × 1", "by link", "credit identical"):
        assert line in text
    other = spanloop("explain", rows["first"][0]["SpanId"], "--dataset", filtered[0] / "d")
    assert "another configuration" in other.stderr
    assert report(*options)["task"]["why"] == "a hash of the first user message"


def test_diff_tells_rows_columns_and_rewards(tmp_path: Path) -> None:
    frame = transitions(4)
    part = {"name": "late", "value": 0.5, "source": "feedback", "evaluator": "users", "version": ""}
    late = frame.with_columns(
        pl.when(pl.col("span_id") == "span0-1").then(pl.lit(0.5)).otherwise("reward").alias("reward"),
        pl.when(pl.col("span_id") == "span0-1").then(pl.lit([part], TRANSITIONS["reward_parts"]))
        .otherwise("reward_parts").alias("reward_parts"),
        pl.when(pl.col("span_id") == "span1-0").then(pl.lit("other")).otherwise("agent").alias("agent"),
    ).filter(pl.col("episode_id") != "e0003")  # fmt: skip
    new = transitions(5).filter(pl.col("episode_id") == "e0004")
    a, b = write(tmp_path / "a", frame), write(tmp_path / "b", pl.concat([late, new]))
    found = report("dataset", "diff", a, b)
    assert found["counts"] == {"added": 2, "removed": 2, "changed": 2, "rewards": 1}
    assert {row["span_id"] for row in found["added"]} == {"span4-0", "span4-1"}
    assert {row["span_id"] for row in found["removed"]} == {"span3-0", "span3-1"}
    assert found["columns"] == {"agent": 1, "reward": 1, "reward_parts": 1}
    (reward,) = found["rewards"]
    before = frame.filter(pl.col("span_id") == "span0-1")["reward"].item()
    assert (reward["span_id"], reward["before"], reward["after"], reward["parts"]) == (
        "span0-1",
        before,
        0.5,
        ["late"],
    )
    assert {row["span_id"]: row["columns"] for row in found["changed"]}["span1-0"] == ["agent"]
    text = spanloop("dataset", "diff", a, b).output
    assert "2 added, 2 removed, 2 changed, 4 the same" in text
    assert "the same dataset" in spanloop("dataset", "diff", a, a).output


@pytest.mark.parametrize("broken", ["parquet", "half", "manifest", "version", "folder"])
def test_a_broken_dataset_is_named(tmp_path: Path, broken: str) -> None:
    dataset = write(tmp_path / "d", transitions(2))
    manifest = json.loads((dataset / "manifest.json").read_text())
    path = dataset / "transitions.parquet"
    if broken == "parquet":
        path.write_bytes(b"PAR1 and nothing more")
    elif broken == "half":
        import hashlib

        path.write_bytes(path.read_bytes()[:-20])
        manifest["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest["id"] = hashlib.sha256(
            f"{manifest['sha256']}:{manifest['config_hash']}".encode()
        ).hexdigest()
        (dataset / "manifest.json").write_text(json.dumps(manifest))
    elif broken == "manifest":
        (dataset / "manifest.json").unlink()
    elif broken == "version":
        (dataset / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    else:
        dataset = tmp_path / "nowhere"
    why = {
        "parquet": "changed after it was built", "half": "is no Parquet file", "manifest": "not a finished dataset",
        "version": "another version of spanloop", "folder": "not a finished dataset",
    }[broken]  # fmt: skip
    for command in (("dataset", "show", dataset), ("dataset", "diff", dataset, dataset)):
        failed = spanloop(*command)
        assert failed.exit_code == 1
        assert why in str(failed.exception), command
