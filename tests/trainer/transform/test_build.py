"""Gateway stamps, twins, tasks, rewards and the dataset itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from spanloop_trainer.config import Config, RewardRule, load_config
from spanloop_trainer.errors import ConfigError, DatasetError, TransformError
from spanloop_trainer.transform import load_dataset

from .conftest import Agent, Build, Row, called, insert, recorded, result, said, user

EXACT = RewardRule(name="exact", expression="CAST(TRIM(answer) = expected AS DOUBLE)")


def gateway(agent_row: Row, **attributes: str) -> Row:
    """The gateway's span for a call of an agent."""
    values = {
        "spanloop.gateway": "true",
        "gen_ai.operation.name": "chat",
        "gen_ai.response.id": agent_row["SpanAttributes"]["gen_ai.response.id"],
        "spanloop.model.version": "calculator@3",
        "spanloop.prompt_token_ids": "[1, 2, 3]",
        "spanloop.completion_token_ids": "[[4, 5], [6]]",
        "spanloop.completion_logprobs": "[[-0.1, -2.0], [-0.5]]",
        "gen_ai.request.seed": "7",
        **attributes,
    }
    return {
        **agent_row,
        "SpanId": f"g-{agent_row['SpanId']}",
        "ParentSpanId": agent_row["SpanId"],
        "ServiceName": "spanloop-gateway",
        "SpanAttributes": values,
    }


def configured(folder: Path, *rewards: RewardRule, tasks: str = "", method: str = "identical") -> Config:
    (folder / "train.jsonl").write_text(
        tasks or '{"id": "t1", "prompt": "p", "expected": "done", "group": "g"}\n'
    )
    (folder / "spanloop.toml").write_text(
        f'[[tasks]]\nfile = "train.jsonl"\nsplit = "test"\n[credit]\nmethod = "{method}"\n'
        + "".join(
            f'[[rewards]]\nname = "{r.name}"\nexpression = "{r.expression}"\nweight = {r.weight}\n'
            for r in rewards
        )
    )
    return load_config(folder / "spanloop.toml")


def episode(agent: Agent, prompt: str, answer: str, *, at: int) -> list[Row]:
    history = [user(prompt), called("add", {"a": at}, f"c{at}"), result(f"c{at}", "1")]
    return [
        agent.call(history[:1], called("add", {"a": at}, f"c{at}"), at=at),
        agent.call(history, said(answer), at=at + 1),
    ]


def test_the_gateways_span_is_merged_and_is_no_call(build_rows: Build) -> None:
    row = Agent().call([user("p")], said("a"), said("b"), at=0)
    manifest, frame = build_rows([row, gateway(row)])
    assert frame["span_id"].to_list() == [row["SpanId"]] * 2
    assert frame["policy"].to_list() == ["calculator"] * 2
    assert frame["policy_version"].to_list() == ["calculator@3"] * 2
    assert frame["prompt_ids"].to_list() == [[1, 2, 3]] * 2
    assert frame["completion_ids"].to_list() == [[4, 5], [6]]
    assert frame["logprobs"].to_list() == [[-0.1, -2.0], [-0.5]]
    assert frame["sampling"].struct.field("seed").to_list() == [7, 7]
    assert manifest.counts["gateway_spans_merged"] == 1
    assert manifest.counts["usable_with_token_ids"] == 2


def test_the_prompt_that_ran_is_named_by_the_gateways_stamp(build_rows: Build) -> None:
    agent = Agent()
    system = {"role": "system", "parts": [{"type": "text", "content": "You are kind."}]}
    rows = [agent.call([system, user("p")], said("a"), at=at) for at in range(3)]
    replaced = gateway(rows[0], **{"spanloop.prompt.version": "p@2", "spanloop.prompt.requested": "p@1"})
    _, frame = build_rows([*rows, replaced, gateway(rows[1], **{"spanloop.prompt.version": "p@1"})])
    by_span = dict(frame.select("span_id", "resources").unique("span_id").iter_rows())
    assert by_span[rows[0]["SpanId"]] == ["prompt:p@2", "requested:p@1"]
    assert by_span[rows[1]["SpanId"]] == ["prompt:p@1"]
    # `state` is what the agent's own span says, and only the first call ran with something else.
    flags = dict(frame.select("span_id", "flags").iter_rows())
    assert [flags[row["SpanId"]] for row in rows] == [["prompt_replaced"], [], []]
    (hashed,) = by_span[rows[2]["SpanId"]]
    assert hashed.startswith("prompt:")
    assert "@" not in hashed


