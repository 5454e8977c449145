"""Messages and their parts, as conventions write them, to OpenAI chat form; a reader of one shape names its fields here.

Parts come from the OpenTelemetry GenAI schemas (`text`, `tool_call`, `tool_call_response`, `reasoning`, `blob`, `uri`, `file`), from
OpenAI (chat content, Responses items), Anthropic (content blocks), Google (`functionCall`), the Vercel AI SDK (`tool-call`) and Pydantic AI
(`image-url`, `binary`). A part of another type stays as it was recorded, and the call carries a flag.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from spanloop_trainer.transform.flavours import Flag, Message
from spanloop_trainer.transform.flavours.media import media_part
from spanloop_trainer.transform.flavours.tools import tools as tools
from spanloop_trainer.transform.flavours.values import Json as Json
from spanloop_trainer.transform.flavours.values import compact, first, string
from spanloop_trainer.transform.flavours.values import dump as dump
from spanloop_trainer.transform.flavours.values import load as load

_ROLES = {"model": "assistant", "ai": "assistant", "human": "user"}
_KNOWN = frozenset(("system", "developer", "user", "assistant", "tool"))
_TEXTS = frozenset(("text", "input_text", "output_text"))
_CALLS = frozenset(("tool_call", "function_call", "tool_use", "tool-call"))
_RESULTS = frozenset(("tool_call_response", "tool_result", "function_call_output", "tool-result"))
_REASONING = frozenset(("reasoning", "thinking"))
# What the model's provider keeps to itself: nothing to learn from.
_OPAQUE = frozenset(("redacted_thinking", "redacted-reasoning", "step-start", "item_reference"))
# Finish reasons of an answer that calls tools.
CALLING = frozenset(("tool_calls", "tool_call", "tool_use", "function_call"))
# The API's own id of a call, before a record's id of it (`fc_…` beside `call_…` in the Responses API).
_IDS = ("tool_use_id", "call_id", "toolCallId", "tool_call_id", "id")


def tool_call(identity: str, name: str, arguments: Any) -> str:
    """A tool call in OpenAI form; arguments that were recorded as a value become its JSON."""
    if not isinstance(arguments, str):
        arguments = dump({} if arguments is None else arguments)
    return (
        f'{{"id": {string(identity)}, "type": "function", '
        f'"function": {{"name": {string(name)}, "arguments": {string(arguments)}}}}}'
    )


def _result_text(value: Any) -> tuple[str, int]:
    """The text of a tool's result, and flags."""
    if isinstance(value, str):
        return value, 0
    if isinstance(value, dict) and "type" in value and "value" in value:
        # The Vercel AI SDK says what kind of value it is; a text was sent as it is.
        inner = value["value"]
        if isinstance(inner, str) and value["type"] in ("text", "error-text"):
            return inner, 0
        return compact(inner), 0
    if isinstance(value, list) and value and all(_is_text(part) for part in value):
        return "".join(str(first(part, "text", "content") or "") for part in value), 0
    return compact(value), Flag.RENDERED_TOOL_RESULTS


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and (part.get("type") in _TEXTS or part.keys() == {"text"})


