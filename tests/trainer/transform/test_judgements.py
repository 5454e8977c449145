"""Which row of an id counts, and what a judgement judges: a call, whoever reported it, or an episode."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from .conftest import Agent, Build, Row, said, user

JUDGED = datetime(2026, 1, 1, tzinfo=UTC)


def judge(
    client: Client, value: float | None, *, later_s: float = 0, received_s: float = 0, **columns: Any
) -> None:
    row = {
        "id": "1",
        "time": JUDGED + timedelta(seconds=later_s),
        "received": JUDGED + timedelta(days=1, seconds=received_s),
        "name": "thumb",
        "value": value,
        "source": "feedback",
        **columns,
    }
    client.insert("rewards", [list(row.values())], column_names=list(row))


def one(**attributes: str) -> Row:
    return Agent().call([user("p")], said("a"), at=0, **attributes)


def response(row: Row) -> str:
    return str(row["SpanAttributes"]["gen_ai.response.id"])


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0), (0, 2, 1)], ids=str)
def test_the_newest_row_of_an_id_counts(build_rows: Build, client: Client, order: tuple[int, ...]) -> None:
    row = one()
    facts = [
        {"value": 1.0, "later_s": 0, "received_s": 9},
        {"value": -1.0, "later_s": 5, "received_s": 1},
        {"value": 0.5, "later_s": 5, "received_s": 2},
    ]
    for place in order:
        judge(client, response_id=response(row), **facts[place])  # type: ignore[arg-type]  # columns of several kinds
    _, frame = build_rows([row])
    assert frame["reward"].to_list() == [0.5]


def test_a_judgement_is_taken_back_by_a_newer_one_without_a_value(build_rows: Build, client: Client) -> None:
    row = one()
    judge(client, 1.0, response_id=response(row))
    judge(client, None, response_id=response(row), later_s=1, label="withdrawn")
    _, frame = build_rows([row])
    assert frame["reward"].to_list() == [None]


def test_a_value_that_is_no_number_poisons_nothing(build_rows: Build, client: Client) -> None:
    row = one()
    judge(client, float("nan"), id="bad", response_id=response(row))
    judge(client, 1.0, response_id=response(row))
    _, frame = build_rows([row])
    assert frame["reward"].to_list() == [1.0]


@pytest.mark.parametrize("by", ["twin", "gateway"])
def test_a_judgement_of_another_span_of_the_call_is_of_the_call(
    build_rows: Build, client: Client, by: str
) -> None:
    """The span that a dataset does not keep, in a trace of its own."""
    row = one()
    stamp = {"spanloop.gateway": "true", "gen_ai.operation.name": "chat", "gen_ai.response.id": response(row)}
    other = {
        **row,
        "TraceId": "elsewhere",
        "SpanId": "other",
        "Timestamp": row["Timestamp"] + 1,
        "SpanAttributes": row["SpanAttributes"] if by == "twin" else stamp,
    }
    judge(client, 1.0, span_id="other", trace_id="elsewhere")
    manifest, frame = build_rows([row, other])
    assert frame.select("span_id", "reward").rows() == [(row["SpanId"], 1.0)]
    assert manifest.counts["judgements_outside"] == 0


def agents_of_one_request() -> list[Row]:
    """Two agents below a web server's span, a call each."""
    empty: dict[str, str] = {}
    server = {**one(), "TraceId": "t", "SpanId": "server", "SpanName": "POST", "SpanAttributes": empty}
    rows = [server]
    for number in (1, 2):
        agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"a{number}"}
        rows.append({**server, "SpanId": f"agent{number}", "ParentSpanId": "server", "SpanAttributes": agent})
        call = Agent(f"i{number}").call([user(f"p{number}")], said("a"), at=number)
        rows.append({**call, "TraceId": "t", "SpanId": f"call{number}", "ParentSpanId": f"agent{number}"})
    return rows


@pytest.mark.parametrize(
    ("span", "expected", "outside"),
    [
        ("agent1", [1.0, None], 0),
        ("agent2", [None, 1.0], 0),
        ("server", [None, None], 1),
        ("unknown", [None, None], 1),
    ],
)
def test_a_judgement_of_a_span_above_is_of_the_one_episode_below_it(
    build_rows: Build, client: Client, span: str, expected: list[float | None], outside: int
) -> None:
    judge(client, 1.0, trace_id="t", span_id=span)
    manifest, frame = build_rows(agents_of_one_request())
    assert frame.sort("start")["reward"].to_list() == expected
    assert manifest.counts["judgements_outside"] == outside


@pytest.mark.parametrize("key", ["trace_id", "span_id", "response_id", "session_id"])
def test_a_judgement_of_days_before_its_span_is_found_when_the_span_comes(
    build_rows: Build, client: Client, key: str
) -> None:
    row = one(**{"session.id": "s1"})
    names = {
        "trace_id": row["TraceId"],
        "span_id": row["SpanId"],
        "response_id": response(row),
        "session_id": "s1",
    }
    judge(client, 0.25, **{key: names[key]})
    other = Agent("i2").call([user("q")], said("b"), at=50)
    before, frame = build_rows([other])
    assert (frame["reward"].to_list(), before.counts["judgements_outside"]) == ([None], 1)
    after, frame = build_rows([other, row])
    assert dict(frame.select("span_id", "reward").rows()) == {row["SpanId"]: 0.25, other["SpanId"]: None}
    assert after.counts["judgements_outside"] == 0


def same_span_id_in_two_traces() -> list[Row]:
    """Some tracers count spans from 1 in each trace; the specification asks for no more."""
    rows = [Agent(f"i{number}").call([user(f"p{number}")], said("a"), at=number) for number in (1, 2)]
    return [{**row, "TraceId": f"t{number}", "SpanId": "1"} for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("names", "expected", "outside"),
    [({"trace_id": "t2"}, [None, 1.0], 0), ({}, [None, None], 1)],
    ids=["of-a-trace", "alone"],
)
def test_a_span_id_that_two_traces_have_is_looked_for_in_its_own(
    build_rows: Build, client: Client, names: dict[str, str], expected: list[float | None], outside: int
) -> None:
    judge(client, 1.0, span_id="1", **names)
    manifest, frame = build_rows(same_span_id_in_two_traces())
    assert frame.sort("start")["reward"].to_list() == expected
    assert manifest.counts["judgements_outside"] == outside