def test_a_failed_call_gets_the_version_that_failed(build_rows: Build) -> None:
    row = Agent().call([user("p")], at=0, **{"error.type": "E", "gen_ai.response.id": ""})
    _, frame = build_rows([row, gateway(row, **{"spanloop.completion_token_ids": ""})])
    assert frame.select("status", "policy_version", "completion_ids").row(0) == (
        "error",
        "calculator@3",
        None,
    )


OWN = {
    "spanloop.model.version": "calculator@9",
    "spanloop.prompt_token_ids": "[7]",
    "spanloop.completion_token_ids": "[[8]]",
    "spanloop.completion_logprobs": "[[-0.9]]",
}


@pytest.mark.parametrize("on_twin", [False, True], ids=["its own span", "its twin"])
def test_what_the_exporter_recorded_stands_in_for_a_gateway(build_rows: Build, on_twin: bool) -> None:
    row = Agent().call([user("p")], said("a"), at=0, **({} if on_twin else OWN))
    twin = {**row, "SpanId": "twin", "SpanAttributes": row["SpanAttributes"] | OWN, "TraceId": "another"}
    twin["Timestamp"] = row["Timestamp"] + 1
    _, frame = build_rows([row, twin] if on_twin else [row])
    columns = ("span_id", "policy_version", "prompt_ids", "completion_ids", "logprobs")
    assert frame.select(columns).rows() == [(row["SpanId"], "calculator@9", [7], [8], [-0.9])]


def test_tokens_of_two_sources_are_never_mixed(build_rows: Build) -> None:
    row = Agent().call([user("p")], said("a"), at=0, **OWN)
    columns = ("policy_version", "prompt_ids", "completion_ids", "logprobs")
    _, whole = build_rows([row, gateway(row)])
    assert whole.select(columns).rows() == [("calculator@3", [1, 2, 3], [4, 5], [-0.1, -2.0])]
    _, without = build_rows([row, gateway(row, **{"spanloop.completion_token_ids": ""})])
    assert without.select(columns).rows() == [("calculator@3", [7], [8], [-0.9])]


def test_a_gateways_span_alone_is_counted_with_its_reason(build_rows: Build) -> None:
    agent = Agent()
    seen, unseen = agent.call([user("p")], said("a"), at=0), agent.call([user("q")], said("b"), at=1)
    manifest, frame = build_rows([seen, gateway(unseen)])
    assert frame.height == 1
    assert (
        manifest.counts["lost"]["gateway span without the agent's span (among the services asked for)"] == 1
    )


def test_attempts_that_the_client_repeated_are_counted_as_such(build_rows: Build) -> None:
    row = Agent().call([user("p")], said("a"), at=0)
    refused = {**gateway(row, **{"gen_ai.response.id": ""}), "SpanId": "refused"}
    manifest, frame = build_rows([row, refused, gateway(row)])
    assert frame["completion_ids"].to_list() == [[4, 5]]
    assert manifest.counts["lost"] == {"gateway span of an attempt that the client repeated": 1}


def test_twins_count_once_wherever_they_are(build_rows: Build) -> None:
    row = Agent().call([user("p")], said("a"), at=0)
    wrapper = {**row, "SpanId": "w", "TraceId": "elsewhere", "Timestamp": row["Timestamp"] - 1}
    wrapper["SpanAttributes"] = {
        k: v for k, v in row["SpanAttributes"].items() if k != "gen_ai.output.messages"
    }
    manifest, frame = build_rows([row, wrapper, row])
    assert frame["span_id"].to_list() == [row["SpanId"]]
    assert manifest.counts["lost"]["twin: another span reports the same response id"] == 1
    assert manifest.counts["rows_of_spans_stored_twice"] == 1


