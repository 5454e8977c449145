"""Random chats in OpenAI form, and what two SDKs make of them: attributes with numbers in their keys.

The writers follow opentelemetry-instrumentation-openai 0.47 and openinference-instrumentation-openai 0.1: what they leave out is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client
from hypothesis import strategies as st

from spanloop_trainer.transform.calls.distinct import with_status
from spanloop_trainer.transform.reading.messages import read_messages
from spanloop_trainer.transform.reading.read import Window, read_spans

from .conftest import Row, insert

Json = dict[str, Any]
Attributes = dict[str, str]


class Chat(NamedTuple):
    """A request and its answers."""

    messages: list[Json]
    answers: list[Json]
    tools: list[Json]


# No half surrogate pairs, which no protobuf string can hold.
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: not text.startswith("[{") and text not in ('""', "[]", "null", "__REDACTED__")
)
NAMES = st.from_regex(r"\A[a-z_]{1,8}\Z")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=3).map(json.dumps) | st.just('{"half":')
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3)
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


@st.composite
def chats(draw: st.DrawFn, longest: int = 6) -> Chat:
    """A conversation of up to `longest` turns, tools and pictures included."""
    messages: list[Json] = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, longest))):
        content: Any = draw(WORDS)
        if draw(st.booleans()):
            content = [{"type": "text", "text": content}, *[PICTURE] * draw(st.integers(0, 2))]
        messages.append({"role": "user", "content": content})
        if draw(st.booleans()):
            assistant = draw(answers(f"{turn}-"))
            messages.append(assistant)
            for call in assistant.get("tool_calls", []):
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": draw(WORDS)})
    schema = {"type": "object", "properties": {}}
    tools = [
        {"type": "function", "function": {"name": name, "description": "does it", "parameters": schema}}
        for name in draw(st.lists(NAMES, max_size=12, unique=True))
    ]
    return Chat(messages, draw(st.lists(answers("end-"), max_size=2)), tools)


@st.composite
def answers(draw: st.DrawFn, prefix: str) -> Json:
    """An assistant's message: text, tool calls or both."""
    calls = [
        {"id": f"{prefix}{place}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for place, (name, arguments) in enumerate(draw(CALLS))
    ]
    message: Json = {"role": "assistant", "content": None if calls and draw(st.booleans()) else draw(WORDS)}
    return {**message, "tool_calls": calls} if calls else message


def legacy(chat: Chat) -> Attributes:
    """As Traceloop 0.47 writes it."""
    found: dict[str, Any] = {"llm.request.type": "chat", "gen_ai.request.model": "m"}
    for place, message in enumerate(chat.messages):
        found |= _traceloop(f"gen_ai.prompt.{place}", message)
    for place, tool in enumerate(chat.tools):
        function = tool["function"]
        for name in ("name", "description"):
            found[f"llm.request.functions.{place}.{name}"] = function[name]
        found[f"llm.request.functions.{place}.parameters"] = json.dumps(function["parameters"])
    for place, message in enumerate(chat.answers):
        found |= _traceloop(f"gen_ai.completion.{place}", message)
        found[f"gen_ai.completion.{place}.finish_reason"] = "stop"
    return {key: value for key, value in found.items() if value}


def _traceloop(prefix: str, message: Json) -> dict[str, Any]:
    content = message.get("content")
    found = {
        f"{prefix}.role": message["role"],
        f"{prefix}.content": json.dumps(content) if isinstance(content, list) else content,
        f"{prefix}.tool_call_id": message.get("tool_call_id"),
    }
    for place, call in enumerate(message.get("tool_calls", [])):
        found[f"{prefix}.tool_calls.{place}.id"] = call["id"]
        found[f"{prefix}.tool_calls.{place}.name"] = call["function"]["name"]
        found[f"{prefix}.tool_calls.{place}.arguments"] = call["function"]["arguments"]
    return found


def openinference(chat: Chat) -> Attributes:
    """As OpenInference writes it, without the request's and the response's JSON."""
    found: dict[str, Any] = {
        "openinference.span.kind": "LLM",
        "llm.model_name": "m",
        "llm.token_count.completion": "1",
    }
    for place, message in enumerate(chat.messages):
        found |= _arize(f"llm.input_messages.{place}.message", message)
    for place, tool in enumerate(chat.tools):
        found[f"llm.tools.{place}.tool.json_schema"] = json.dumps(tool)
    for place, message in enumerate(chat.answers):
        found |= _arize(f"llm.output_messages.{place}.message", message)
    if chat.answers:
        found["llm.finish_reason"] = "stop"
    return {key: value for key, value in found.items() if value}


def _arize(prefix: str, message: Json) -> dict[str, Any]:
    content = message.get("content")
    found = {f"{prefix}.role": message["role"], f"{prefix}.tool_call_id": message.get("tool_call_id")}
    if isinstance(content, list):
        for place, part in enumerate(content):
            inner = f"{prefix}.contents.{place}.message_content"
            found[f"{inner}.type"] = part["type"].removesuffix("_url")
            if part["type"] == "text":
                found[f"{inner}.text"] = part["text"]
            else:
                found[f"{inner}.image.image.url"] = part["image_url"]["url"]
    else:
        found[f"{prefix}.content"] = content
    for place, call in enumerate(message.get("tool_calls", [])):
        inner = f"{prefix}.tool_calls.{place}.tool_call"
        found[f"{inner}.id"] = call["id"]
        found[f"{inner}.function.name"] = call["function"]["name"]
        found[f"{inner}.function.arguments"] = call["function"]["arguments"]
    return found


WRITERS: dict[str, Callable[[Chat], Attributes]] = {"legacy": legacy, "openinference": openinference}


CHAT = Chat(
    [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "2+2?"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ],
    [{"role": "assistant", "content": "4"}],
    [],
)


def plain(message: Json) -> Json:
    """A message in the one form in which equal ones are equal: one text is a string, arguments are values."""
    content = message.get("content")
    if isinstance(content, list) and len(content) == 1 and content[0]["type"] == "text":
        content = content[0]["text"]
    calls = []
    for call in message.get("tool_calls", []):
        arguments = call["function"]["arguments"]
        with suppress(ValueError):
            arguments = json.loads(arguments)
        calls.append((call["id"], call["function"]["name"], arguments))
    return {
        "role": message["role"],
        "content": content or None,
        "tool_calls": calls,
        "tool_call_id": message.get("tool_call_id"),
    }


def span(number: int, attributes: Attributes, **fields: Any) -> Row:
    return {
        "Timestamp": 1_700_000_000_000_000_000 + number,
        "TraceId": f"t{number:04}",
        "SpanId": f"s{number:04}",
        "ParentSpanId": "",
        "SpanName": "call",
        "ServiceName": "agent",
        "ScopeName": "",
        "ResourceAttributes": {},
        "SpanAttributes": attributes,
        "Duration": 1,
        "StatusCode": "Ok",
        "StatusMessage": "",
        **fields,
    }


def calls(client: Client, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What stage A makes of the spans, in their order."""
    client.command("TRUNCATE TABLE otel_traces")
    insert(client, rows)
    frame = with_status(read_messages(read_spans(client, Window()).calls))
    return frame.sort("span_id").to_dicts()


def said(messages: Sequence[str] | None) -> list[Json]:
    return [plain(json.loads(message)) for message in messages or []]
