"""Model calls of real SDKs under `opentelemetry-instrument`: which facts are on which span, and that the agent notices nothing."""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from tests.helpers.agents import run_agent
from tests.helpers.openai_stub import WORDS, Stub, openai_stub, tool_call
from tests.helpers.otlp_receiver import ReceivedSpan, otlp_receiver

from spanloop_exporter.calls import client as client_module
from spanloop_exporter.calls.asking import refused_by

AGENTS = Path(__file__).parent / "agents"
ANSWER = "".join(WORDS) + " for m"
IDS = [100, 101, 102, 103, 104, 2]
LOGPROBS = [-0.5, -1.5, -2.5, -3.5, -4.5, -5.5]
# In this order, since the server counts; how many calls each way makes.
WAYS = {
    "raw": 1, "parse": 1, "helper": 1, "two": 1, "stream-object": 1, "closed": 1, "dropped": 1, "raised": 1,
    "dropped-async": 1, "threads": 4, "gathered": 3, "azure": 1, "failing": 1, "responses": 1, "responses-dropped": 1, "responses-left": 1,
}  # fmt: skip
WHOLE = ["raw", "parse", "helper", "stream-object", "azure"]
PARTS = ["closed", "dropped", "raised", "dropped-async"]


def respond(request: dict[str, Any]) -> dict[str, Any]:
    if request["messages"][-1]["content"] == "tools?":
        return tool_call("add", '{"a": 2,  "b": 2}')
    return {"role": "assistant", "content": '{"number": 4}' if "response_format" in request else ANSWER}


class Run(NamedTuple):
    printed: str
    stub: Stub
    spans: list[ReceivedSpan]

    def of(self, way: str) -> list[ReceivedSpan]:
        """The spans of a way's calls, by the ids that the server gave them."""
        ways = list(WAYS)
        first = 1 + sum(WAYS[earlier] for earlier in ways[: ways.index(way)])
        ids = {
            f"{kind}{number}" for number in range(first, first + WAYS[way]) for kind in ("chatcmpl-", "resp_")
        }
        return [span for span in self.spans if span.attributes.get("gen_ai.response.id") in ids]


