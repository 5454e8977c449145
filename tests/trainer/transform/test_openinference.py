"""What OpenInference's spans say beside numbered messages, and what they say without any."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.helpers.stores import laid

from spanloop_store import connect
from spanloop_trainer.transform.flavours import Flag

from .conftest import recorded
from .numbered import CHAT, Attributes, Row, calls, openinference, said, span

LLM = {"openinference.span.kind": "LLM"}
JSON = "application/json"
PROMPT = {"llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": "hi"}
REQUEST = {"model": "m", "messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]}


def in_and_out(asked: Any, answered: Any, **more: str) -> Attributes:
    """Request and response as JSON."""
    return {
        **LLM,
        "input.value": json.dumps(asked),
        "input.mime_type": JSON,
        "output.value": json.dumps(answered),
        "output.mime_type": JSON,
        **more,
    }


def choices(*texts: str, **more: Any) -> dict[str, Any]:
    """An OpenAI response."""
    listed = [
        {"index": place, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for place, text in enumerate(texts)
    ]
    return {"id": "chatcmpl-1", "model": "m-1", "choices": listed, **more}


BLOCKS = {
    "role": "assistant",
    "blocks": [{"text": "look"}, {"tool_call_id": "c", "tool_name": "f", "tool_kwargs": '{"a":1}'}],
}
GENERATION = {
    "text": "",
    "generation_info": {"finish_reason": "tool_calls"},
    "message": {
        "kwargs": {
            "content": "look",
            "tool_calls": [{"name": "f", "args": {"a": 1}, "id": "c"}],
            "response_metadata": {"id": "chatcmpl-2"},
        }
    },
}
CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": "look",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
}
TWICE = [{**CALLED["tool_calls"][0], "id": name} for name in "cd"]
TOLD = {"role": "assistant", "content": "hello"}
ASKED = [{"role": "user", "content": "hi"}]
WHOLE = openinference(CHAT)

# Attributes, the prompt and the answers that they tell.
READ: dict[str, tuple[Attributes, list[Any], list[Any]]] = {
    "only request and response": (in_and_out(REQUEST, choices("hello")), REQUEST["messages"], [TOLD]),  # type: ignore[dict-item]
    "two choices": (in_and_out(REQUEST, choices("hello", "hello")), REQUEST["messages"], [TOLD, TOLD]),  # type: ignore[dict-item]
    "a first message that was dropped": (
        {**in_and_out(REQUEST, choices("hello")), "llm.input_messages.1.message.role": "user"},
        REQUEST["messages"],  # type: ignore[dict-item]
        [TOLD],
    ),
    "a last message that was dropped": (
        {**in_and_out(REQUEST, choices("hello")), "llm.input_messages.0.message.role": "system"},
        REQUEST["messages"],  # type: ignore[dict-item]
        [TOLD],
    ),
    "LlamaIndex's answer": (
        {**PROMPT, **in_and_out({"messages": ["repr"]}, {"message": BLOCKS})},
        ASKED,
        [CALLED],
    ),
    "LlamaIndex's answer with the client's": (
        {**PROMPT, **in_and_out({"messages": ["repr"]}, {"message": BLOCKS, "raw": choices("hello")})},
        ASKED,
        [TOLD],
    ),
    "LangChain's answers": (
        {**PROMPT, **in_and_out({"messages": [[{}]]}, {"generations": [[GENERATION, GENERATION]]})},
        ASKED,
        [CALLED, CALLED],
    ),
    "CrewAI's calls": (
        {
            **LLM,
            **PROMPT,
            "llm.input_messages.1.message.role": "assistant",
            "llm.input_messages.1.message.content": "look",
            "llm.input_messages.1.message.tool_calls.0.tool_call.id": "c",
            "llm.input_messages.1.message.tool_calls.0.tool_call.function.name": "'f'",
            "llm.input_messages.1.message.tool_calls.0.tool_call.function.arguments": '{"a":1}',
            "output.value": json.dumps(TWICE),
            "output.mime_type": JSON,
            "llm.token_count.completion": "5",
        },
        [*ASKED, CALLED],
        [{**CALLED, "content": None, "tool_calls": TWICE}],
    ),
    "DSPy's answer of a function": (
        {**PROMPT, **in_and_out({"messages": None}, ["a function"])},
        ASKED,
        [{"role": "assistant", "content": "a function"}],
    ),
    "DSPy's answers": ({**PROMPT, **in_and_out({"messages": None}, ["hello", "hello"])}, ASKED, [TOLD, TOLD]),
    "Anthropic's answer": (
        {**PROMPT, **in_and_out({}, {"id": "msg_1", "content": [{"type": "text", "text": "hello"}]})},
        ASKED,
        [TOLD],
    ),
    "prompt and completion": (
        {**LLM, "llm.prompts.0.prompt.text": "hi", "llm.choices.0.completion.text": "hello"},
        ASKED,
        [TOLD],
    ),
    "prompts as one list": ({**LLM, "llm.prompts": '["hi"]', "output.value": "hello"}, ASKED, [TOLD]),
    "only text": ({**LLM, "input.value": "hi", "output.value": "hello"}, ASKED, [TOLD]),
    "a text that begins like JSON": (
        {**LLM, **PROMPT, "output.value": "[hello"},
        ASKED,
        [{**TOLD, "content": "[hello"}],
    ),
    "a long integer": (
        {**PROMPT, **in_and_out({"messages": ASKED, "n": 1}, choices("123456789012345678901234567890"))},
        ASKED,
        [{**TOLD, "content": "123456789012345678901234567890"}],
    ),
}
INVALID = {
    "a hole": {**WHOLE, "llm.input_messages.9.message.role": "user"},
    "no first message": {key: value for key, value in WHOLE.items() if "input_messages.0" not in key},
    "no role": {key: value for key, value in WHOLE.items() if key != "llm.input_messages.1.message.role"},
    "a part without its message": {
        **LLM,
        **PROMPT,
        "llm.input_messages.1.message.contents.0.message_content.text": "x",
    },
    "calls that ran together": {
        **LLM,
        **PROMPT,
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"a":1}{"a":2}',
    },
    "a tool call that is missing": {**WHOLE, "llm.output_messages.0.message.tool_calls.1.tool_call.id": "x"},
    "a response that was cut": {**PROMPT, **in_and_out(REQUEST, ""), "output.value": '{"choices": [{"mess'},
    "a definition that was cut": {**WHOLE, "llm.tools.0.tool.json_schema": '{"type": "func'},
    "an unknown response": {**PROMPT, **in_and_out(REQUEST, {"of": "tomorrow"})},
    "several prompts at once": {**LLM, "llm.prompts.0.prompt.text": "a", "llm.prompts.1.prompt.text": "b"},
}
WITHOUT = {
    "nothing": LLM,
    "messages left out": {**LLM, **PROMPT, "llm.input_messages.0.message.content": "__REDACTED__"},
    "values left out": {**LLM, "input.value": "__REDACTED__", "output.value": "__REDACTED__"},
    "outputs left out": {**LLM, **PROMPT, "output.value": "__REDACTED__"},
    "prompts left out": {**LLM, "llm.prompts.0.prompt.text": "__REDACTED__", "output.value": "hello"},
    "choices left out": {**LLM, **PROMPT, "llm.choices.0.completion.text": "__REDACTED__"},
    "a stream that was printed": {**LLM, **PROMPT, "output.value": "<groq.Stream object at 0x7f9a726a7ad0>"},
    "JSON of another kind": in_and_out({"anything": 1}, {"anything": 2}),
}
TOOL = {"toolSpec": {"name": "f", "inputSchema": {"json": {"type": "object"}}}}
HIDDEN = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "__REDACTED__"}}]}
PREPARED = in_and_out({"chat_history": ["repr"], "tools": []}, {"messages": ["repr"], "tools": []})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All cases, read at once."""
    cases = {
        **{name: attributes for name, (attributes, _, _) in READ.items()},
        **INVALID,
        **WITHOUT,
        "prepared": PREPARED,
        "a part without attributes": {
            **WHOLE,
            "llm.input_messages.1.message.contents.2.message_content.text": "x",
        },
        "camel case": {**WHOLE, "llm.invocation_parameters": '{"topP": 0.5, "maxTokens": 5}'},
        "tools in the request": in_and_out({**REQUEST, "tools": [TOOL]}, choices("hello")),
        "a hidden picture": in_and_out({**REQUEST, "messages": [HIDDEN]}, choices("hello")),
        "litellm": {**WHOLE, "llm.model_name": "openai/gpt", "llm.provider": "openai"},
        "parameters": {
            **WHOLE,
            "llm.invocation_parameters": '{"temperature": 0, "max_completion_tokens": 5, "seed": 3}',
        },
    }
    rows: list[Row] = [span(number, attributes) for number, attributes in enumerate(cases.values())]
    rows += [{**row, "ScopeName": ""} for row in recorded("oi_a_sync_logprobs_tokenids")]
    client = connect(laid(tmp_path_factory.mktemp("openinference") / "store"))
    names = dict(zip((row["SpanId"] for row in rows), cases, strict=False))
    read = {names.get(call["span_id"], call["span_id"]): call for call in calls(client, rows)}
    client.close()
    return read


