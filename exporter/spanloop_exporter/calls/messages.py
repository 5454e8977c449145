"""Chat messages as people write them (OpenAI form) to the parts of the GenAI semantic conventions.

Specification: OpenTelemetry semantic conventions, GenAI spans, `gen-ai-input-messages.json`, `gen-ai-output-messages.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.util.types import AttributeValue


def checked(messages: object, what: str) -> list[Mapping[str, Any]]:
    """The messages, if they are a sequence of mappings with a role.

    Raises:
        TypeError: they are something else, or a tool call in them is.
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
        for call in message.get("tool_calls") or ():
            if not isinstance(call, Mapping) or not isinstance(call.get("function") or {}, Mapping):
                raise TypeError(
                    f"{what} holds a tool call that is {_a(call)}: it is a dict with 'id' and 'function', another dict"
                )
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


def response_attributes(whole: Mapping[str, Any], *, content: bool) -> dict[str, AttributeValue]:
    """What a response of the Responses API said and took, as attributes, in the words that Traceloop has for it.

    Args:
        whole: the response, ended for whatever reason.
        content: whether what was said may be among them.
    """
    output = whole.get("output")
    items = [item for item in (output if isinstance(output, list) else ()) if isinstance(item, Mapping)]
    finish_reason = _finish_reason(whole, items)
    found: dict[str, AttributeValue] = {"gen_ai.response.finish_reasons": [finish_reason]}
    if isinstance(model := whole.get("model"), str):
        found["gen_ai.response.model"] = model
    usage = whole.get("usage")
    for key in ("input_tokens", "output_tokens"):
        if isinstance(usage, Mapping) and isinstance(count := usage.get(key), int):
            found[f"gen_ai.usage.{key}"] = count
    parts = [part for item in items for part in _item_parts(item)]
    if content and parts:
        said = {"role": "assistant", "parts": parts, "finish_reason": finish_reason}
        found["gen_ai.output.messages"] = as_json([said])
    return found


def _finish_reason(whole: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> str:
    if whole.get("status") == "completed":
        return "tool_call" if any(item.get("type") == "function_call" for item in items) else "stop"
    if whole.get("status") == "incomplete":
        details = whole.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, Mapping) else None
        return "content_filter" if reason == "content_filter" else "length"
    return "error"


def _item_parts(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    if item.get("type") == "function_call":
        identity = item.get("id") or item.get("call_id")
        arguments = _parsed(item.get("arguments"))
        return [{"type": "tool_call", "name": item.get("name"), "id": identity, "arguments": arguments}]
    kind, key = ("reasoning", "summary") if item.get("type") == "reasoning" else ("text", "content")
    found = item.get(key)
    pieces = [piece for piece in (found if isinstance(found, list) else ()) if isinstance(piece, Mapping)]
    text = "".join(str(piece.get("text") or piece.get("refusal") or "") for piece in pieces)
    return [{"type": kind, "content": text}] if text else []


def _parsed(arguments: Any) -> Any:
    # As instrumentors write them; the raw string is in `spanloop.response.tool_calls`.
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments, parse_constant=_refuse)
    except ValueError:
        return arguments


def _refuse(constant: str) -> Any:
    # Python reads and writes NaN and Infinity; JSON has none, and nobody else could read the messages around it.
    raise ValueError(constant)


def as_json(value: object) -> str:
    """Any value as JSON text; numbers that JSON has no word for become text, like whatever else it does not know.

    Raises:
        TypeError, ValueError: a key is no text, or the value contains itself.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _a(value: object) -> str:
    return f"a {type(value).__name__}"
