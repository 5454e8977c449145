"""Where a request holds its system prompt, and how another one is put there; chat completions and responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_ROLES: Final = ("system", "developer")
_TEXTS: Final = ("text", "input_text")
# They are recorded with a prompt; OpenAI takes 128 tools with names of 64 characters.
_MAX_TOOLS: Final = 512
_MAX_TOOL_CHARS: Final = 200
# Between the texts of several messages or parts.
_JOINT: Final = "\n\n"


@dataclass(frozen=True, slots=True)
class Found:
    """A request's system prompt.

    Args:
        text: all of it.
        field: `messages` or `input`: the member that holds the conversation.
        leading: how many of its items the prompt is made of.
        instructions: whether the member of that name is a part of it.
    """

    text: str
    field: str
    leading: int
    instructions: bool = False


def find(body: Mapping[str, Any]) -> Found | None:
    """The system prompt: leading messages of role system or developer, and `instructions`; None: there is none to read."""
    field = "messages" if "messages" in body else "input"
    items = body.get(field)
    texts: list[str] = []
    instructions = body.get("instructions") if field == "input" else None
    if isinstance(instructions, str) and instructions:
        texts.append(instructions)
    has_instructions, leading = bool(texts), 0
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict) or item.get("role") not in _ROLES:
            break
        text = _text_of(item.get("content"))
        if text is None:  # an image, a file: nothing that a text could take the place of
            return None
        texts.append(text)
        leading += 1
    text = texts[0] if len(texts) == 1 else _JOINT.join(texts)
    if not text or text.isspace():
        return None
    return Found(text, field, leading, instructions=has_instructions)


def tools_of(body: Mapping[str, Any]) -> frozenset[str]:
    """Names of the tools that the request offers, of the first ones where there are very many."""
    tools = body.get("tools")
    names = set()
    for tool in tools[:_MAX_TOOLS] if isinstance(tools, list) else ():
        if isinstance(tool, dict):
            function = tool.get("function")
            name = (
                function.get("name") if isinstance(function, dict) else tool.get("name") or tool.get("type")
            )
            if isinstance(name, str) and len(name) <= _MAX_TOOL_CHARS:
                names.add(name)
    return frozenset(names)


def replaced(
    body: Mapping[str, Any], found: Found, text: str, examples: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The request with another system prompt, and examples behind it; what it was given is left as it is."""
    made = dict(body)
    items = body.get(found.field)
    rest: list[Any] | None = list(items[found.leading :]) if isinstance(items, list) else None
    first: list[Any] = []
    if text != found.text:
        if found.instructions:
            made["instructions"] = text
        elif isinstance(items, list):
            first = [_with_text(items[0], text)]
    elif isinstance(items, list):
        first = list(items[: found.leading])
    shots = [dict(message) for message in examples]
    if found.field == "input":
        # The server keeps the conversation so far, its examples included.
        shots = [] if body.get("previous_response_id") else [part for one in shots for part in _as_items(one)]
    if rest is None:
        if not shots:
            return made
        rest = [{"role": "user", "content": items}] if isinstance(items, str) else []
    if shots and rest[: len(shots)] == shots:  # the agent sends them itself
        shots = []
    made[found.field] = [*first, *shots, *rest]
    return made


def _text_of(content: object) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") in _TEXTS else None
        if not isinstance(text, str):
            return None
        texts.append(text)
    return _JOINT.join(texts)


def _with_text(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, list) and content:
        # The last part carries what holds for all, such as a mark up to where a cache reaches.
        return {**message, "content": [{**content[-1], "text": text}]}
    return {**message, "content": text}


def _as_items(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A chat message as items of the Responses API."""
    if message.get("role") == "tool":
        content = message.get("content")
        return [
            {"type": "function_call_output", "call_id": message.get("tool_call_id", ""), "output": content}
        ]
    made: list[dict[str, Any]] = []
    if message.get("content"):
        made.append({"role": message["role"], "content": message["content"]})
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        made.append(
            {
                "type": "function_call",
                "call_id": call.get("id", ""),
                "name": function.get("name", ""),
                "arguments": function.get("arguments", "{}"),
            }
        )
    return made