@pytest.mark.parametrize("name", READ)
def test_is_read(found: dict[str, dict[str, Any]], name: str) -> None:
    _, prompt, answers = READ[name]
    call = found[name]
    assert not call["invalid"]
    assert call["has_content"]
    assert call["status"] == "ok"
    plainly = [json.dumps(message) for message in prompt], [json.dumps(message) for message in answers]
    assert (said(call["messages"]), said(call["chats"])) == (said(plainly[0]), said(plainly[1]))


@pytest.mark.parametrize("name", INVALID)
def test_is_invalid(found: dict[str, dict[str, Any]], name: str) -> None:
    assert found[name]["status"] == "invalid"


@pytest.mark.parametrize("name", WITHOUT)
def test_has_no_content(found: dict[str, dict[str, Any]], name: str) -> None:
    assert not found[name]["has_content"]


def test_what_makes_a_request_is_no_model_call(found: dict[str, dict[str, Any]]) -> None:
    assert "prepared" not in found


def test_a_text_is_flagged(found: dict[str, dict[str, Any]]) -> None:
    flagged = {name for name, call in found.items() if call["flags"] & Flag.ONLY_TEXT}
    assert flagged == {"only text", "values left out"}
    left_out = {name for name, call in found.items() if call["flags"] & Flag.LEFT_OUT_CONTENT}
    assert left_out == {"a part without attributes", "a hidden picture"}


