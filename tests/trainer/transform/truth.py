"""What the servers of the recordings really received and answered, in a form that a dataset's rows can be compared with.

Written apart from the package, on purpose: were a flavour's reader used here, its mistakes would agree with themselves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[2] / "fixtures"
Json = dict[str, Any]
# Role, text, (name, arguments) of its tool calls.
Said = tuple[str, str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Call:
    """One request that a server received.

    Args:
        scenario: the recording.
        span_id: of the span that sent it; empty: it sent no traceparent.
        response_id: of the answer; empty: not known.
        messages: the request's.
        answer: None: not known, or there was none.
        status: HTTP.
        aborted: the client hung up, or the server did.
        offered: names of the tools in the request; None: not known.
    """

    scenario: str
    span_id: str
    response_id: str
    messages: tuple[Said, ...]
    answer: Said | None
    status: int
    aborted: bool
    offered: tuple[str, ...] | None = None


def said(message: Json) -> Said:
    """A message in OpenAI chat form."""
    calls = [
        (call["function"]["name"], arguments(call["function"]["arguments"]))
        for call in message.get("tool_calls") or []
    ]
    return message["role"], _text(message.get("content")), tuple(calls)


def arguments(value: Any) -> str:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    return json.dumps(value, sort_keys=True)


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def _anthropic(message: Json) -> list[Said]:
    """One message of the Messages API: a result a message, text and calls of an assistant in one."""
    content = message["content"]
    if isinstance(content, str):
        return [(message["role"], content, ())]
    results = [("tool", _text(part["content"]), ()) for part in content if part["type"] == "tool_result"]
    text = "".join(part["text"] for part in content if part["type"] == "text")
    calls = tuple((part["name"], arguments(part["input"])) for part in content if part["type"] == "tool_use")
    return [*results, *([(message["role"], text, calls)] if text or calls else [])]


def _offered(body: Json) -> tuple[str, ...]:
    return tuple(tool.get("function", tool)["name"] for tool in body.get("tools") or [])


def of_anthropic(body: Json) -> list[Said]:
    system = [("system", _text(body["system"]), ())] if body.get("system") else []
    return [*system, *(one for message in body["messages"] for one in _anthropic(message))]


@cache
def calls(scenario: str) -> tuple[Call, ...]:
    """Those of a recording whose requests are known, in order."""
    found = []
    for line in (FIXTURES / "otlp" / "requests.jsonl").read_text().splitlines():
        request = json.loads(line)
        if request["scenario"] == scenario:
            messages = tuple(map(said, request["body"]["messages"]))
            found.append(
                Call(
                    scenario, request["span_id"], "", messages, None, 200,
                    aborted=False, offered=_offered(request["body"]),
                )
            )  # fmt: skip
    for line in (FIXTURES / "frameworks" / "calls.jsonl").read_text().splitlines():
        call = json.loads(line)
        if call["scenario"] != scenario:
            continue
        anthropic = call["path"] == "/v1/messages"
        body, response = call["request"], call.get("response") or {}
        message = response.get("message")
        if message is not None:
            answer = _anthropic(message)[0] if anthropic else said(message)
        found.append(
            Call(
                scenario,
                (call.get("traceparent") or "--").split("-")[2],
                call.get("response_id") or "",
                tuple(of_anthropic(body) if anthropic else map(said, body["messages"])),
                answer if message is not None else None,
                call["status"],
                bool(call.get("aborted")),
                _offered(body),
            )
        )
    return tuple(found) or _sent_by_client(scenario)


def _sent_by_client(scenario: str) -> tuple[Call, ...]:
    """Where the server kept nothing: OpenInference's record of the client's request and response, which no flavour reads that has
    numbered attributes instead.
    """
    found = []
    for resources in json.loads((FIXTURES / "otlp" / f"{scenario}.json").read_text())["resourceSpans"]:
        for span in (span for scope in resources["scopeSpans"] for span in scope["spans"]):
            values = {
                attribute["key"]: attribute["value"].get("stringValue", "")
                for attribute in span["attributes"]
            }
            if values.get("openinference.span.kind") != "LLM":
                continue
            body, response = (json.loads(values.get(f"{side}.value", "{}")) for side in ("input", "output"))
            if isinstance(body["messages"][0], dict):
                messages = tuple(map(said, body["messages"]))
                answer = said(response["choices"][0]["message"])
                found.append(
                    Call(scenario, span["spanId"], response["id"], messages, answer, 200, aborted=False)
                )
    return tuple(found)