def run(
    script: str,
    *ways: str,
    refuses: tuple[str, ...] = ("forbidden",),
    reason: str = "Unknown parameter: '{}'.",
    **variables: str,
) -> Iterator[Run]:
    server = openai_stub(
        respond=respond,
        responses=True,
        refuses=refuses,
        reason=reason,
        model_version="m@4",
        fingerprint="fp_1",
    )
    if "langchain" not in script:  # whose instrumentation alone takes longer than these programs
        variables.setdefault("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "langchain")
    with otlp_receiver() as receiver, server as stub:
        ended = run_agent(AGENTS / script, *ways, stub=stub, receiver=receiver, **variables)
        assert ended.returncode == 0, ended.stderr
        yield Run(ended.stdout, stub, receiver.spans)


@pytest.fixture(scope="module")
def asking() -> Iterator[Run]:
    yield from run("openai_capture.py", *WAYS, SPANLOOP_CAPTURE_TOKENS="true")


@pytest.fixture(scope="module")
def alone() -> Iterator[Run]:
    """The same without anything of ours in the way."""
    yield from run("openai_capture.py", *WAYS, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="spanloop,langchain")


def test_the_agent_sees_what_it_would_have_seen(asking: Run, alone: Run) -> None:
    assert asking.printed == alone.printed
    assert f"raw ('application/json; charset=utf-8', '{ANSWER}')" in asking.printed
    assert len(asking.stub.requests) == len(alone.stub.requests) == sum(WAYS.values())
    assert not any("spanloop.prompt_token_ids" in span.attributes for span in alone.spans)


@pytest.mark.parametrize("way", WHOLE)
def test_a_call_has_its_tokens_and_parameters(asking: Run, way: str) -> None:
    (span,) = asking.of(way)
    assert span.json("spanloop.prompt_token_ids") == [11, 12, 13]
    assert span.json("spanloop.completion_token_ids") == [IDS]
    assert span.json("spanloop.completion_logprobs") == [LOGPROBS]
    assert span.attributes["gen_ai.request.seed"] == 7
    assert span.attributes["gen_ai.request.stop_sequences"] == ["END"]
    assert span.attributes["spanloop.request.tool_choice"] == '"none"'
    assert span.attributes["spanloop.model.version"] == "m@4"
    assert span.attributes["openai.response.system_fingerprint"] == "fp_1"
    assert "gen_ai.input.messages" in span.attributes  # it is the instrumentor's own span


@pytest.mark.parametrize("way", PARTS)
def test_a_stream_that_is_left_has_what_was_read_of_it(asking: Run, way: str) -> None:
    (span,) = asking.of(way)
    assert span.json("spanloop.completion_token_ids") == [IDS[:1]]
    assert span.json("spanloop.completion_logprobs") == [LOGPROBS[:1]]
    assert "gen_ai.response.finish_reasons" not in span.attributes


@pytest.mark.parametrize(
    ("way", "choices"), [("two", [2]), ("threads", [1, 2, 3, 4]), ("gathered", [1, 2, 3])]
)
def test_each_answer_has_its_own_tokens(asking: Run, way: str, choices: list[int]) -> None:
    spans = asking.of(way)
    assert sorted(span.attributes["gen_ai.request.choice.count"] for span in spans) == choices
    for span in spans:
        count = span.attributes["gen_ai.request.choice.count"]
        firsts = [ids[0] for ids in span.json("spanloop.completion_token_ids")]
        assert firsts == [100 + index for index in range(count)]
        assert len(span.json("spanloop.completion_logprobs")) == count


def test_a_failed_call_keeps_its_parameters(asking: Run) -> None:
    (span,) = [span for span in asking.spans if span.status == 2 and span.name == "openai.chat"]
    assert span.attributes["gen_ai.request.seed"] == 7
    assert "failing (400, 'forbidden')" in asking.printed


def test_responses_have_their_tokens_on_a_span_that_is_made_afterwards(asking: Run) -> None:
    (span,) = asking.of("responses")
    assert span.json("spanloop.prompt_token_ids") == [11, 12, 13]
    assert span.json("spanloop.completion_token_ids") == [IDS]
    assert span.json("spanloop.completion_logprobs") == [LOGPROBS]
    assert span.attributes["spanloop.model.version"] == "m@4"
    assert span.attributes["gen_ai.request.max_tokens"] == 9
    (dropped,) = asking.of("responses-dropped")
    assert "spanloop.completion_token_ids" not in dropped.attributes


def test_a_responses_stream_that_is_left_at_its_last_event_has_its_answer(asking: Run) -> None:
    (span,) = asking.of("responses-left")
    assert span.json("gen_ai.output.messages") == [
        {"role": "assistant", "parts": [{"type": "text", "content": ANSWER}], "finish_reason": "stop"}
    ]
    assert span.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert span.attributes["gen_ai.usage.output_tokens"] == 6
    (dropped,) = asking.of("responses-dropped")
    assert dropped.json("gen_ai.output.messages") == []
    assert "gen_ai.response.finish_reasons" not in dropped.attributes


LANGCHAIN = ("invoke", "tools", "stream", "asynchronous", "responses", "dropped")


@pytest.fixture(scope="module")
def langchain() -> Iterator[Run]:
    yield from run("langchain_capture.py", *LANGCHAIN, SPANLOOP_CAPTURE_TOKENS="true")


def test_langchains_span_of_the_call_gets_the_facts(langchain: Run) -> None:
    calls = [span for span in langchain.spans if span.name == "ChatOpenAI.chat"]
    assert len(calls) == len(langchain.stub.requests) == 8
    assert len({span.attributes["gen_ai.response.id"] for span in calls}) == 8
    for span in calls:
        assert span.json("spanloop.prompt_token_ids") == [11, 12, 13]
        assert span.attributes["spanloop.model.version"] == "m@4"
    left = [span for span in calls if span.json("spanloop.completion_token_ids") == [IDS[:1]]]
    assert len(left) == 1
    assert (
        sum(span.attributes.get("gen_ai.request.seed") == 7 for span in calls) == 7
    )  # not the Responses one


def test_tool_arguments_are_the_models_own_text(langchain: Run) -> None:
    (span,) = [span for span in langchain.spans if "spanloop.response.tool_calls" in span.attributes]
    assert span.json("spanloop.response.tool_calls") == [
        [{"id": "call_1", "name": "add", "arguments": '{"a": 2,  "b": 2}'}]
    ]
    assert span.json("spanloop.request.tool_choice")["function"]["name"] == "add"
    assert "tools {'a': 2, 'b': 2}" in langchain.printed


def test_a_server_that_refuses_is_asked_once() -> None:
    refused = ("return_token_ids", "enable_response_messages")
    ways = ["two", "stream-object", "responses", "responses"]
    (ran,) = run("openai_capture.py", *ways, refuses=refused, SPANLOOP_CAPTURE_TOKENS="true")
    assert ran.printed.count(ANSWER) == 4
    asked = [bool(set(request) & set(refused)) for request in ran.stub.requests]
    assert asked == [True, False, False, True, False, False]
    # What it did not refuse is still asked for.
    assert [bool(request.get("logprobs")) for request in ran.stub.requests[:3]] == [True, True, True]
    assert sum("spanloop.completion_logprobs" in span.attributes for span in ran.spans) == 4
    assert not any(span.status == 2 for span in ran.spans)


def test_a_field_is_named_by_an_error_however_it_is_written() -> None:
    answer = httpx.Response(400, request=httpx.Request("POST", "http://127.0.0.1"))
    error = openai.BadRequestError("LOGPROBS ARE NOT ENABLED.", response=answer, body=None)
    asked = {"logprobs": True, "return_token_ids": True}
    assert refused_by(error, asked, ("http://127.0.0.1", "m")) == {"logprobs"}


def test_a_server_that_refuses_without_a_reason_is_asked_once() -> None:
    ways = ["two", "two"]
    (ran,) = run(
        "openai_capture.py",
        *ways,
        refuses=("return_token_ids", "logprobs"),
        reason="Bad request.",
        SPANLOOP_CAPTURE_TOKENS="true",
    )
    assert ran.printed.count(f"'{ANSWER}', '{ANSWER}'") == 2
    for request in ran.stub.requests[-2:]:
        assert not {"return_token_ids", "logprobs"} & set(request)
    assert not any(span.status == 2 for span in ran.spans)


def test_an_error_of_the_agents_own_stays_its_own() -> None:
    ways = ["failing", "failing"]
    (ran,) = run("openai_capture.py", *ways, reason="Bad request.", SPANLOOP_CAPTURE_TOKENS="true")
    assert ran.printed.count("failing (400, None)") == 2
    assert [("forbidden" in request, "logprobs" in request) for request in ran.stub.requests] == [
        (True, True),
        (True, False),
    ] * 2


def test_nothing_is_asked_for_unless_the_user_says_so() -> None:
    (ran,) = run("openai_capture.py", "two", "responses", TRACELOOP_TRACE_CONTENT="false")
    assert not any(
        {"return_token_ids", "logprobs", "include"} & set(request) for request in ran.stub.requests
    )
    assert len(ran.spans) == 2
    for span in ran.spans:  # content is off: what was said is in none of our attributes either
        assert span.attributes["spanloop.model.version"] == "m@4"
        assert "two" not in str(span.attributes)


def test_a_client_that_nobody_instruments_is_left_alone() -> None:
    (ran,) = run(
        "openai_capture.py",
        "two",
        "stream-object",
        SPANLOOP_CAPTURE_TOKENS="true",
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="openai,langchain",
    )
    assert ran.printed.count(ANSWER) == 2
    assert ran.spans == []
    assert not any("return_token_ids" in request for request in ran.stub.requests)


OLD_CLIENT = """
class ChatCompletion:
    pass
"""


def test_another_module_of_that_name_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "openai.py").write_text(OLD_CLIENT, encoding="utf-8")
    program = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
from spanloop_exporter import calls
calls.after_instrumentors()
import openai
print(openai.ChatCompletion.__name__)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout == "ChatCompletion\n", ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "this openai client is unknown" in ended.stderr


def test_a_call_may_be_closed_in_another_context_than_it_began_in() -> None:
    @types.coroutine
    def forever() -> Iterator[None]:
        yield

    async def send(_client: object, _cast_to: object, _options: object) -> None:
        await forever()

    options = types.SimpleNamespace(
        url="/chat/completions", json_data={"model": "m", "messages": []}, method="post", extra_json=None
    )
    client = types.SimpleNamespace(base_url="http://127.0.0.1")
    running = client_module._async_request(send)(client, object, options)
    contextvars.copy_context().run(running.send, None)
    running.close()
