"""Unmodified agents under `opentelemetry-instrument`, with variables only: what reaches a collector."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.helpers import agents
from tests.helpers.agents import assert_every_call_once, model_calls, tool_steps
from tests.helpers.openai_stub import Stub, openai_stub
from tests.helpers.otlp_receiver import ReceivedSpan, Receiver, otlp_receiver

AGENTS = Path(__file__).parent / "agents"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as running:
        yield running


@pytest.fixture
def stub() -> Iterator[Stub]:
    with openai_stub(tool=True, owned_by="openai") as running:
        yield running


def run_agent(
    script: str, *arguments: str, stub: Stub, receiver: Receiver, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Without LangChain's instrumentation, which alone takes longer than most of these programs, where they do not use it."""
    if "langchain" not in script:
        variables = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "langchain", **variables}
    return agents.run_agent(AGENTS / script, *arguments, stub=stub, receiver=receiver, **variables)


def arrived(receiver: Receiver, number: int) -> list[ReceivedSpan]:
    """The model calls, once `number` of them have come."""
    return model_calls(receiver.wait(lambda spans: len(model_calls(spans)) >= number))


def task_of(span: ReceivedSpan) -> str:
    first = next(m for m in span.json("gen_ai.input.messages") if m["role"] == "user")
    return str(first["parts"][0]["content"])


def of_runs(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    """Without the span in a trace of its own that the instrumentor writes where an agent is *made*."""
    return [span for span in spans if span.name != "create_agent adder"]


def test_a_tool_loop_is_captured_whole(stub: Stub, receiver: Receiver) -> None:
    everything = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ""}
    ended = run_agent("openai_tools.py", stub=stub, receiver=receiver, **everything)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "two and two is four for m\n", "")
    first, second = arrived(receiver, 2)
    assert_every_call_once(stub, [first, second])
    assert first.service == "calculator"
    assert first.attributes["gen_ai.operation.name"] == "chat"
    assert (first.attributes["gen_ai.response.id"], second.attributes["gen_ai.response.id"]) == (
        "chatcmpl-1",
        "chatcmpl-2",
    )
    assert first.attributes["gen_ai.request.temperature"] == 0.5
    (asked,) = first.json("gen_ai.output.messages")
    assert asked["parts"][0]["name"] == "add"
    assert [message["role"] for message in second.json("gen_ai.input.messages")] == [
        "user",
        "assistant",
        "tool",
    ]
    assert second.json("gen_ai.output.messages")[0]["parts"][0]["content"] == "two and two is four for m"
    assert "add" in json.dumps(first.json("gen_ai.tool.definitions"))
    assert receiver.paths == {"/v1/traces"}  # neither metrics nor empty logs


def test_threads_do_not_mix_their_calls(stub: Stub, receiver: Receiver) -> None:
    ended = run_agent("openai_tools.py", "--threads", stub=stub, receiver=receiver)
    assert ended.returncode == 0, ended.stderr
    calls = arrived(receiver, 16)
    assert_every_call_once(stub, calls)
    assert len({span.attributes["gen_ai.response.id"] for span in calls}) == len(calls) == 16
    by_task = defaultdict(list)
    for span in calls:
        by_task[task_of(span)].append(span)
    assert sorted(by_task) == [f"task {number}" for number in range(8)]
    for spans in by_task.values():
        # The id of the tool call in the second prompt is the one that the first answer gave.
        before, after = sorted(spans, key=lambda span: len(span.json("gen_ai.input.messages")))
        number = before.attributes["gen_ai.response.id"].removeprefix("chatcmpl-")
        assert f"call_{number}" in before.attributes["gen_ai.output.messages"]
        assert f"call_{number}" in after.attributes["gen_ai.input.messages"]


def test_async_streams_are_captured(stub: Stub, receiver: Receiver) -> None:
    stub.tool = False
    ended = run_agent("openai_tools.py", "--async", stub=stub, receiver=receiver)
    assert ended.returncode == 0, ended.stderr
    calls = arrived(receiver, 8)
    assert_every_call_once(stub, calls)
    assert sorted(task_of(span) for span in calls) == [f"task {number}" for number in range(8)]
    assert len({span.attributes["gen_ai.response.id"] for span in calls}) == 8
    assert all("four" in span.attributes["gen_ai.output.messages"] for span in calls)


def test_langgraph_runs_on_one_loop_are_captured_with_their_trees_and_stay_apart(
    stub: Stub, receiver: Receiver
) -> None:
    ended = run_agent("langchain_agent.py", "--gather", stub=stub, receiver=receiver)
    assert ended.returncode == 0, ended.stderr
    arrived(receiver, 16)
    spans = of_runs(receiver.spans)
    ids = {span.span_id: span for span in spans}
    assert len({span.trace_id for span in spans}) == 8
    assert sum(not span.parent_id for span in spans) == 8
    for span in spans:
        if span.parent_id:
            assert ids[span.parent_id].trace_id == span.trace_id
    calls = model_calls(spans)
    assert any("add" in span.attributes.get("gen_ai.tool.definitions", "") for span in calls)
    tasks = defaultdict(set)
    for span in calls:
        tasks[span.trace_id].add(task_of(span))
    assert sorted(task for seen in tasks.values() for task in seen) == [
        f"task {number}" for number in range(8)
    ]
    assert len({span.attributes["gen_ai.response.id"] for span in calls}) == 16
    # A framework's own spans of tools stand alone: ours are for loops that have none.
    assert len(tool_steps(spans)) == 8
    assert not any("spanloop.recovered" in span.attributes for span in spans)


def test_sigterm_loses_no_span_and_still_kills(stub: Stub, receiver: Receiver) -> None:
    ended = run_agent(
        "openai_tools.py", "--killed", stub=stub, receiver=receiver, OTEL_BSP_SCHEDULE_DELAY="3600000"
    )
    assert ended.returncode == -15
    assert "not reached" not in ended.stdout
    assert len(arrived(receiver, 2)) == 2


def test_what_the_user_says_stands(stub: Stub, receiver: Receiver) -> None:
    ended = run_agent("openai_tools.py", stub=stub, receiver=receiver, TRACELOOP_TRACE_CONTENT="false")
    assert ended.returncode == 0, ended.stderr
    receiver.wait(lambda spans: len(spans) >= 2)
    assert not any("gen_ai.input.messages" in span.attributes for span in receiver.spans)
    assert not any("task 0" in str(span.attributes) for span in receiver.spans)


def test_a_collector_that_is_not_there_does_not_break_the_agent(stub: Stub, receiver: Receiver) -> None:
    ended = run_agent(
        "openai_tools.py", stub=stub, receiver=receiver, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1"
    )
    assert (ended.returncode, ended.stdout) == (0, "two and two is four for m\n")
