"""`/responses`: one answer made of items, its stream a sequence of typed events.

vLLM gives token ids where `enable_response_messages` is asked for: `input_messages` and `output_messages`, each one
`raw_message_tokens`; several of them mean that it ran tools of its own in between, and whose tokens are whose is not said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from spanloop_collector.gateway.apis.base import NOTHING, VLLM, Api, logprobs_of, names
from spanloop_collector.gateway.jsonedit import replaced
from spanloop_collector.gateway.record import Call, Choice, error_text, integer

_INCLUDE: Final = "message.output_text.logprobs"
_MESSAGES: Final = "enable_response_messages"
_NEWS: Final = re.compile(
    rb'"type"\s*+:\s*+"(?:response\.(?:created|completed|incomplete|failed|cancelled)|error)"'
)


class Responses(Api):
    """`POST /v1/responses`."""

    path: ClassVar[str] = "/responses"
    operation: ClassVar[str] = "chat"
    parameters: ClassVar[Mapping[str, str]] = {
        "temperature": "gen_ai.request.temperature",
        "top_p": "gen_ai.request.top_p",
        "max_output_tokens": "gen_ai.request.max_tokens",
        "seed": "gen_ai.request.seed",
    }
    sampling: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "temperature": ("temperature",),
        "top_p": ("top_p",),
        "max_tokens": ("max_output_tokens",),
    }

    def token_fields(self, body: Mapping[str, Any], owner: str) -> Mapping[str, Any]:
        """`enable_response_messages` and log-probabilities of the text; of vLLM alone."""
        if owner != VLLM or body.get("background"):
            return NOTHING
        fields: dict[str, Any] = {} if body.get(_MESSAGES) else {_MESSAGES: True}
        include = body.get("include")
        if include is None or (isinstance(include, list) and _INCLUDE not in include):
            fields["include"] = [*(include or ()), _INCLUDE]
        return fields

    def gives_tokens(self, body: Mapping[str, Any]) -> bool:
        """Whether ids or log-probabilities are asked for."""
        include = body.get("include")
        return bool(body.get(_MESSAGES)) or (isinstance(include, list) and _INCLUDE in include)

    def absorb(self, call: Call, document: dict[str, Any], *, text: bool = False) -> None:
        """Read a whole answer or one event."""
        choice = call.choice(0)
        kind = document.get("type")
        whole = document.get("response")
        if isinstance(kind, str) and isinstance(whole, dict):
            names(call, whole)
            if kind in ("response.completed", "response.incomplete", "response.failed", "response.cancelled"):
                _read_whole(call, choice, whole, text=text)
        elif kind == "response.output_text.delta":
            choice.logprobs += logprobs_of(document.get("logprobs"))
        elif kind == "error":
            call.fail("upstream_error", error_text(document.get("error") or document))
        elif document.get("object") == "response":
            names(call, document)
            _read_whole(call, choice, document, text=text)
        elif document.get("error"):
            call.fail("upstream_error", error_text(document["error"]))
        if text and isinstance(delta := document.get("delta"), str):
            choice.text.append(delta)

    def stripped(
        self,
        raw: bytes,
        document: dict[str, Any],
        added: Mapping[str, Any],
        owner: str,  # noqa: ARG002  # what another endpoint needs
    ) -> bytes | None:
        """As vLLM writes it where nobody asked: messages are null, and log-probabilities an empty list, null in the whole."""
        text: bytes | None = raw
        whole = _whole(document)
        if _MESSAGES in added and whole is not None:
            for key in ("input_messages", "output_messages"):
                if text is not None and whole.get(key) is not None:
                    text = replaced(text, key, [whole], b"null")
        if "include" in added and text is not None:
            held = [part for part in _parts(document) if "logprobs" in part]
            if any(part["logprobs"] for part in held):
                text = replaced(text, "logprobs", held, b"[]" if whole is None else b"null")
        return text

    def strip(
        self,
        document: dict[str, Any],
        added: Mapping[str, Any],
        owner: str,  # noqa: ARG002  # what another endpoint needs
    ) -> None:
        """The same on the document."""
        whole = _whole(document)
        if _MESSAGES in added and whole is not None:
            for key in ("input_messages", "output_messages"):
                if key in whole:
                    whole[key] = None
        if "include" in added:
            for part in _parts(document):
                if part.get("logprobs"):
                    part["logprobs"] = [] if whole is None else None

    def has_news(self, event: bytes) -> bool:
        """Whether an event holds the response itself, or an error."""
        return _NEWS.search(event) is not None


def _whole(document: dict[str, Any]) -> dict[str, Any] | None:
    if document.get("object") == "response":
        return document
    inner = document.get("response")
    return inner if isinstance(inner, dict) else None


def _parts(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Everything that holds log-probabilities, in the order of the text: an event's piece, a part, an item's parts."""
    if "delta" in document or "text" in document:
        yield document
    if isinstance(part := document.get("part"), dict):
        yield part
    items = [document.get("item")]
    if (whole := _whole(document)) is not None and isinstance(output := whole.get("output"), list):
        items += output
    for item in items:
        content = item.get("content") if isinstance(item, dict) else None
        for inner in content if isinstance(content, list) else ():
            if isinstance(inner, dict):
                yield inner


def _read_whole(call: Call, choice: Choice, whole: dict[str, Any], *, text: bool) -> None:
    output = whole.get("output")
    items = [item for item in (output if isinstance(output, list) else ()) if isinstance(item, dict)]
    logprobs: list[float] = []
    said: list[str] = []
    for item in items:
        content = item.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                logprobs += logprobs_of(part.get("logprobs"))
                said.append(str(part.get("text") or ""))
        said += [str(item[key]) for key in ("arguments", "input") if isinstance(item.get(key), str)]
    # What the deltas of a stream said is said again at its end.
    choice.logprobs = logprobs or choice.logprobs
    if text:
        choice.text = said
    call.prompt_token_ids = _raw_tokens(whole.get("input_messages")) or call.prompt_token_ids
    choice.token_ids = _raw_tokens(whole.get("output_messages")) or choice.token_ids
    usage = whole.get("usage")
    if isinstance(usage, dict):
        call.input_tokens = integer(usage.get("input_tokens"), call.input_tokens)
        call.output_tokens = integer(usage.get("output_tokens"), call.output_tokens)
    status = whole.get("status")
    if status == "completed":
        tools = any(str(item.get("type")).endswith("_call") for item in items)
        choice.finish_reason = "tool_calls" if tools else "stop"
    elif status == "incomplete":
        details = whole.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        choice.finish_reason = "length" if reason == "max_output_tokens" else str(reason or "incomplete")
    elif status in ("failed", "cancelled"):
        call.fail("upstream_error", error_text(whole.get("error") or f"the response is {status}"))


def _raw_tokens(messages: object) -> list[int] | None:
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        return None
    tokens = messages[0].get("tokens")
    return tokens if messages[0].get("type") == "raw_message_tokens" and isinstance(tokens, list) else None
