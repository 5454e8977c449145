"""Rewards by resource: which model and prompt version produced an episode, and how it did."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clickhouse_connect.driver.client import Client

from spanloop.main import cli
from spanloop_trainer.config import Config
from spanloop_trainer.config.rewards import RewardRule
from spanloop_trainer.transform import build, load_dataset
from spanloop_trainer.transform.reading.read import Window
from spanloop_trainer.transform.resources import ByResource, by_resource, interval

from .conftest import Agent, Row, insert, said, user

RULES = Config(rewards=(RewardRule(name="good", expression="CAST(answer = 'yes' AS DOUBLE)"),))
ALONE = [f"task {number}" for number in range(100)]
SYSTEM = {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]}


def served(row: Row, model: str, prompt: str = "", requested: str = "", **usage: str) -> Row:
    """The gateway's span of a call."""
    stamp = {
        "spanloop.gateway": "true",
        "gen_ai.operation.name": "chat",
        "gen_ai.response.id": row["SpanAttributes"]["gen_ai.response.id"],
        "spanloop.model.version": model,
        "spanloop.prompt.version": prompt,
        "spanloop.prompt.requested": requested,
        **usage,
    }
    return {
        **row,
        "SpanId": row["SpanId"] + "-gateway",
        "ServiceName": "spanloop-gateway",
        "SpanAttributes": {name: text for name, text in stamp.items() if text},
    }


def traffic() -> list[Row]:
    """Five single-call episodes: two of m@1 with p@1, two of m@2 with p@2 in place of p@1, one past the gateway."""
    agent, rows = Agent(), []
    for number, (answer, stamp) in enumerate(
        [
            ("yes", ("m@1", "p@1")),
            ("no", ("m@1", "p@1")),
            ("yes", ("m@2", "p@2", "p@1")),
            ("yes", ("m@2", "p@2", "p@1")),
            ("no", None),
        ]
    ):
        tokens = {"gen_ai.usage.input_tokens": "10", "gen_ai.usage.output_tokens": "2"}
        row = agent.call([SYSTEM, user(f"question {number}")], said(answer), at=10 * number, **tokens)
        rows.append(row)
        if stamp:
            rows.append(served(row, *stamp, **{"gen_ai.usage.input_tokens": "1000000"}))
    return rows


@pytest.fixture
def found(client: Client, tmp_path: Path) -> list[ByResource]:
    insert(client, traffic())
    build(client, tmp_path / "dataset", config=RULES)
    return by_resource(client, Window(), RULES)


def test_each_pair_of_versions_has_its_episodes_rewards_and_tokens(found: list[ByResource]) -> None:
    named = {(one.model, one.prompt): one for one in found}
    one, two = named["m@1", "p@1"], named["m@2", "p@2"]
    (other,) = (one for one in found if one.model == "m")
    assert (one.episodes, one.scored, one.mean) == (2, 2, 0.5)
    assert (two.episodes, two.scored, two.mean) == (2, 2, 1.0)
    assert (other.episodes, other.mean, other.low) == (1, 0.0, None)
    assert (one.calls, one.failed, one.input_tokens, one.output_tokens) == (2, 0, 20, 4)
    # Without a gateway the prompt is known by its text.
    assert len(other.prompt) >= 8
    assert "@" not in other.prompt


def test_a_rule_that_judged_again_and_one_that_was_taken_out_count_as_the_store_has_them(
    client: Client, tmp_path: Path
) -> None:
    """Building again after the rule changed leaves one more row an episode: the newest counts."""
    insert(client, traffic()[:2])
    for expression in ("1.0", "0.5", "0.125", "0.25"):
        rule = RewardRule(name="good", expression=expression)
        build(client, tmp_path / "dataset", config=Config(rewards=(rule,)))
    (one,) = by_resource(client, Window(), Config())
    # Both were judged at the same time, the episode's end: what was written last counts.
    assert one.mean == 0.25
    assert client.query("SELECT count() FROM rewards").result_rows == [(4,)]
    (weighed,) = by_resource(client, Window(), Config(rewards=(RewardRule(name="good", weight=4.0),)))
    assert weighed.mean == 4 * one.mean


def test_a_rule_for_calls_counts_once_a_call_without_its_configuration(
    client: Client, tmp_path: Path
) -> None:
    first = Agent().call([user("p")], said("a"), at=0)
    then = Agent("j").call([user("p"), said("a"), user("q")], said("b"), at=1)
    insert(client, [first, then])
    rule = RewardRule(name="each", level="call", expression="1.0")
    build(client, tmp_path / "dataset", config=Config(rewards=(rule,)))
    (one,) = by_resource(client, Window(), Config())
    assert (one.episodes, one.calls, one.mean) == (1, 2, 2.0)


def test_feedback_of_a_call_is_in_its_episode(client: Client) -> None:
    insert(client, traffic())
    judged = traffic()[0]["SpanAttributes"]["gen_ai.response.id"]
    columns = ["id", "time", "response_id", "name", "value", "source"]
    client.insert(
        "rewards", [["f", datetime(2026, 1, 1, tzinfo=UTC), judged, "thumb", 0.75, "feedback"]], columns
    )
    rows = by_resource(client, Window(), Config())
    assert {(one.model, one.scored, one.mean) for one in rows} == {
        ("m@1", 1, 0.75),
        ("m@2", 0, None),
        ("m", 0, None),
    }


