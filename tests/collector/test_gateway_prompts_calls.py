"""Prompts in whole calls through the gateway: the real client, streaming and responses, canary sessions, and what the spans say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.collector.gateway_house import House, gateway, quick_polls
from tests.helpers.openai_stub import openai_stub
from tests.helpers.otlp_receiver import otlp_receiver

from spanloop_collector.gateway.prompts import Book, Prompts
from spanloop_collector.gateway.versions import Snapshot
from spanloop_store.prompts import PromptVersion

__all__ = ["quick_polls"]

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
USER = {"role": "user", "content": "Rye?"}
SENT = "You are the agent of a bakery. Today is Monday."
TEXTS = [
    "You are the agent of a bakery. Today is {{day}}.",
    "Sell bread, {{day}}.",
    "Give bread, {{day}}.",
    "{{who}}",
]
VERSIONS = {
    ("shop", number): PromptVersion("shop", number, text, created=LONG_AGO)
    for number, text in enumerate(TEXTS, 1)
}


@pytest.fixture
def house() -> Iterator[House]:
    with (
        openai_stub(responses=True) as stub,
        otlp_receiver() as receiver,
        gateway(stub, receiver, prompts=Prompts(None), limits={"canary": {"tried": 1.0}}) as house,
    ):
        yield house


def point(house: House, **aliases: int) -> None:
    now = LONG_AGO + timedelta(days=1)
    book = Book(VERSIONS, {("shop", alias): (number, now) for alias, number in aliases.items()})
    house.registry.snapshot = Snapshot(prompts=book)
    with house.registry.reads:
        seen = house.registry.count
        assert house.registry.reads.wait_for(lambda: house.registry.count >= seen + 3, timeout=20)


def ask(house: House, model: str = "small", **more: Any) -> Any:
    messages: Any = [{"role": "system", "content": SENT}, USER]
    return house.client().chat.completions.create(model=model, messages=messages, **more)


def stamps(house: House, count: int) -> list[tuple[Any, ...]]:
    names = ("version", "requested", "skipped")
    return [
        tuple(span.attributes.get(f"spanloop.prompt.{name}") for name in names) for span in house.spans(count)
    ]


def test_a_version_goes_out_in_streams_and_responses_and_the_spans_name_both(house: House) -> None:
    point(house, production=2)
    ask(house)
    assert list(ask(house, stream=True))
    house.client().responses.create(model="small", instructions=SENT, input="Rye?")
    for request in house.stub.requests[:2]:
        assert request["messages"] == [{"role": "system", "content": "Sell bread, Monday."}, USER]
    assert house.stub.calls[-1].request["messages"][0]["content"] == "Sell bread, Monday."
    assert stamps(house, 3) == [("shop@2", "shop@1", None)] * 3


def test_without_a_decision_the_request_goes_on_as_it_came(house: House) -> None:
    point(house)
    ask(house)
    assert house.stub.requests[0]["messages"][0]["content"] == SENT
    assert stamps(house, 1) == [("shop@1", None, None)]


def test_what_is_skipped_says_why(house: House) -> None:
    point(house, production=4)
    ask(house)
    assert house.stub.requests[0]["messages"][0]["content"] == SENT
    assert stamps(house, 1) == [("shop@1", None, "shop@4: no value for who")]


def test_canary_sessions_get_the_candidate(house: House) -> None:
    point(house, production=2, candidate=3)
    ask(house, "tried")
    ask(house)
    assert [request["messages"][0]["content"] for request in house.stub.requests] == [
        "Give bread, Monday.",
        "Sell bread, Monday.",
    ]
    assert stamps(house, 2) == [("shop@3", "shop@1", None), ("shop@2", "shop@1", None)]