@dataclass
class Draft:
    """One message while its parts are read."""

    role: str
    name: str = ""
    finish: str | None = None
    # The answer may have a call's arguments as the model wrote them and the history the same as a value: keys compare values.
    by_value: bool = False
    content: list[Json] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    call_keys: list[str] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    flags: int = 0
    done: list[Message] = field(default_factory=list)

    def text(self, text: Any) -> None:
        """Empty text is dropped: streaming and plain recordings of one answer must compare equal."""
        if text is not None and text != "":
            self.content.append({"type": "text", "text": text if isinstance(text, str) else compact(text)})

    def call(self, identity: Any, name: Any, arguments: Any) -> None:
        identity, name = str(identity or ""), str(name or "")
        if identity in self.called:
            return  # Bedrock's events have calls twice: as parts and beside them
        if identity:
            self.called.add(identity)
        if identity.startswith("fc_"):
            self.flags |= Flag.PAIRED_BY_ORDER
        if not self.by_value:
            self.calls.append(tool_call(identity, name, arguments))
            return
        if not isinstance(arguments, str):
            arguments = compact({} if arguments is None else arguments)
        self.calls.append(tool_call(identity, name, arguments))
        self.call_keys.append(tool_call(identity, name, _canonical(arguments)))

    def result(self, identity: Any, value: Any) -> None:
        """A message of its own, behind what stands before it."""
        self.flush()
        text, flags = _result_text(value)
        chat = f'{{"role": "tool", "tool_call_id": {string(str(identity or ""))}, "content": {string(text)}}}'
        self.done.append(Message(chat, chat, "tool", text, flags=flags))

    def part(self, part: Any, *, answering: bool = False) -> bool:
        """Read one part; False: it has no shape that is known.

        Args:
            answering: of an answer, where a tool's result is what a tool of the provider gave, and stays inside.
        """
        if isinstance(part, str):
            self.text(part)
            return True
        if not isinstance(part, dict):
            return False
        # Pydantic AI's events of version 1 call it `kind`.
        kind = first(part, "type", "kind")
        if kind in _TEXTS:
            self.text(first(part, "content", "text"))
        elif kind in _CALLS:
            self.call(
                first(part, *_IDS), first(part, "name", "toolName"), first(part, "arguments", "input", "args")
            )
        elif kind in _RESULTS and not answering:
            # Earlier drafts of the convention called the field `result`.
            value = next(
                (part[name] for name in ("response", "result", "output", "content") if name in part), ""
            )
            self.result(first(part, *_IDS), value)
        elif kind in _REASONING:
            self.reasoning.append(_thought(part))
        elif kind == "refusal":
            self.refusal.append(str(first(part, "refusal", "content") or ""))
        elif kind in _OPAQUE:
            pass
        elif kind is None:
            self._keyed(part)
        else:
            self._media(str(kind), part)
        return True

    def _keyed(self, part: Json) -> None:
        """A part whose one key is its type (Google, Bedrock)."""
        call = first(part, "function_call", "functionCall", "toolUse")
        response = first(part, "function_response", "functionResponse", "toolResult")
        data = first(part, "inline_data", "inlineData", "file_data", "fileData")
        if isinstance(call, dict):
            self.call(
                first(call, "toolUseId", "id"), call.get("name"), first(call, "args", "arguments", "input")
            )
        elif isinstance(response, dict):
            self.result(first(response, "toolUseId", "id"), first(response, "response", "result", "content"))
        elif isinstance(data, dict):
            self._media("blob", data)
        elif part.get("thought") is True:
            self.reasoning.append(str(part.get("text") or ""))
        elif isinstance(first(part, "text", "content"), str):
            self.text(first(part, "text", "content"))
        else:
            self._unread(part)

    def _media(self, kind: str, part: Json) -> None:
        media = media_part(kind, part)
        if media is None:
            self._unread(part)
            return
        self.content.append(media)
        if len(media) == 1:
            self.flags |= Flag.LEFT_OUT_CONTENT

    def _unread(self, part: Json) -> None:
        self.content.append(part)
        self.flags |= Flag.UNREAD_PARTS

    def empty(self) -> bool:
        """Nothing was read into it."""
        return not (self.content or self.calls or self.reasoning or self.refusal)

    def flush(self) -> None:
        """End this message, if it has anything, and begin another of the same role."""
        if not self.empty():
            self.done.append(self._message())
            self.content, self.calls, self.call_keys, self.reasoning, self.refusal = [], [], [], [], []
            self.flags = 0

    def finished(self) -> list[Message]:
        """All messages: at least one. One with several tool results makes one message a result."""
        self.flush()
        return self.done or [self._message()]

    def _message(self) -> Message:
        """An assistant's `content` is null beside tool calls, as the API gives it back."""
        if self.content:
            body, text = _content(self.content)
        else:
            body, text = ("null", None) if self.calls or self.refusal else ('""', "")
        head = f'{{"role": {string(self.role)}, "content": {body}'
        if self.refusal:
            head += f', "refusal": {string("".join(self.refusal))}'
        chat = key = head
        if self.calls:
            chat += f', "tool_calls": [{", ".join(self.calls)}]'
            key += f', "tool_calls": [{", ".join(self.call_keys or self.calls)}]'
        if self.name:
            chat += f', "name": {string(self.name)}'
        if self.reasoning:
            chat += f', "reasoning_content": {string("".join(self.reasoning))}'
        return Message(
            chat + "}", key + "}", self.role, text, self.finish or None, len(self.calls), int(self.flags)
        )