def test_of_some_agents_rewards_are_those_of_build(client: Client, tmp_path: Path) -> None:
    """The episode's reward, found at its last call, whosever that is; and of calls those that the agents made."""
    agent, rows = Agent(), []
    history = [user("question 0")]
    for place, (name, text) in enumerate([("planner", "plan"), ("worker", "did it"), ("planner", "yes")]):
        rows.append(
            agent.call([*history], said(text), at=place, **{"gen_ai.agent.name": name, "session.id": "s"})
        )
        history += [said(text), user("go on")]
    insert(client, rows)
    columns = ["id", "time", "response_id", "name", "value", "source"]
    judged = [
        [f"f{place}", datetime(2026, 1, 1, tzinfo=UTC), row["SpanAttributes"]["gen_ai.response.id"], "thumb", value, "feedback"]
        for place, (row, value) in enumerate(zip(rows, (0.25, 0.5, 0.0), strict=True))
    ]  # fmt: skip
    client.insert("rewards", judged, columns)
    build(client, tmp_path / "d", config=RULES, agents=["worker"])
    (row,) = load_dataset(tmp_path / "d")[1].iter_rows(named=True)
    (one,) = by_resource(client, Window(), RULES, agents=["worker"])
    assert one.mean == row["return_"] == 1.5


def test_where_the_agents_span_says_no_tokens_the_gateways_does(client: Client) -> None:
    row = Agent().call([user("p")], said("a"), at=0, **{"gen_ai.usage.output_tokens": ""})
    insert(
        client,
        [row, served(row, "m@1", **{"gen_ai.usage.input_tokens": "7", "gen_ai.usage.output_tokens": "3"})],
    )
    (one,) = by_resource(client, Window(), Config())
    assert (one.input_tokens, one.output_tokens) == (7, 3)


def test_the_command_prints_a_table_and_json(client: Client, tmp_path: Path) -> None:
    insert(client, traffic())
    build(client, tmp_path / "dataset", config=RULES)
    client.close()
    arguments = [
        "status",
        "--by",
        "resource",
        "--since",
        "2023-01-01",
        "--store",
        f"chdb://{tmp_path / 'store'}",
    ]
    text = CliRunner().invoke(cli, arguments)
    assert text.exit_code == 0, text.output
    lines = text.stdout.splitlines()
    assert lines[1].split()[:3] == ["model", "prompt", "episodes"]
    assert any(line.split()[:5] == ["m@2", "p@2", "2", "2", "1.000"] for line in lines)
    answer = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert [row["model"] for row in answer["resources"]] == ["m", "m@1", "m@2"]
    refused = CliRunner().invoke(cli, ["status", "--since", "1d"])
    assert refused.exit_code == 2
    assert "go with --by resource" in refused.output


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    """Over 2,000 samples; four standard errors are .0195."""
    draw = random.Random(1)
    for size in (4, 20):
        hits = {"coin": 0, "bell": 0}
        for _ in range(2000):
            for name, values, true in (
                ("coin", [float(draw.random() < 0.7) for _ in range(size)], 0.7),
                ("bell", [draw.gauss(2, 3) for _ in range(size)], 2.0),
            ):
                _, low, high = interval(values, ALONE[:size])
                assert low is not None
                assert high is not None
                hits[name] += low <= true <= high
        assert hits["bell"] / 2000 == pytest.approx(0.95, abs=0.0195)
        # Of few coins only some intervals are possible: at least 90 % is what Wilson's holds at 4.
        assert hits["coin"] / 2000 > 0.88


def test_the_interval_of_little() -> None:
    assert interval([], []) == (None, None, None)
    assert interval([0.5], ["t"]) == (0.5, None, None)
    mean, low, high = interval([1.0] * 10, ALONE[:10])
    assert (mean, high) == (1.0, 1.0)
    assert low is not None
    assert 0.6 < low < 0.8  # 10 of 10 is no proof of always


def test_runs_of_one_task_are_no_independent_evidence() -> None:
    """Ten runs of each of ten tasks; as independent, intervals would hold the mean of all tasks 30 to 64 times of 100."""
    draw = random.Random(1)
    hits = {"coin": 0, "bell": 0, "always or never": 0}
    tasks = [name for name in ALONE[:10] for _ in range(10)]
    for _ in range(300):
        skills = [draw.random() for _ in range(10)]
        for name, values, true in (
            ("coin", [float(draw.random() < skill) for skill in skills for _ in range(10)], 0.5),
            ("bell", [skill + draw.gauss(0, 0.3) for skill in skills for _ in range(10)], 0.5),
            ("always or never", [float(skill < 0.8) for skill in skills for _ in range(10)], 0.8),
        ):
            _, low, high = interval(values, tasks)
            assert low is not None
            assert high is not None
            hits[name] += low <= true <= high
    assert all(hit / 300 > 0.9 for hit in hits.values()), hits
    _, ten, _ = interval([1.0] * 10, ["a"] * 5 + ["b"] * 5)
    _, alone, _ = interval([1.0] * 10, ALONE[:10])
    assert ten is not None
    assert alone is not None
    assert ten < alone
    # Of one task alone nothing is said about others.
    assert interval([1.0] * 10, ["a"] * 10) == interval([1.0] * 10, ALONE[:10])


def test_students_quantile() -> None:
    """Against the tables: 12.706, 4.303, 3.182, 2.228, 1.984 for 1, 2, 3, 10, 100 degrees."""
    from spanloop_trainer.transform.resources import _student

    found: list[Any] = [_student(degrees) for degrees in (1, 2, 3, 10, 100)]
    assert found == pytest.approx([12.706, 4.303, 3.182, 2.228, 1.984], rel=0.01)
