"""What one model call is seen to ask and to answer, gathered from plain JSON, and the span attributes made of it.

Chat completions (and legacy completions) are read by `read_chat`, the Responses API by `read_response`: both take a whole
answer as well as one chunk or event of a stream. Fields of unexpected types are left alone: a server's peculiarity must
not break the agent's call. vLLM's token protocol is `prompt_token_ids` and `choices[i].token_ids` in chat, and
`input_messages` / `output_messages` of type `raw_message_tokens` in Responses.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry.trace import SpanContext
from opentelemetry.util.types import AttributeValue

_log = logging.getLogger(__name__)

VERSION_HEADER: Final = "x-spanloop-model-version"


@dataclass(slots=True)
class ToolCall:
    """One tool call of an answer; in a stream it grows with every chunk."""

    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The string that the model wrote, whether it is JSON or not."""
        if len(self.pieces) > 1:  # hundreds of small strings take ten times the room of one
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""


@dataclass(slots=True)
class Choice:
    """One of the n answers."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tool_calls: dict[int, ToolCall] = field(default_factory=dict)  # by their index in the answer


@dataclass(slots=True)
class Reported:
    """The span that reports a call; all that tool steps keep of it, since spans and answers may be large."""

    span: SpanContext | None = None  # None until it is known
    parent_id: int = 0  # 0: it is a root
    answered_ns: int = 0  # when the last of the answer that was read came
    ended_ns: int = 0  # 0 while the span is open
    response_id: str = ""
    # How the request ended: number of messages, and a hash of the last. A later request of that conversation begins so.
    prompt: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Call:
    """One request to a model server, from its start to the end of the span that reports it."""

    request: dict[str, AttributeValue] = field(default_factory=dict)
    started_ns: int = field(default_factory=time.time_ns)
    reported: Reported = field(default_factory=Reported)
    response_id: str = ""
    fingerprint: str = ""
    version: str = ""
    prompt_token_ids: str = ""  # JSON: the numbers of a long prompt take six times the room
    # a streamed response at its end: what it said and took, until a span has it
    ended: Mapping[str, Any] | None = None
    choices: dict[int, Choice] = field(default_factory=dict)
    after: Reported | None = None  # the last call before that was answered, in the same thread or task
    after_ns: int = 0  # when the call before began, there, answered or not
    # tool calls that were seen since somebody last asked for new ones
    new_tools: list[ToolCall] = field(default_factory=list)

    def choice(self, index: int) -> Choice:
        """The choice of that index; made when it is first seen."""
        found = self.choices.get(index)
        if found is None:
            found = self.choices[index] = Choice()
        return found

    def attributes(self, *, content: bool) -> dict[str, AttributeValue]:
        """What a span should say of the call.

        Args:
            content: whether what was said may be recorded; token ids and tool arguments are what was said.
        """
        found: dict[str, AttributeValue] = dict(self.request)
        if self.version:
            found["spanloop.model.version"] = self.version
        if self.fingerprint:
            found["openai.response.system_fingerprint"] = self.fingerprint
        if not content:
            return found
        if self.prompt_token_ids:
            found["spanloop.prompt_token_ids"] = self.prompt_token_ids
        choices = [choice for _, choice in sorted(self.choices.items())]
        ids = any(choice.token_ids for choice in choices)
        if ids:
            found["spanloop.completion_token_ids"] = _json([choice.token_ids for choice in choices])
        if any(choice.logprobs for choice in choices):
            aligned = all(len(choice.logprobs) == len(choice.token_ids) for choice in choices)
            finite = all(math.isfinite(value) for choice in choices for value in choice.logprobs)
            if not finite:
                _log.debug(
                    "response %s: infinite log-probabilities, JSON has no word for them", self.response_id
                )
            elif ids and not aligned:
                # Never guessed: ids alone are worth more than a shifted pairing.
                _log.debug("response %s: token ids and log-probabilities differ in number", self.response_id)
            else:
                found["spanloop.completion_logprobs"] = _json([choice.logprobs for choice in choices])
        if any(choice.tool_calls for choice in choices):
            calls = [
                [
                    {"id": call.id, "name": call.name, "arguments": call.arguments}
                    for _, call in sorted(choice.tool_calls.items())
                ]
                for choice in choices
            ]
            found["spanloop.response.tool_calls"] = json.dumps(calls, ensure_ascii=False)
        return found


def request_attributes(body: Mapping[str, Any]) -> dict[str, AttributeValue]:
    """The request's parameters as attributes of the GenAI semantic conventions; those that are not set are left out."""
    found: dict[str, AttributeValue] = {}
    for parameter, key in _INTEGERS.items():
        value = body.get(parameter)
        if isinstance(value, int) and not isinstance(value, bool):
            found[key] = value
    for parameter, key in _NUMBERS.items():
        value = body.get(parameter)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = float(value)
    stop = body.get("stop")
    if isinstance(stop, str):
        found["gen_ai.request.stop_sequences"] = [stop]
    elif isinstance(stop, list) and stop and all(isinstance(item, str) for item in stop):
        found["gen_ai.request.stop_sequences"] = stop
    if isinstance(previous := body.get("previous_response_id"), str):
        found["spanloop.request.previous_response_id"] = previous
    choice = body.get("tool_choice")
    if isinstance(choice, str | dict):
        found["spanloop.request.tool_choice"] = _json(choice)
    return found


_INTEGERS: Final = {
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
}
_NUMBERS: Final = {"temperature": "gen_ai.request.temperature", "top_p": "gen_ai.request.top_p"}


