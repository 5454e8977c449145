"""The OpenAI Agents SDK, unmodified: handoff and agents as tools, over Responses and chat completions, whole and streamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.helpers.agents import (
    Tree,
    assert_every_call_once,
    model_calls,
    of_span,
    run_agent,
    succeeded,
    tool_steps,
    without_ids,
)
from tests.helpers.openai_stub import Stub, openai_stub, tool_calls
from tests.helpers.otlp_receiver import ReceivedSpan, otlp_receiver

AGENT = Path(__file__).parent / "agents" / "agents_sdk.py"
HANDOFFS = ("responses-handoff-whole", "responses-handoff-stream", "chat_completions-handoff-whole")
AS_TOOLS = (
    "responses-tools-whole",
    "responses-tools-stream",
    "chat_completions-tools-whole",
    "chat_completions-tools-stream",
)
ANSWERS = {
    "You add.": "the sum is 5",
    "You multiply.": "the product is 20",
    "You supervise.": "sum 5, product 20",
}
ARGUMENTS = {
    "add": '{"a": 2, "b": 3}',
    "multiply": '{"a": 4, "b": 5}',
    "ask_adder": '{"input": "add 2 and 3"}',
    "ask_multiplier": '{"input": "multiply 4 and 5"}',
    "transfer_to_adder": "{}",
}


class Run(NamedTuple):
    """What one process left: what it printed, what the server logged, what the collector got."""

    printed: list[str]
    stub: Stub
    spans: list[ReceivedSpan]

    def of(self, mode: str) -> Tree:
        """The trace in which somebody was told the mode's name."""
        traces = {
            span.trace_id
            for span in model_calls(self.spans)
            if f'"{mode}: go"' in span.attributes["gen_ai.input.messages"]
        }
        assert len(traces) == 1
        return Tree([span for span in self.spans if span.trace_id in traces])


def respond(request: dict[str, Any]) -> dict[str, Any]:
    """Triage hands over to the adder; everyone else uses each tool once, all at once, and answers."""
    messages = request["messages"]
    used = {call["function"]["name"] for message in messages for call in message.get("tool_calls") or []}
    offered = [tool["function"]["name"] for tool in request["tools"]]
    if "transfer_to_adder" in offered:
        offered = ["transfer_to_adder"]
    if used & set(offered):
        return {"role": "assistant", "content": ANSWERS[messages[0]["content"]]}
    return tool_calls(*((f"call_{name}", name, ARGUMENTS[name]) for name in offered))


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with otlp_receiver() as receiver, openai_stub(respond=respond, responses=True) as stub:
        ended = run_agent(AGENT, *HANDOFFS, *AS_TOOLS, stub=stub, receiver=receiver, OPENAI_API_KEY="")
        printed = succeeded(ended).splitlines()
        spans = receiver.wait(lambda spans: len(once(spans)) >= len(stub.calls))
        yield Run(printed, stub, spans)


def once(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    """Model calls without their twins: two instrumentors may report one call, the SDK's above the client's."""
    by_id = {span.span_id: span for span in spans}

    def has_twin_above(span: ReceivedSpan) -> bool:
        above = by_id.get(span.parent_id)
        return above is not None and above.attributes.get("gen_ai.response.id") == span.attributes.get(
            "gen_ai.response.id", "none"
        )

    return [span for span in model_calls(spans) if not has_twin_above(span)]


def test_every_call_is_one_span_with_what_was_said(run: Run) -> None:
    assert run.printed == ["the sum is 5"] * len(HANDOFFS) + ["sum 5, product 20"] * len(AS_TOOLS)
    assert len(run.stub.calls) == 3 * len(HANDOFFS) + 6 * len(AS_TOOLS)
    assert_every_call_once(run.stub, once(run.spans), without_ids)
    Tree(run.spans).assert_whole()


def test_twins_say_the_same(run: Run) -> None:
    said: dict[str, set[Any]] = {}
    for span in model_calls(run.spans):
        said.setdefault(span.attributes["gen_ai.response.id"], set()).add(without_ids(of_span(span)))
    assert {len(versions) for versions in said.values()} == {1}


@pytest.mark.parametrize("mode", HANDOFFS)
def test_a_handoff_changes_the_agent(run: Run, mode: str) -> None:
    tree = run.of(mode)
    assert len(tree.roots()) == 1
    assert Counter(tree.agent(call) for call in once(tree.spans)) == {"Triage": 1, "Adder": 2}
    steps = tool_steps(tree.spans)
    assert [(tree.agent(step), step.attributes["gen_ai.tool.name"]) for step in steps] == [("Adder", "add")]
    assert steps[0].json("gen_ai.tool.call.arguments") == {"a": 2, "b": 3}
    assert steps[0].attributes["gen_ai.tool.call.result"] == "5.0"
    (handoff,) = [span for span in tree.spans if span.attributes.get("gen_ai.operation.name") == "handoff"]
    assert tree.agent(handoff) == "Triage"


@pytest.mark.parametrize("mode", AS_TOOLS)
def test_agents_as_tools_keep_their_names(run: Run, mode: str) -> None:
    tree = run.of(mode)
    assert len(tree.roots()) == 1
    assert Counter(tree.agent(call) for call in once(tree.spans)) == {
        "Boss": 2,
        "Adder": 2,
        "Multiplier": 2,
    }
    steps = Counter(
        (tree.agent(step), step.attributes["gen_ai.tool.name"]) for step in tool_steps(tree.spans)
    )
    assert steps == {
        ("Boss", "ask_adder"): 1,
        ("Boss", "ask_multiplier"): 1,
        ("Adder", "add"): 1,
        ("Multiplier", "multiply"): 1,
    }
