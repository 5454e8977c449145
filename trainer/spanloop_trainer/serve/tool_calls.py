"""Reads tool calls in Hermes form out of sampled text: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_BLOCK = re.compile(re.escape(OPEN) + r"(.*?)" + re.escape(CLOSE), re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class ToolCall:
    """One call, ready for `message.tool_calls`."""

    name: str
    arguments: str  # a JSON object, character for character as the model wrote it

    def to_openai(self) -> dict[str, object]:
        """OpenAI form with a fresh id."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def parse(text: str) -> tuple[str | None, list[ToolCall]]:
    """Split text into content and tool calls.

    A block that does not parse stays in the content, tags included: nothing that the model said is lost or mended.

    Returns:
        the content, None when only calls (and white space) were said, and the calls in order.
    """
    calls: list[ToolCall] = []
    rest: list[str] = []
    end = 0
    for match in _BLOCK.finditer(text):
        call = _parse_call(match.group(1))
        if call is not None:
            rest.append(text[end : match.start()])
            calls.append(call)
            end = match.end()
    if not calls:
        return text, []
    content = "".join([*rest, text[end:]]).strip()
    return content or None, calls


def _parse_call(body: str) -> ToolCall | None:
    """The call in one block, or None if it is not a JSON object with a name and an object of arguments."""
    try:
        fields = _object_fields(body)
    except (ValueError, RecursionError):
        return None
    if fields is None:
        return None
    name, _ = fields.get("name", (None, ""))
    value, raw = fields.get("arguments", ({}, "{}"))
    if isinstance(value, str):  # some models quote the object once more
        raw = value
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not name or not isinstance(value, dict):
        return None
    return ToolCall(name, raw)


def _object_fields(body: str) -> dict[str, tuple[object, str]] | None:
    """Each top-level key of a JSON object with its value and the value's own characters; None if it is no object.

    The characters matter: an agent sends the arguments back, and only unchanged text gives the tokens that were
    sampled.

    Raises:
        ValueError: not JSON.
    """
    at = _skip(body, 0)
    if not body.startswith("{", at):
        return None
    fields: dict[str, tuple[object, str]] = {}
    at = _skip(body, at + 1)
    if body.startswith("}", at):
        return fields if _skip(body, at + 1) == len(body) else None
    while True:
        key, at = _DECODER.raw_decode(body, at)
        at = _skip(body, at)
        if not isinstance(key, str) or not body.startswith(":", at):
            return None
        start = _skip(body, at + 1)
        value, at = _DECODER.raw_decode(body, start)
        fields[key] = (value, body[start:at])
        at = _skip(body, at)
        if body.startswith("}", at):
            return fields if _skip(body, at + 1) == len(body) else None
        if not body.startswith(",", at):
            return None
        at = _skip(body, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
