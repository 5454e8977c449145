"""Chat messages as people write them (OpenAI form) to the parts of the GenAI semantic conventions.

Specification: OpenTelemetry semantic conventions, GenAI spans, `gen-ai-input-messages.json`, `gen-ai-output-messages.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def checked(messages: object, what: str) -> list[Mapping[str, Any]]:
    """The messages, if they are a sequence of mappings with a role.

    Raises:
        TypeError: they are something else.
        ValueError: one has no role.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(
            f"{what} is a list of messages such as {{'role': 'user', 'content': '…'}}, not {_a(messages)}"
        )
    for message in messages:
        if not isinstance(message, Mapping):
            raise TypeError(f"{what} holds {_a(message)}: a message is a dict with 'role' and 'content'")
        if not isinstance(message.get("role"), str):
            raise ValueError(f"{what} holds a message without a role: {str(dict(message))[:80]}")
    return list(messages)


def recorded(message: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """One message as `{"role", "parts", "finish_reason"?}`."""
    role = message["role"]
    if role == "tool":
        result = {
            "type": "tool_call_response",
            "id": message.get("tool_call_id"),
            "response": message.get("content"),
        }
        return {"role": role, "parts": [result]}
    parts = _content(message.get("content"))
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        parts.append(
            {
                "type": "tool_call",
                "id": call.get("id"),
                "name": function.get("name"),
                "arguments": _parsed(function.get("arguments")),
            }
        )
    said = {"role": role, "parts": parts}
    return said if finish_reason is None else said | {"finish_reason": finish_reason}


def _content(content: Any) -> list[dict[str, Any]]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    parts = []
    for part in content if isinstance(content, Sequence) else [content]:
        if isinstance(part, Mapping) and part.get("type") == "text":
            parts.append({"type": "text", "content": part.get("text", "")})
        else:
            parts.append(dict(part) if isinstance(part, Mapping) else {"type": "text", "content": str(part)})
    return parts


def _parsed(arguments: Any) -> Any:
    # As instrumentors write them; the raw string is in `spanloop.response.tool_calls`.
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _a(value: object) -> str:
    return f"a {type(value).__name__}"
