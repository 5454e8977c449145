"""The openai SDK, unmodified: chat completions and Responses, sync and async, streaming, parallel tools, several answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.helpers.agents import (
    assert_every_call_once,
    model_calls,
    run_agent,
    succeeded,
    tool_steps,
    without_ids,
)
from tests.helpers.openai_stub import Stub, openai_stub, tool_calls
from tests.helpers.otlp_receiver import ReceivedSpan, otlp_receiver

AGENTS = Path(__file__).parent / "agents"
ANSWER = "2 + 3 is 5, and 4 · 5 is “20”."
LOOPS = ("sync", "stream", "async", "async-stream")
SEVERAL = ("several", "several-stream")
NUMBERS = ("one", "two", "three")


class Run(NamedTuple):
    """What one process left: what it printed, what the server logged, what the collector got."""

    printed: list[str]
    stub: Stub
    spans: list[ReceivedSpan]

    @property
    def calls(self) -> list[ReceivedSpan]:
        return model_calls(self.spans)

    def of(self, mode: str) -> list[ReceivedSpan]:
        return [call for call in self.calls if f'"{mode}: ' in call.attributes["gen_ai.input.messages"]]


def scripted() -> Any:
    """Both tools at once, then the answer; without tools one number after another."""
    numbers = cycle(NUMBERS)

    def respond(request: dict[str, Any]) -> dict[str, Any]:
        if "tools" not in request:
            return {"role": "assistant", "content": next(numbers)}
        if request["messages"][-1]["role"] == "tool":
            return {"role": "assistant", "content": ANSWER}
        return tool_calls(("call_a", "add", '{"a": 2, "b": 3}'), ("call_m", "multiply", '{"a": 4,  "b": 5}'))

    return respond


def run(script: str, *modes: str, calls: int) -> Iterator[Run]:
    with otlp_receiver() as receiver, openai_stub(respond=scripted(), responses=True) as stub:
        # Which alone takes longer than these programs.
        variables = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "langchain"}
        ended = run_agent(AGENTS / script, *modes, stub=stub, receiver=receiver, **variables)
        printed = succeeded(ended).splitlines()
        spans = receiver.wait(lambda spans: len(model_calls(spans)) >= calls)
        yield Run(printed, stub, spans)


@pytest.fixture(scope="module")
def chat() -> Iterator[Run]:
    yield from run("openai_chat.py", *LOOPS, *SEVERAL, calls=10)


@pytest.fixture(scope="module")
def responses() -> Iterator[Run]:
    yield from run("openai_responses.py", *LOOPS, "previous", calls=10)


def test_every_chat_completion_is_one_span_with_what_was_said(chat: Run) -> None:
    assert chat.printed == [ANSWER] * 4 + ["one two three"] * 2
    assert len(chat.stub.calls) == 10
    assert_every_call_once(chat.stub, chat.calls)
    assert all("gen_ai.response.id" in call.attributes for call in chat.calls)


@pytest.mark.parametrize("mode", LOOPS)
def test_parallel_tools_are_in_the_answer_and_in_the_next_prompt(chat: Run, mode: str) -> None:
    first, second = sorted(chat.of(mode), key=lambda call: len(call.attributes["gen_ai.input.messages"]))
    (asked,) = first.json("gen_ai.output.messages")
    tools = [(part["id"], part["name"]) for part in asked["parts"] if part["type"] == "tool_call"]
    assert tools == [("call_a", "add"), ("call_m", "multiply")]
    roles = [message["role"] for message in second.json("gen_ai.input.messages")]
    assert roles == ["system", "user", "assistant", "tool", "tool"]
    for call in (first, second):
        assert {tool["name"] for tool in call.json("gen_ai.tool.definitions")} == {"add", "multiply"}
        assert call.attributes["gen_ai.request.model"] == "m"
        assert call.attributes["gen_ai.request.temperature"] == 0.5


@pytest.mark.parametrize("mode", SEVERAL)
def test_several_answers_to_one_prompt_are_kept_apart(chat: Run, mode: str) -> None:
    (call,) = chat.of(mode)
    texts = [message["parts"][0]["content"] for message in call.json("gen_ai.output.messages")]
    assert texts == list(NUMBERS)


def test_every_response_is_one_span_with_what_was_said(responses: Run) -> None:
    assert responses.printed == [ANSWER] * 5
    assert len(responses.stub.calls) == 10
    told = [call for call in responses.calls if "gen_ai.response.id" in call.attributes]
    assert len(told) == 10
    assert_every_call_once(responses.stub, told, without_ids)


def test_a_response_that_continues_another_names_it(responses: Run) -> None:
    (first,) = responses.of("previous")
    later = [call for call in responses.calls if "spanloop.request.previous_response_id" in call.attributes]
    assert [call.attributes["spanloop.request.previous_response_id"] for call in later] == [
        first.attributes["gen_ai.response.id"]
    ]


@pytest.mark.parametrize("mode", LOOPS)
def test_a_response_names_its_tools_and_their_results(responses: Run, mode: str) -> None:
    first, second = sorted(responses.of(mode), key=lambda call: len(call.attributes["gen_ai.input.messages"]))
    (asked,) = first.json("gen_ai.output.messages")
    assert [part["name"] for part in asked["parts"]] == ["add", "multiply"]
    results = [message for message in second.json("gen_ai.input.messages") if message["role"] == "tool"]
    assert [result["parts"][0]["response"] for result in results] == ["5", "20"]
    assert [result["parts"][0]["id"] for result in results] == ["call_a", "call_m"]
    assert {"add", "multiply"} == {
        tool.get("function", tool)["name"] for tool in json.loads(first.attributes["gen_ai.tool.definitions"])
    }


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_each_tool_of_a_plain_loop_is_a_step_below_its_call(
    kind: str, request: pytest.FixtureRequest
) -> None:
    ran: Run = request.getfixturevalue(kind)
    ways = len(LOOPS) + (kind == "responses")
    by_parent: dict[str, list[tuple[str, str, dict[str, int]]]] = {}
    for step in tool_steps(ran.spans):
        assert step.attributes["spanloop.recovered"] == "messages"
        told = (
            step.attributes["gen_ai.tool.name"],
            step.attributes["gen_ai.tool.call.result"],
            step.json("gen_ai.tool.call.arguments"),
        )
        by_parent.setdefault(step.parent_id, []).append(told)
    expected = [("add", "5", {"a": 2, "b": 3}), ("multiply", "20", {"a": 4, "b": 5})]
    assert list(by_parent.values()) == [expected] * ways