def test_spans_that_were_sent_twice_change_nothing(build_rows: Build) -> None:
    """Calls, the gateway's stamps and the agents above them; and it does not matter which of two unequal copies came first."""
    rows = recorded("a_sync_basic", "c_langchain_basic", "d_agents_responses_basic")
    rows.append(gateway(next(row for row in rows if row["SpanAttributes"].get("gen_ai.response.id"))))
    manifest, frame = build_rows(rows)
    again, same = build_rows([*rows, *reversed(rows)])
    assert same.equals(frame)
    assert again.counts.pop("rows_of_spans_stored_twice") == len(rows)
    assert manifest.counts.pop("rows_of_spans_stored_twice") == 0
    assert again.counts == manifest.counts
    row = Agent().call([user("p")], said("a"), at=0)
    other = Agent().call([user("p")], said("b"), at=0) | {"TraceId": row["TraceId"], "SpanId": row["SpanId"]}
    results = [build_rows(copies)[1]["action"].to_list() for copies in ([row, other], [other, row])]
    assert results[0] == results[1]
    assert len(results[0]) == 1


def test_every_span_is_accounted_for(build_rows: Build) -> None:
    rows = recorded("a_sync_basic", "c_langchain_basic", "legacy_a_sync", "a_sync_err429")
    counts = build_rows(rows)[0].counts
    lost_before = sum(number for reason, number in counts["lost"].items() if not reason.startswith("status"))
    assert counts["spans"] == len(rows) == counts["calls"] + lost_before
    assert counts["transitions"] == counts["usable"] + counts["lost"]["status error: the call failed"]


def test_a_task_is_recognised_by_its_prompt(build_rows: Build, tmp_path: Path) -> None:
    agent = Agent()
    config = configured(tmp_path, EXACT, RewardRule(name="short", expression="steps * -0.5", weight=0.1))
    rows = [
        *episode(agent, " p\n", "done ", at=0),
        *episode(agent, "p", "no", at=10),
        *episode(agent, "other", "x", at=20),
    ]
    _, frame = build_rows(rows, config)
    frame = frame.sort("start")
    assert frame["task_id"].to_list()[:4] == ["t1"] * 4
    assert frame["split"].to_list()[:4] == ["test"] * 4
    assert frame["task_id"][4].startswith("prompt-")
    assert frame["reward"].to_list() == pytest.approx([0.9, 0.9, -0.1, -0.1, -0.1, -0.1])
    assert [part["name"] for part in frame["reward_parts"][0]] == ["exact", "short"]
    assert [part["name"] for part in frame["reward_parts"][4]] == [
        "short"
    ]  # `expected` is unknown: unscored by it


def test_an_explicit_task_id_wins(build_rows: Build, tmp_path: Path) -> None:
    row = Agent().call([user("something else")], said("done"), at=0, **{"spanloop.task.id": "t1"})
    _, frame = build_rows([row], configured(tmp_path, EXACT))
    assert frame.select("task_id", "reward", "split").row(0) == ("t1", 1.0, "test")


def test_unscored_is_null_and_never_zero(build_rows: Build) -> None:
    _, frame = build_rows([Agent().call([user("p")], said("a"), at=0)])
    assert frame.select("reward", "return_", "advantage").row(0) == (None, None, None)
    assert frame["reward_parts"].to_list() == [[]]


def test_group_credit_reaches_every_step_once_an_episode(build_rows: Build, tmp_path: Path) -> None:
    agent = Agent()
    rows = [
        *episode(agent, "p", "done", at=0),
        *episode(agent, "p", "no", at=10),
        *episode(agent, "p", "no", at=20),
    ]
    _, frame = build_rows(rows, configured(tmp_path, EXACT, method="rloo"))
    assert frame.sort("start")["advantage"].to_list() == [1.0, 1.0, -0.5, -0.5, -0.5, -0.5]


def test_rule_rewards_reach_the_store_once_and_are_not_read_back(
    build_rows: Build, client: Client, tmp_path: Path
) -> None:
    config = configured(tmp_path, EXACT)
    rows = episode(Agent(), "p", "done", at=0)
    first, _ = build_rows(rows, config)
    second, frame = build_rows(None, config)
    assert second.id == first.id
    assert frame["reward"].to_list() == [1.0, 1.0]
    stored = client.query("SELECT span_id, name, value, source FROM rewards").result_rows
    assert stored == [(rows[1]["SpanId"], "exact", 1.0, "rule")]
    assert client.query("SELECT count() FROM datasets").result_rows == [(1,)]