def read_chat(call: Call, data: Mapping[str, Any]) -> None:
    """Take in an answer of /chat/completions or /completions, or one chunk of its stream."""
    _read_names(call, data)
    ids = data.get("prompt_token_ids")
    choices = data.get("choices")
    for position, choice in enumerate(choices if isinstance(choices, list) else ()):
        if not isinstance(choice, dict):
            continue
        index = choice.get("index")
        index = index if isinstance(index, int) else position
        if "message" in choice and index in call.choices:
            continue  # an answer that the agent parses once more, as something else
        seen = call.choice(index)
        if isinstance(token_ids := choice.get("token_ids"), list):
            seen.token_ids += token_ids
        ids = choice.get("prompt_token_ids") if ids is None else ids  # where /completions has them
        if logprobs := choice.get("logprobs"):
            seen.logprobs += _chat_logprobs(logprobs)
        message = choice.get("delta") or choice.get("message")
        if isinstance(message, dict) and isinstance(calls := message.get("tool_calls"), list):
            for place, tool in enumerate(calls):
                if isinstance(tool, dict):
                    _read_tool(call, seen, place, tool)
    if isinstance(ids, list) and ids and not call.prompt_token_ids:
        call.prompt_token_ids = _json(ids)


def _tool(call: Call, choice: Choice, index: int) -> ToolCall:
    known = choice.tool_calls.get(index)
    if known is None:
        known = choice.tool_calls[index] = ToolCall()
        call.new_tools.append(known)
    return known


def _read_tool(call: Call, choice: Choice, place: int, tool: dict[str, Any]) -> None:
    index = tool.get("index")
    known = _tool(call, choice, index if isinstance(index, int) else place)
    function = tool.get("function") or tool.get("custom")
    known.id = known.id or _text(tool.get("id"))
    if isinstance(function, dict):
        known.name = known.name or _text(function.get("name"))
        known.pieces.append(_text(function.get("arguments", function.get("input"))))


def _chat_logprobs(logprobs: Any) -> list[float]:
    if not isinstance(logprobs, dict):
        return []
    # /completions has a flat list, whose first entry is null when the prompt is echoed.
    if isinstance(flat := logprobs.get("token_logprobs"), list):
        return [value for value in flat if isinstance(value, int | float)]
    return _logprobs(logprobs.get("content")) or _logprobs(logprobs.get("refusal"))


def _logprobs(entries: Any) -> list[float]:
    if not isinstance(entries, list):
        return []
    values = (entry.get("logprob") for entry in entries if isinstance(entry, dict))
    return [value for value in values if isinstance(value, int | float)]


def read_response(call: Call, data: Mapping[str, Any]) -> None:
    """Take in an answer of /responses, or one event of its stream."""
    kind = _text(data.get("type"))
    choice = call.choice(0)  # Responses gives one answer
    if isinstance(whole := data.get("response"), dict) and kind.startswith("response."):
        _read_names(call, whole)
        if kind in _WHOLE:
            _read_whole_response(call, choice, whole)
            call.ended = whole
    elif kind in ("response.output_item.added", "response.output_item.done"):
        _read_item(call, choice, data.get("output_index"), data.get("item"))
    elif kind in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
        if isinstance(index := data.get("output_index"), int) and index in choice.tool_calls:
            choice.tool_calls[index].pieces.append(_text(data.get("delta")))
    elif kind == "response.output_text.delta":
        choice.logprobs += _logprobs(data.get("logprobs"))
    elif data.get("object") == "response":
        _read_names(call, data)
        _read_whole_response(call, choice, data)


_WHOLE: Final = ("response.completed", "response.incomplete", "response.failed")


def _read_whole_response(call: Call, choice: Choice, whole: Mapping[str, Any]) -> None:
    logprobs: list[float] = []
    output = whole.get("output")
    for index, item in enumerate(output if isinstance(output, list) else ()):
        _read_item(call, choice, index, item)
        content = item.get("content") if isinstance(item, dict) else None
        for part in content if isinstance(content, list) else ():
            logprobs += _logprobs(part.get("logprobs") if isinstance(part, dict) else None)
    # What the deltas of a stream said is said again at its end.
    choice.logprobs = logprobs or choice.logprobs
    if tokens := _raw_tokens(whole.get("input_messages")):
        call.prompt_token_ids = _json(tokens)
    choice.token_ids = _raw_tokens(whole.get("output_messages")) or choice.token_ids


def _raw_tokens(messages: Any) -> list[int] | None:
    # Several messages mean that the server ran tools of its own in between: whose tokens are whose is not said.
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        return None
    tokens = messages[0].get("tokens")
    return tokens if messages[0].get("type") == "raw_message_tokens" and isinstance(tokens, list) else None


def _read_item(call: Call, choice: Choice, index: Any, item: Any) -> None:
    if not isinstance(item, dict) or not isinstance(index, int):
        return
    if item.get("type") in ("function_call", "custom_tool_call"):
        known = _tool(call, choice, index)
        known.id, known.name = _text(item.get("call_id")), _text(item.get("name"))
        known.pieces = [_text(item.get("arguments", item.get("input")))]


def _read_names(call: Call, data: Mapping[str, Any]) -> None:
    if not call.response_id:
        call.response_id = call.reported.response_id = _text(data.get("id"))
    if not call.fingerprint:
        call.fingerprint = _text(data.get("system_fingerprint"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


_json: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
