"""The optional API: what it records under an SDK, that it does nothing without one, and that mistakes are told at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.agents import run_agent
from tests.helpers.openai_stub import openai_stub
from tests.helpers.otlp_receiver import ReceivedSpan, otlp_receiver

import spanloop

AGENTS = Path(__file__).parent / "agents"
USER: list[dict[str, Any]] = [{"role": "user", "content": "2 + 3?"}]


@pytest.fixture(scope="module")
def spans() -> list[ReceivedSpan]:
    with otlp_receiver() as receiver, openai_stub() as stub:
        parts = ("manual", "asynchronous", "untraced-tool", "rewards", "failing", "odd", "left", "fresh")
        variables = {
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "langchain",
            "SPANLOOP_SESSION_ID": "of the process",
        }
        ended = run_agent(AGENTS / "api_agent.py", *parts, stub=stub, receiver=receiver, **variables)
        assert (ended.returncode, ended.stdout) == (0, "the model is away\n"), ended.stderr
        assert "Failed to detach" not in ended.stderr
        return receiver.spans


def in_session(spans: list[ReceivedSpan], session: str) -> list[ReceivedSpan]:
    return [span for span in spans if span.attributes.get("session.id") == session]


def judgements(spans: list[ReceivedSpan]) -> dict[str, tuple[ReceivedSpan, dict[str, Any]]]:
    found = [
        (span, event) for span in spans for name, event in span.events if name == "gen_ai.evaluation.result"
    ]
    return {event["gen_ai.evaluation.name"]: (span, event) for span, event in found}


def test_a_model_call_is_recorded_as_by_an_instrumentor(spans: list[ReceivedSpan]) -> None:
    first, second = [span for span in in_session(spans, "s-manual") if span.name == "chat own"]
    assert first.kind == 3  # CLIENT
    assert first.attributes["gen_ai.operation.name"] == "chat"
    assert first.attributes["gen_ai.request.seed"] == 7
    assert first.attributes["gen_ai.request.temperature"] == 0.0
    assert first.attributes["gen_ai.usage.output_tokens"] == 4
    assert first.json("gen_ai.input.messages") == [
        {"role": "system", "parts": [{"type": "text", "content": "Add."}]},
        {"role": "user", "parts": [{"type": "text", "content": "2 + 3?"}]},
    ]
    assert first.json("gen_ai.output.messages") == [
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "c1", "name": "add", "arguments": {"a": 2}}],
            "finish_reason": "tool_calls",
        }
    ]
    assert first.json("spanloop.response.tool_calls") == [
        [{"id": "c1", "name": "add", "arguments": '{"a":  2}'}]
    ]
    assert first.json("gen_ai.tool.definitions") == [{"name": "add"}]
    assert second.json("gen_ai.input.messages")[-1]["parts"] == [
        {"type": "tool_call_response", "id": "c1", "response": "5"}
    ]
    assert second.json("spanloop.prompt_token_ids") == [1, 2]
    assert second.json("spanloop.completion_token_ids") == [[3]]
    assert second.json("spanloop.completion_logprobs") == [[-0.5]]


def test_a_session_is_on_every_span_in_it_and_on_no_other(spans: list[ReceivedSpan]) -> None:
    inside = in_session(spans, "s-manual")
    assert sorted(span.name for span in inside) == [
        "chat own",
        "chat own",
        "evaluate quality",
        "execute_tool add",
    ]
    for span in inside:
        assert span.attributes["spanloop.task.id"] == "t-manual"
        assert span.attributes["spanloop.run.id"] == "r1"
        assert span.attributes["tier"] == "gold"
    (outside,) = [span for span in spans if '"outside"' in span.attributes.get("gen_ai.input.messages", "")]
    assert outside.attributes.get("session.id") != "s-manual"
    assert "spanloop.task.id" not in outside.attributes


def test_sessions_of_concurrent_tasks_do_not_mix(spans: list[ReceivedSpan]) -> None:
    attempts = [span for span in spans if span.attributes.get("spanloop.task.id") == "t-async"]
    assert len({span.attributes["session.id"] for span in attempts}) == 3
    said = {
        (span.attributes["spanloop.rollout.id"], span.attributes["number"], span.json("gen_ai.output.messages")[0]["parts"][0]["content"])
        for span in attempts
    }  # fmt: skip
    assert said == {(f"attempt-{number}", number, f"answer {number}") for number in range(3)}


def test_a_tool_call_is_a_step_once(spans: list[ReceivedSpan]) -> None:
    (step,) = [span for span in in_session(spans, "s-manual") if span.name == "execute_tool add"]
    assert "spanloop.recovered" not in step.attributes
    assert step.json("gen_ai.tool.call.arguments") == {"a": 2}
    assert step.json("gen_ai.tool.call.result") == {"sum": 5}
    (recovered,) = [span for span in spans if span.attributes.get("spanloop.recovered")]
    (asking,) = [span for span in spans if span.span_id == recovered.parent_id]
    assert asking.json("gen_ai.input.messages")[0]["parts"][0]["content"] == "untraced"
    assert recovered.attributes["gen_ai.tool.call.result"] == "5"


def test_a_reward_says_what_it_judges(spans: list[ReceivedSpan]) -> None:
    found = judgements(spans)
    assert {name: event["gen_ai.evaluation.score.value"] for name, (_, event) in found.items()} == {
        "quality": 0.5, "current": 1.0, "last": 1.0, "by id": 0.25, "ended": -1.0, "unknown id": 0.75, "fresh": 1.0,
    }  # fmt: skip
    span, event = found["quality"]
    assert event["gen_ai.evaluation.score.label"] == "fair"
    assert event["gen_ai.evaluation.explanation"] == "short"
    assert event["gen_ai.response.id"] == "manual-2"
    assert event["session.id"] == "s-manual"
    (judged,) = [other for other in spans if other.span_id == span.parent_id]
    assert judged.attributes["gen_ai.response.id"] == "manual-2"


def test_a_reward_finds_its_span(spans: list[ReceivedSpan]) -> None:
    found = judgements(spans)
    (run,) = [span for span in spans if span.name == "run"]
    (first,) = [span for span in spans if '"first"' in span.attributes.get("gen_ai.input.messages", "")]
    assert found["current"][0] is run
    for name in ("last", "by id"):
        span, event = found[name]
        assert span.name == f"evaluate {name}"
        assert (span.trace_id, span.parent_id) == (first.trace_id, first.span_id)
        assert event["gen_ai.response.id"] == first.attributes["gen_ai.response.id"]
    assert found["ended"][0].parent_id == run.span_id
    # Nobody here knows that id: the collector's reader joins it.
    assert found["unknown id"][1]["gen_ai.response.id"] == "nobody's"
    assert found["unknown id"][0].parent_id == ""


def test_a_reward_in_a_session_judges_no_call_of_before(spans: list[ReceivedSpan]) -> None:
    span, event = judgements(spans)["fresh"]
    assert event["session.id"] == "s-fresh"
    assert "gen_ai.response.id" not in event
    assert span.parent_id == ""


def test_what_cannot_be_recorded_costs_no_span(spans: list[ReceivedSpan]) -> None:
    failed, answered, tool = [span for span in spans if span.name in ("chat odd", "execute_tool add")][-3:]
    assert failed.attributes["error.type"] == "Unspeakable"
    assert "gen_ai.input.messages" not in failed.attributes
    assert answered.json("gen_ai.output.messages")[0]["parts"][0]["arguments"] == '{"a": NaN}'
    assert answered.json("spanloop.completion_token_ids") == [[3, 4]]
    assert tool.json("gen_ai.tool.call.arguments") == {"a": "nan", "b": ["-inf"]}
    assert "gen_ai.tool.call.result" not in tool.attributes


def test_a_stream_that_is_left_is_no_error(spans: list[ReceivedSpan]) -> None:
    (span,) = in_session(spans, "s-left")
    assert (span.name, span.status) == ("chat left", 0)
    assert "gen_ai.output.messages" not in span.attributes


def test_a_block_that_fails_is_a_failed_call(spans: list[ReceivedSpan]) -> None:
    (span,) = [span for span in spans if span.status == 2 and span.name == "chat own"]
    assert span.attributes["error.type"] == "ConnectionError"


def test_without_an_sdk_nothing_happens() -> None:
    with spanloop.session(task="t") as session:
        assert session.id
        with spanloop.model_call("m", USER) as call:
            call.answer("5", response_id="r")
        with spanloop.tool_call("add", {"a": 1}) as tool:
            tool.result(object())
        spanloop.annotate(a=1)
        spanloop.reward(1.0, span=call)
        spanloop.reward(1.0, response_id="r")
    with pytest.raises(LookupError, match="mine"), spanloop.model_call("m", USER):
        raise LookupError("mine")


@pytest.mark.parametrize(
    ("mistake", "error", "says"),
    [
        (lambda: spanloop.reward("1"), TypeError, "a reward is a number, not a str"),  # type: ignore[arg-type]
        (lambda: spanloop.reward(float("nan")), ValueError, "nan cannot be learnt from"),
        (lambda: spanloop.reward(float("inf")), ValueError, "inf cannot"),
        (lambda: spanloop.reward(10**400), ValueError, "inf cannot"),
        (lambda: spanloop.reward(1, name=None), TypeError, "name is a text"),  # type: ignore[arg-type]
        (lambda: spanloop.reward(1, span="s"), TypeError, "span is an OpenTelemetry span"),  # type: ignore[arg-type]
        (lambda: spanloop.annotate(a={}), TypeError, "a is a text"),
        (lambda: spanloop.session(7), TypeError, "session.id is a text"),  # type: ignore[arg-type]
        (lambda: spanloop.session(task=""), ValueError, "spanloop.task.id is empty"),
        (lambda: spanloop.model_call("m", "hello"), TypeError, "messages is a list of messages"),  # type: ignore[arg-type]
        (lambda: spanloop.model_call("m", [{"content": "x"}]), ValueError, "without a role"),
        (lambda: spanloop.model_call("m", [{"role": "assistant", "tool_calls": ["add"]}]), TypeError, "a tool call that is a str"),
        (lambda: spanloop.model_call("m", USER, temprature=1), TypeError, "knows no temprature"),
        (lambda: spanloop.model_call("m", USER).answer(), ValueError, "needs what the model said"),
        (lambda: spanloop.tool_call(7), TypeError, "name is a text"),  # type: ignore[arg-type]
        (lambda: spanloop.nothing, AttributeError, "offers annotate"),
    ],
    ids=["text", "nan", "infinite", "huge", "name", "span", "mapping", "id", "empty", "messages", "role", "call", "typo", "answer", "tool", "attribute"],
)  # fmt: skip
def test_a_mistake_is_told_at_once(mistake: Callable[[], object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        mistake()


def test_importing_spanloop_loads_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules); import spanloop; print(sorted(set(sys.modules) - before))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(ended.stdout.replace("'", '"')))
    assert {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} == {"spanloop"}