def test_facts(found: dict[str, dict[str, Any]]) -> None:
    assert found["litellm"]["request_model"] == "gpt"
    call = found["parameters"]
    assert [call[name] for name in ("temperature", "max_tokens", "seed", "top_p")] == [0.0, 5, 3, None]
    assert [found["camel case"][name] for name in ("max_tokens", "top_p")] == [5, 0.5]
    assert json.loads(found["tools in the request"]["tools_json"]) == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    ]
    ids = {
        name: found[name]["response_id"]
        for name in ("two choices", "LangChain's answers", "Anthropic's answer")
    }
    assert list(ids.values()) == ["chatcmpl-1", "chatcmpl-2", "msg_1"]
    assert found["LlamaIndex's answer with the client's"]["response_id"] == "chatcmpl-1"
    assert found["two choices"]["finish_reasons"] == ["stop", "stop"]
    assert found["two choices"]["response_model"] == "m-1"


def test_exact_tokens_in_the_response(found: dict[str, dict[str, Any]]) -> None:
    """vLLM's `return_token_ids` leaves them in `output.value`."""
    with_tokens = [call for call in found.values() if call["own_prompt_ids"]]
    assert len(with_tokens) == 2
    for call in with_tokens:
        (ids,), (logprobs,) = call["own_completion_ids"], call["own_logprobs"]
        assert len(ids) == len(logprobs) > 10
        assert max(logprobs) < 0
