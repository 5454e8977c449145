"""Run an unmodified program under `opentelemetry-instrument`, and hold its spans against the model server's own log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from tests.helpers.openai_stub import Call, Stub
from tests.helpers.otlp_receiver import ReceivedSpan, Receiver

LAUNCHER = Path(sys.executable).parent / "opentelemetry-instrument"
# What the surroundings of a test run may hold and an agent of a test must not see.
_FOREIGN = ("OTEL_", "TRACELOOP_", "OPENAI_", "SPANLOOP_", "TRACEPARENT", "TRACESTATE")


def agent_environment(stub: Stub, receiver: Receiver, **variables: str) -> dict[str, str]:
    """The variables of an agent: its name, where the collector and the model server are, and `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return kept | {
        "OTEL_SERVICE_NAME": "calculator",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OPENAI_BASE_URL": stub.url,
        "OPENAI_API_KEY": "x",
        "LANGSMITH_TRACING": "false",
        **variables,
    }


def run_agent(
    script: Path, *arguments: str, stub: Stub, receiver: Receiver, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end, with a spool of its own unless `variables` name one."""
    command = [str(LAUNCHER), sys.executable, str(script), *arguments]
    with tempfile.TemporaryDirectory() as spool:
        environment = agent_environment(stub, receiver, **{"SPANLOOP_SPOOL": spool, **variables})
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment, check=False
        )


def succeeded(ended: subprocess.CompletedProcess[str]) -> str:
    """What the program printed; fails with its errors if it did not end well, or if telemetry complained."""
    assert ended.returncode == 0, ended.stderr
    assert "opentelemetry" not in ended.stderr.lower(), ended.stderr
    return ended.stdout.strip()


# One message as both sides are compared: role, text, tool calls (id, name, arguments), id of the answered call.
Message: TypeAlias = tuple[str, str, tuple[tuple[str, str, str], ...], str]
# What was sent, and one message for each choice of the answer.
Exchange: TypeAlias = tuple[tuple[Message, ...], tuple[Message, ...]]


def of_server(call: Call) -> Exchange:
    """A call as the server saw it."""
    sent = tuple(_chat_message(message) for message in call.request["messages"])
    return sent, tuple(_chat_message(message) for message in call.answers)


def _chat_message(message: dict[str, Any]) -> Message:
    calls = tuple(
        (call["id"], call["function"]["name"], _arguments(call["function"]["arguments"]))
        for call in message.get("tool_calls") or []
    )
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return message["role"], text, calls, message.get("tool_call_id") or ""


def of_span(span: ReceivedSpan) -> Exchange:
    """A call as a span of the current `gen_ai.*` conventions tells it."""
    instructions = span.attributes.get("gen_ai.system_instructions")
    before: tuple[Message, ...] = ()
    if instructions:
        before = (("system", "".join(part["content"] for part in json.loads(instructions)), (), ""),)
    sent = tuple(_parts(message) for message in span.json("gen_ai.input.messages"))
    return before + sent, tuple(_parts(message) for message in span.json("gen_ai.output.messages"))


def _parts(message: dict[str, Any]) -> Message:
    text, calls, answered = "", [], ""
    for part in message["parts"]:
        match part["type"]:
            case "text":
                text += part["content"]
            case "tool_call":
                calls.append((part["id"], part["name"], _arguments(part["arguments"])))
            case "tool_call_response":
                answered = part["id"]
                text += (
                    part["response"] if isinstance(part["response"], str) else json.dumps(part["response"])
                )
            case other:
                raise AssertionError(f"a part of type {other}: {part}")
    return message["role"], text, tuple(calls), answered


def _arguments(arguments: Any) -> str:
    # Instrumentors parse the model's text; both sides are compared as values.
    value = json.loads(arguments) if isinstance(arguments, str) else arguments
    return json.dumps(value, sort_keys=True)


def model_calls(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    """Spans that hold both sides of a call to a model."""
    return [
        span
        for span in spans
        if "gen_ai.input.messages" in span.attributes
        and "gen_ai.output.messages" in span.attributes
        and span.attributes.get("gen_ai.operation.name") in {"chat", "generate_content", "text_completion"}
    ]


def without_ids(exchange: Exchange) -> Exchange:
    """The same with tool calls told by their order alone, and those of one answer in one message.

    For the Responses API, whose answers are single: its instrumentors write an output item's id where the result names the
    call's, and each of the calls of one answer as a message of its own.
    """
    return _joined(exchange[0]), _joined(exchange[1])


def _joined(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    joined: list[Message] = []
    for role, text, calls, _ in messages:
        bare = tuple(("", name, arguments) for _, name, arguments in calls)
        if bare and not text and joined and joined[-1][2]:
            joined[-1] = (role, joined[-1][1], joined[-1][2] + bare, "")
        else:
            joined.append((role, text, bare, ""))
    return tuple(joined)


def assert_every_call_once(
    stub: Stub, calls: list[ReceivedSpan], seen_as: Callable[[Exchange], Exchange] = lambda exchange: exchange
) -> None:
    """Each call that the server answered is one span with what was sent and what came back, and there is no other.

    Both sides are compared after `seen_as`, which leaves out what an instrumentor is known to change.
    """
    at_server = Counter(seen_as(of_server(call)) for call in stub.calls)
    in_spans = Counter(seen_as(of_span(span)) for span in calls)
    assert in_spans == at_server, (
        f"missing: {at_server - in_spans}\nnot at the server: {in_spans - at_server}"
    )
    named = [
        span.attributes["gen_ai.response.id"] for span in calls if "gen_ai.response.id" in span.attributes
    ]
    assert len(named) == len(set(named))
    assert set(named) <= {call.response_id for call in stub.calls}


class Tree:
    """Spans by id, with their parents."""

    def __init__(self, spans: list[ReceivedSpan]) -> None:
        self.spans = spans
        self.by_id = {span.span_id: span for span in spans}
        assert len(self.by_id) == len(spans), "a span came twice"

    def assert_whole(self) -> None:
        """Every parent is there, in the trace of its child."""
        for span in self.spans:
            if span.parent_id:
                parent = self.by_id.get(span.parent_id)
                assert parent is not None, f"{span.name} has no parent"
                assert parent.trace_id == span.trace_id, f"{span.name} is in another trace than its parent"

    def roots(self) -> list[ReceivedSpan]:
        return [span for span in self.spans if not span.parent_id]

    def ancestors(self, span: ReceivedSpan) -> list[ReceivedSpan]:
        """From the parent up to the root."""
        found = []
        while span.parent_id:
            span = self.by_id[span.parent_id]
            found.append(span)
        return found

    def agent(self, span: ReceivedSpan) -> str:
        """Who acted, as the trainer finds it: the name on the span itself, else the nearest agent above; empty: none."""
        # LangChain's instrumentor puts the spans of an agent beside the agent's own and notes its name here.
        own = span.attributes.get("traceloop.association.properties.lc_agent_name", "")
        named = [candidate.attributes.get("gen_ai.agent.name", "") for candidate in self.ancestors(span)]
        return next((name for name in [span.attributes.get("gen_ai.agent.name"), own, *named] if name), "")


def tool_steps(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    return [span for span in spans if span.attributes.get("gen_ai.operation.name") == "execute_tool"]