def _canonical(arguments: str) -> str:
    """Equal for equal JSON; what does not parse stays."""
    try:
        return json.dumps(load(arguments), ensure_ascii=False, sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def _thought(part: Json) -> str:
    """The text of a reasoning part; a Responses item has it in `summary`."""
    value = first(part, "content", "thinking", "text", "reasoning", "summary")
    if isinstance(value, str) and value.startswith('[{"') and '"summary_text"' in value:
        try:
            value = load(value)
        except (ValueError, RecursionError):
            return str(value)
    if isinstance(value, list):
        return "".join(str(first(one, "text", "content") or "") for one in value if isinstance(one, dict))
    return str(value or "")


def _content(parts: list[Json]) -> tuple[str, str | None]:
    """OpenAI content as JSON, and its text: one text is a string; several, or anything else, stay a list of parts."""
    texts = [str(part["text"]) for part in parts if part.get("type") == "text" and "text" in part]
    if len(parts) == 1 and texts:
        return string(texts[0]), texts[0]
    return dump(parts), "".join(texts)


def message(
    value: Any, *, answering: bool = False, role: str = "", by_value: bool = False
) -> list[Message] | None:
    """One message of a convention's JSON in OpenAI chat form; None: its shape is not known.

    Args:
        value: `{"role", "parts"}` (OpenTelemetry), `{"role", "content", "tool_calls"}` (OpenAI, Anthropic) or a Responses item.
        answering: it is an answer: one message, whatever is in it.
        role: if it names none.
        by_value: of `Draft`.
    """
    if not isinstance(value, dict):
        return None
    named = value.get("role") or role or ("assistant" if value.get("type") in _CALLS | _REASONING else "")
    if value.get("type") in _RESULTS and not value.get("role"):
        named = "tool"
    if not isinstance(named, str) or not named:
        return None
    finish = first(value, "finish_reason", "finishReason")
    # An item's name is its tool's.
    name = "" if value.get("type") in _CALLS | _RESULTS else str(value.get("name") or "")
    # Whatever it is called, the model says it: LangChain's stream has an `unknown` one.
    role = "assistant" if answering and named not in _KNOWN else _ROLES.get(named, named)
    draft = Draft(role, name, str(finish) if finish else None, by_value)
    if "parts" in value:
        # LiteLLM leaves calls, and the id of a result, beside the parts.
        _openai(draft, value)
        parts = value["parts"]
        if (
            draft.role == "tool"
            and value.get("tool_call_id")
            and isinstance(parts, list)
            and all(map(_is_text, parts))
        ):
            draft.result(value["tool_call_id"], parts or "")
            return draft.finished()
    elif value.get("type") in _CALLS | _RESULTS | _REASONING:
        parts = [value]
    elif draft.role == "tool" and not _has_results(value.get("content")):
        draft.result(first(value, *_IDS), value.get("content", ""))
        return draft.finished()
    else:
        parts = _openai(draft, value)
    if parts is None:
        parts = []
    if isinstance(parts, str):
        parts = [parts]
    if not isinstance(parts, list) or not all(draft.part(part, answering=answering) for part in parts):
        return None
    # Nobody sends or says nothing: what it was, a picture or a refusal as a rule, the instrumentation could not write.
    nothing = not parts and (answering or draft.role == "user") and draft.empty()
    if nothing or (answering and draft.finish in CALLING and not draft.calls):
        draft.flags |= Flag.LEFT_OUT_CONTENT
    return draft.finished()


def _has_results(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict)
        and (part.get("type") in _RESULTS or first(part, "toolResult", "functionResponse") is not None)
        for part in content
    )


def _openai(draft: Draft, value: Json) -> Any:
    """Fields beside the content of a message in OpenAI's form; gives the content."""
    for call in value.get("tool_calls") or []:
        if isinstance(call, dict):
            function = call.get("function")
            inner = function if isinstance(function, dict) else call
            draft.call(first(call, *_IDS), inner.get("name"), first(inner, "arguments", "args", "input"))
    legacy = value.get("function_call")
    if isinstance(legacy, dict):
        draft.call("", legacy.get("name"), legacy.get("arguments"))
    thought = first(value, "reasoning_content", "reasoning")
    if isinstance(thought, str):
        draft.reasoning.append(thought)
    if value.get("refusal"):
        draft.refusal.append(str(value["refusal"]))
    content = value.get("content")
    return [content] if isinstance(content, dict) else content


def read(raw: str, *, by_value: bool = False) -> list[Message] | None:
    """One recorded message of a prompt; None: its shape is not known."""
    try:
        return message(_object(raw), by_value=by_value)
    except (ValueError, RecursionError):
        return None


def read_answer(raw: str, *, by_value: bool = False) -> Message | None:
    """One recorded answer: one message."""
    try:
        found = message(_object(raw), answering=True, role="assistant", by_value=by_value)
    except (ValueError, RecursionError):
        return None
    return found[0] if found is not None and len(found) == 1 else None


def merged(chats: list[str]) -> Message:
    """One message of the assistant, of several in chat form."""
    draft = Draft("assistant")
    for text in chats:
        value = load(text)
        content = _openai(draft, value)
        for part in [content] if isinstance(content, str) else content or []:
            draft.part(part, answering=True)
    return draft.finished()[0]


def _object(raw: str) -> Any:
    """Attributes can hold an array of text: each message is then JSON in a string."""
    value = load(raw)
    return load(value) if isinstance(value, str) and value.startswith("{") else value