def test_feedback_goes_to_the_call_it_names_else_to_the_episode(build_rows: Build, client: Client) -> None:
    rows = episode(Agent(), "p", "a", at=0)
    feedback: list[tuple[Any, ...]] = [
        ("1", "", "", rows[1]["SpanAttributes"]["gen_ai.response.id"], "thumb", 1.0),
        ("1", "", "", rows[1]["SpanAttributes"]["gen_ai.response.id"], "thumb", 1.0),  # sent twice
        ("2", rows[0]["TraceId"], "", "", "judge", 0.25),
        ("3", "no such trace", "", "", "judge", 9.0),
    ]
    names = ["id", "trace_id", "span_id", "response_id", "name", "value", "time", "source"]
    client.insert(
        "rewards",
        [[*row, datetime(2026, 1, 1, tzinfo=UTC), "feedback"] for row in feedback],
        column_names=names,
    )
    manifest, frame = build_rows(rows)
    assert frame.sort("step")["reward"].to_list() == [0.25, 1.25]
    assert manifest.counts["judgements_outside"] == 1


def test_deleting_an_episodes_rows_makes_it_vanish(build_rows: Build, client: Client) -> None:
    agent = Agent()
    gone = episode(agent, "p", "a", at=0)
    before, _ = build_rows([*gone, *episode(agent, "q", "b", at=10)])
    client.command(
        "DELETE FROM otel_traces WHERE TraceId IN {ids:Array(String)}",
        parameters={"ids": [r["TraceId"] for r in gone]},
    )
    after, frame = build_rows(None)
    assert after.id != before.id
    assert not set(frame["trace_id"]) & {row["TraceId"] for row in gone}
    assert frame.height == 2


def test_the_window_is_half_open(build_rows: Build) -> None:
    agent = Agent()
    rows = [agent.call([user(f"p{at}")], said("a"), at=at) for at in range(4)]
    start = datetime.fromtimestamp(1_700_000_000, UTC)
    _, frame = build_rows(rows, since=start + timedelta(seconds=1), until=start + timedelta(seconds=3))
    assert frame["span_id"].to_list() == [rows[1]["SpanId"], rows[2]["SpanId"]]


def test_filters_by_service_and_agent(build_rows: Build) -> None:
    rows = [
        Agent("i1", "one").call([user("p")], said("a"), at=0),
        Agent("i2", "two").call([user("p")], said("a"), at=0),
    ]
    assert build_rows(rows, services=["one"])[1]["agent"].to_list() == ["one"]
    assert build_rows(None, agents=["two"])[1]["agent"].to_list() == ["two"]


def test_an_empty_window_says_what_there_is(build_rows: Build, client: Client) -> None:
    with pytest.raises(TransformError, match="holds no spans at all"):
        build_rows(None)
    insert(client, [Agent().call([user("p")], said("a"), at=0)])
    with pytest.raises(TransformError, match=r"2030-01-01.*1 spans are from 2023-11-14 22:13:20") as caught:
        build_rows(None, since=datetime(2030, 1, 1, tzinfo=UTC))
    assert "--since" in caught.value.hint


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("answr = 'x'", r"answr.*valid columns: .*answer"),
        ("CAST((", "cannot be evaluated"),
        ("answer", "cannot be evaluated"),
    ],
)
def test_a_wrong_expression_is_named_and_nothing_is_written(
    build_rows: Build, tmp_path: Path, expression: str, named: str
) -> None:
    config = Config(rewards=(RewardRule(name="bad", expression=expression),))
    with pytest.raises(TransformError, match=named):
        build_rows([Agent().call([user("p")], said("a"), at=0)], config)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("tasks", "named"),
    [
        ("{", "not JSON lines"),
        ('{"id": "1"}\n', "no field prompt"),
        ('{"id": "1", "prompt": "p"}\n{"id": "2", "prompt": " p "}\n', "share their prompt"),
    ],
)
def test_malformed_tasks_are_named(build_rows: Build, tmp_path: Path, tasks: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_rows([Agent().call([user("p")], said("a"), at=0)], configured(tmp_path, tasks=tasks))


def test_a_dataset_that_is_unfinished_or_changed_is_refused(build_rows: Build, tmp_path: Path) -> None:
    build_rows([Agent().call([user("p")], said("a"), at=0)])
    folder = tmp_path / "dataset"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "transitions.parquet"]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": "0"}))
    with pytest.raises(DatasetError, match="changed after"):
        load_dataset(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DatasetError, match="not a finished dataset"):
        load_dataset(folder)
