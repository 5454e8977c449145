"""Tool steps of plain loops become spans, once each, and never beside a span that somebody else emitted."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from tests.helpers.agents import run_agent, succeeded
from tests.helpers.openai_stub import openai_stub, tool_calls
from tests.helpers.otlp_receiver import ReceivedSpan, otlp_receiver

from spanloop_exporter.calls.record import Call, ToolCall
from spanloop_exporter.calls.tools import ToolSteps

AGENTS = Path(__file__).parent / "agents"
LOOPS = (
    "objects", "replayed", "threads", "attempts", "decorated", "renamed", "nested", "resumed", "retried", "mixed", "polled", "crowd",
    "hiccup",
)  # fmt: skip


def respond(request: dict[str, Any]) -> dict[str, Any]:
    messages = request["messages"]
    waits = messages[0]["content"] == "polled" and messages[-1]["content"] != "ready"
    if waits or (messages[-1]["role"] == "user" and request.get("tools") and len(messages) < 3):
        # One id for all conversations, as servers do that count anew in every answer.
        names = [tool["function"]["name"] for tool in request["tools"]]
        return tool_calls(*((f"call_{index}", name, '{"a": 2,  "b": 3}') for index, name in enumerate(names)))
    return {"role": "assistant", "content": "done"}


def run(*loops: str, **variables: str) -> list[ReceivedSpan]:
    server = openai_stub(respond=respond, responses=True, refuses=("forbidden",))
    # Which alone takes longer than these programs.
    variables["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = "langchain"
    with otlp_receiver() as receiver, server as stub:
        succeeded(run_agent(AGENTS / "tool_loops.py", *loops, stub=stub, receiver=receiver, **variables))
        return receiver.spans


def recovered(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    return [span for span in spans if span.attributes.get("spanloop.recovered") == "messages"]


def asking(spans: list[ReceivedSpan], step: ReceivedSpan) -> ReceivedSpan:
    (parent,) = [span for span in spans if span.span_id == step.parent_id]
    return parent


@pytest.fixture(scope="module")
def loops() -> list[ReceivedSpan]:
    return run(*LOOPS)


def of(spans: list[ReceivedSpan], loop: str) -> list[ReceivedSpan]:
    """The steps that were recovered below the calls of one loop."""
    return [
        step
        for step in recovered(spans)
        if f'"{loop}' in asking(spans, step).attributes["gen_ai.input.messages"]
    ]


def test_a_step_hangs_below_the_call_that_asked_for_it(loops: list[ReceivedSpan]) -> None:
    (step,) = of(loops, "objects")
    parent = asking(loops, step)
    assert step.name == "execute_tool add"
    assert step.kind == 1  # INTERNAL
    assert step.trace_id == parent.trace_id
    assert parent.json("spanloop.response.tool_calls")[0][0]["id"] == "call_0"
    assert {
        key: value for key, value in step.attributes.items() if key.startswith(("gen_ai", "spanloop"))
    } == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "add",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "call_0",
        "gen_ai.tool.call.arguments": '{"a": 2,  "b": 3}',
        "gen_ai.tool.call.result": "5",
        "spanloop.recovered": "messages",
    }


def test_a_step_lasts_from_the_answer_to_the_call_that_brings_its_result(loops: list[ReceivedSpan]) -> None:
    (step,) = of(loops, "objects")
    parent = asking(loops, step)
    (next_call,) = [
        span
        for span in loops
        if '"objects"' in span.attributes.get("gen_ai.input.messages", "") and span is not parent
    ]
    assert step.start == parent.end
    assert step.start <= step.end
    assert next_call.start <= step.end <= next_call.end


@pytest.mark.parametrize(
    ("loop", "steps"),
    [("replayed", 1), ("threads", 4), ("attempts", 4), ("decorated", 0), ("renamed", 0), ("nested", 1), ("resumed", 1), ("retried", 1), ("mixed", 1), ("polled", 3), ("crowd", 20), ("hiccup", 2)],
)  # fmt: skip
def test_every_step_is_there_once(loops: list[ReceivedSpan], loop: str, steps: int) -> None:
    assert len(of(loops, loop)) == steps


def test_the_same_id_in_several_conversations_is_several_steps(loops: list[ReceivedSpan]) -> None:
    for loop in ("threads", "attempts"):
        assert len({step.parent_id for step in of(loops, loop)}) == 4
    tasks = {
        asking(loops, step).json("gen_ai.input.messages")[0]["parts"][0]["content"]
        for step in of(loops, "threads")
    }
    assert tasks == {f"threads {number}" for number in range(4)}


@pytest.mark.parametrize("loop", ["attempts", "hiccup"])
def test_attempts_side_by_side_keep_their_own_results(loops: list[ReceivedSpan], loop: str) -> None:
    for step in of(loops, loop):
        assert step.attributes["gen_ai.tool.call.result"] == str(
            asking(loops, step).attributes["gen_ai.request.seed"]
        )


def test_a_tool_beside_one_with_a_span_of_its_own_is_recovered(loops: list[ReceivedSpan]) -> None:
    (step,) = of(loops, "mixed")
    assert step.attributes["gen_ai.tool.name"] == "add"


def test_each_round_of_one_conversation_has_its_own_result(loops: list[ReceivedSpan]) -> None:
    steps = sorted(of(loops, "polled"), key=lambda step: step.start)
    assert [step.attributes["gen_ai.tool.call.result"] for step in steps] == ["wait", "wait", "ready"]
    prompts = [len(asking(loops, step).json("gen_ai.input.messages")) for step in steps]
    assert prompts == [1, 3, 5]


def test_many_conversations_side_by_side_keep_their_own_results(loops: list[ReceivedSpan]) -> None:
    for step in of(loops, "crowd"):
        (message,) = asking(loops, step).json("gen_ai.input.messages")
        assert message["parts"][0]["content"] == f"crowd {step.attributes['gen_ai.tool.call.result']}"


def test_a_step_of_another_processs_conversation_has_what_the_history_says(loops: list[ReceivedSpan]) -> None:
    (step,) = of(loops, "resumed")
    assert step.attributes["gen_ai.tool.call.id"] == "far_2"
    assert step.attributes["gen_ai.tool.call.arguments"] == '{"a": 2, "b": 0}'
    assert step.attributes["gen_ai.tool.call.result"] == "2"


class Content:
    """A prompt that ends a tool's span while it is looked at, as the garbage collector may at any moment."""

    def __init__(self, steps: ToolSteps) -> None:
        self.steps = steps

    def __repr__(self) -> str:
        span = TracerProvider().get_tracer("t").start_span("execute_tool other")
        span.set_attribute("gen_ai.operation.name", "execute_tool")
        assert isinstance(span, ReadableSpan)
        self.steps.ended(span, 1)
        return "content"


def test_a_tool_span_may_end_at_any_moment() -> None:
    steps = ToolSteps()
    messages: list[dict[str, Any]] = [{"role": "user", "content": Content(steps)}]
    for _ in range(2):
        call = Call(new_tools=[ToolCall("call_0", "add", ["{}"])])
        steps.results({"messages": messages}, call)
        steps.asked(call)
    body = {"messages": [*messages, {"role": "tool", "tool_call_id": "call_0", "content": "1"}]}
    thread = threading.Thread(target=steps.results, args=(body, Call()), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for a lock that it holds itself"


def test_without_content_a_step_says_only_that_it_was() -> None:
    spans = run("objects", TRACELOOP_TRACE_CONTENT="false")
    (step,) = recovered(spans)
    assert step.attributes["gen_ai.tool.name"] == "add"
    assert "gen_ai.tool.call.arguments" not in step.attributes
    assert "gen_ai.tool.call.result" not in step.attributes
