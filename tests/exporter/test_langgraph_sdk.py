"""LangChain agents on LangGraph, unmodified: invoke, async, streams, conversations with a checkpointer, a supervisor of two."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.helpers.agents import Tree, assert_every_call_once, model_calls, run_agent, succeeded, tool_steps
from tests.helpers.openai_stub import Stub, openai_stub, tool_calls
from tests.helpers.otlp_receiver import ReceivedSpan, otlp_receiver

AGENT = Path(__file__).parent / "agents" / "langgraph_agents.py"
SIMPLE = ("invoke", "ainvoke", "stream", "astream")
ANSWERS = {
    "You calculate with tools.": "5 and 20",
    "You add.": "the sum is 5",
    "You multiply.": "the product is 20",
    "You supervise.": "sum 5, product 20",
}
ARGUMENTS = {
    "add": '{"a": 2, "b": 3}',
    "multiply": '{"a": 4, "b": 5}',
    "ask_adder": '{"task": "add 2 and 3"}',
    "ask_multiplier": '{"task": "multiply 4 and 5"}',
}


class Run(NamedTuple):
    """What one process left: what it printed, what the server logged, what the collector got."""

    printed: list[str]
    stub: Stub
    spans: list[ReceivedSpan]

    def of(self, mode: str) -> Tree:
        """The traces in which somebody was told the mode's name."""
        named = f'"{mode}: '
        traces = {
            span.trace_id
            for span in model_calls(self.spans)
            if named in span.attributes["gen_ai.input.messages"]
        }
        return Tree([span for span in self.spans if span.trace_id in traces])


def respond(request: dict[str, Any]) -> dict[str, Any]:
    """Every tool that is offered at once, under ids of this prompt; then the agent's own answer."""
    messages = request["messages"]
    if messages[-1]["role"] == "tool":
        return {"role": "assistant", "content": ANSWERS[messages[0]["content"]]}
    offered = [tool["function"]["name"] for tool in request["tools"]]
    return tool_calls(*((f"call_{name}_{len(messages)}", name, ARGUMENTS[name]) for name in offered))


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with otlp_receiver() as receiver, openai_stub(respond=respond) as stub:
        ended = run_agent(AGENT, *SIMPLE, "turns", "supervisor", stub=stub, receiver=receiver)
        printed = succeeded(ended).splitlines()
        spans = receiver.wait(lambda spans: len(model_calls(spans)) >= len(stub.calls))
        yield Run(printed, stub, spans)


def test_every_call_is_one_span_with_what_was_said(run: Run) -> None:
    assert run.printed == ["5 and 20"] * 5 + ["sum 5, product 20"]
    assert len(run.stub.calls) == 4 * 2 + 4 * 2 + 2 + 2 + 2
    assert_every_call_once(run.stub, model_calls(run.spans))
    Tree(run.spans).assert_whole()


@pytest.mark.parametrize("mode", SIMPLE)
def test_a_run_is_one_tree_under_its_agent(run: Run, mode: str) -> None:
    tree = run.of(mode)
    assert len({span.trace_id for span in tree.spans}) == 1
    assert [root.attributes["gen_ai.agent.name"] for root in tree.roots()] == ["calculator"]
    calls = model_calls(tree.spans)
    assert len(calls) == 2
    assert {tree.agent(call) for call in calls} == {"calculator"}
    for call in calls:
        assert {tool["name"] for tool in call.json("gen_ai.tool.definitions")} == {"add", "multiply"}


@pytest.mark.parametrize("mode", SIMPLE)
def test_parallel_tools_are_two_steps_with_arguments_and_result(run: Run, mode: str) -> None:
    tree = run.of(mode)
    steps = {step.attributes["gen_ai.tool.name"]: step for step in tool_steps(tree.spans)}
    assert set(steps) == {"add", "multiply"}
    assert len(tool_steps(tree.spans)) == 2
    assert "'a': 2, 'b': 3" in json.loads(steps["add"].attributes["gen_ai.tool.call.arguments"])["input_str"]
    assert '"content": "5.0"' in steps["add"].attributes["gen_ai.tool.call.result"]
    assert '"content": "20.0"' in steps["multiply"].attributes["gen_ai.tool.call.result"]
    assert {tree.agent(step) for step in steps.values()} == {"calculator"}


def test_conversations_are_told_apart_by_their_thread(run: Run) -> None:
    tree = run.of("turns")
    threads = defaultdict(list)
    for root in tree.roots():
        threads[root.attributes["gen_ai.conversation.id"]].append(root.trace_id)
    assert {thread: len(traces) for thread, traces in threads.items()} == {"red": 2, "blue": 2}
    for thread, traces in threads.items():
        calls = [call for call in model_calls(tree.spans) if call.trace_id in traces]
        prompts = sorted((call.json("gen_ai.input.messages") for call in calls), key=len)
        assert len(prompts) == 4
        said = [
            part["content"]
            for message in prompts[-1]
            for part in message["parts"]
            if message["role"] == "user"
        ]
        assert said == [f"turns: first of {thread}", f"turns: second of {thread}"]


def test_a_supervisors_agents_keep_their_names_and_places(run: Run) -> None:
    tree = run.of("supervisor")
    (root,) = tree.roots()
    assert root.attributes["gen_ai.agent.name"] == "supervisor"
    by_agent = defaultdict(list)
    for call in model_calls(tree.spans):
        by_agent[tree.agent(call)].append(call)
    assert {agent: len(calls) for agent, calls in by_agent.items()} == {
        "supervisor": 2,
        "adder": 2,
        "multiplier": 2,
    }
    for agent, tool in (("adder", "ask_adder"), ("multiplier", "ask_multiplier")):
        for call in by_agent[agent]:
            above = [span.attributes.get("gen_ai.tool.name") for span in tree.ancestors(call)]
            assert tool in above
    steps = sorted(step.attributes["gen_ai.tool.name"] for step in tool_steps(tree.spans))
    assert steps == ["add", "ask_adder", "ask_multiplier", "multiply"]
