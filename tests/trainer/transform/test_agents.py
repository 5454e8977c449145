"""Some agents only: their calls are rows, and what the others say is what they observe."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.examples import few

from spanloop_trainer.config import Config
from spanloop_trainer.config.rewards import RewardRule
from spanloop_trainer.transform.episodes.agents import _through

from .conftest import Agent, Build, Row, recorded, said, user

RULES = Config(rewards=(RewardRule(name="good", expression="CAST(answer = 'done' AS DOUBLE)"),))


def conversation() -> list[Row]:
    """Agents a, b, b, a in one session, each going on from what was said."""
    loop, history, rows = Agent(), [user("q")], []
    for at, (agent, answer) in enumerate(
        [("a", "ask b"), ("b", "let me see"), ("b", "it is 7"), ("a", "done")]
    ):
        names = {"session.id": "s", "gen_ai.agent.name": agent}
        rows.append(loop.call(list(history), said(answer), at=at, **names))
        history += [said(answer), user(f"after {agent}")]
    return rows


def texts(observation: str | None) -> list[str] | None:
    return None if observation is None else [message["content"] for message in json.loads(observation)]


def test_what_others_say_is_observed(build_rows: Build) -> None:
    rows = conversation()
    manifest, frame = build_rows(rows, RULES, agents=["a"])
    first, last = frame.sort("step").to_dicts()
    assert (first["span_id"], first["next_span_id"], first["done"]) == (
        rows[0]["SpanId"],
        rows[3]["SpanId"],
        False,
    )
    assert texts(first["observation"]) == ["after a", "let me see", "after b", "it is 7", "after b"]
    assert (last["next_span_id"], last["done"], last["observation"]) == (None, True, None)
    assert manifest.counts["lost"] == {"call of another agent": 2}
    assert manifest.counts["calls"] == 2


def test_an_agent_in_the_middle_ends_where_its_part_ends(build_rows: Build) -> None:
    """The outcome is the whole episode's: the rule looks at the answer that another agent gave."""
    rows = conversation()
    _, frame = build_rows(rows, RULES, agents=["b"])
    first, last = frame.sort("step").to_dicts()
    assert texts(first["observation"]) == ["after b"]
    assert (last["span_id"], last["done"], last["next_span_id"]) == (rows[2]["SpanId"], True, None)
    assert frame.select("reward", "return_", "advantage").rows() == [(1.0, 1.0, 1.0)] * 2


def test_all_agents_named_are_as_none_named(build_rows: Build) -> None:
    _, named = build_rows(conversation(), RULES, agents=["a", "b"])
    _, everything = build_rows(conversation(), RULES)
    assert named.equals(everything)


def test_a_recorded_hand_off(build_rows: Build) -> None:
    """The Agents SDK: a triage agent hands over to one that calls a tool."""
    rows = recorded("d_agents_chat_basic")
    _, triage = build_rows(rows, agents=["Triage agent"])
    assert triage.select("agent", "done", "next_span_id", "observation").rows() == [
        ("Triage agent", True, None, None)
    ]
    _, weather = build_rows(rows, agents=["Weather agent"])
    assert weather.sort("step")["done"].to_list() == [False, True]
    called = json.loads(triage["action"][0])["tool_calls"][0]["function"]["name"]
    # What the first one said is in the state that the second one found.
    assert called in weather.sort("step")["state"][0]


LINKED = st.lists(st.tuples(st.booleans(), st.integers(-1, 20)), min_size=1, max_size=30)


@settings(max_examples=few(60), deadline=None)
@given(LINKED)
def test_links_lead_over_any_number_of_others(drawn: list[tuple[bool, int]]) -> None:
    parents = [min(parent, row - 1) for row, (_, parent) in enumerate(drawn)]
    selected = [of for of, _ in drawn]
    links = [(row, parent, row % 3, 10 * row) for row, parent in enumerate(parents) if parent >= 0]
    schema = {"row": pl.UInt32, "parent": pl.UInt32, "choice": pl.Int32, "length": pl.UInt32}
    table = pl.DataFrame(links, schema=schema, orient="row").with_columns(pl.lit("ok").alias("status"))
    calls = pl.DataFrame({"row": range(len(drawn)), "selected": selected})
    number = {row: place for place, row in enumerate(row for row, of in enumerate(selected) if of)}
    expected: list[tuple[Any, ...]] = []
    for row, of in enumerate(selected):
        edge, parent = row, parents[row]
        while parent >= 0 and not selected[parent]:
            edge, parent = parent, parents[parent]
        if of and parent >= 0:
            expected.append((number[row], number[parent], edge % 3, 10 * edge, "ok"))
    assert _through(calls, table).rows() == expected


def test_links_without_others_are_the_links() -> None:
    table = pl.DataFrame(
        {"row": [1, 2], "parent": [0, 1], "choice": [0, 0], "length": [2, 4], "status": ["ok", "ok"]}
    )
    calls = pl.DataFrame({"row": [0, 1, 2], "selected": [True] * 3})
    assert _through(calls, table).equals(table)
