"""`SPANLOOP_CAPTURE_TOKENS=true`: asks model servers for token ids and log-probabilities, and takes no for an answer.

A server that does not know a field may refuse the whole request (OpenAI: 400, others: 422). Then the request is sent once
more without what was refused, and that server and model are not asked for it again in this process. What the agent set
itself is never changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

VARIABLE: Final = "SPANLOOP_CAPTURE_TOKENS"
YES: Final = ("true", "1", "yes", "on")
_LOGPROBS_OF_RESPONSES: Final = "message.output_text.logprobs"
# Each field that may be asked for, and how a refusal names it: "logprobs are not supported with this model".
_NAMES: Final = {
    "return_token_ids": ("return_token_ids",),
    "logprobs": ("logprob",),
    "enable_response_messages": ("enable_response_messages",),
    "include": ("logprob", "include"),
}
# Refusals of a request's form; 403 is how OpenAI refuses log-probabilities to some accounts.
_REFUSALS: Final = (400, 403, 422)

# (base URL, model) → fields that it refused; and those that have taken all that they were asked for since
_refused: dict[tuple[str, str], frozenset[str]] = {}
_took: set[tuple[str, str]] = set()


def wanted() -> bool:
    """Whether the user asks for tokens."""
    return os.environ.get(VARIABLE, "").strip().lower() in YES


def additions(path: str, body: Mapping[str, Any], server: tuple[str, str]) -> dict[str, Any]:
    """The fields to add to a request; none that the agent set.

    Args:
        path: of the endpoint, ending with `/chat/completions`, `/completions` or `/responses`.
        body: the request as the agent made it.
        server: base URL and model.
    """
    fields: dict[str, Any]
    if path.endswith("/responses"):
        fields = {"enable_response_messages": True}
        include = body.get("include")
        if include is None or (isinstance(include, list) and _LOGPROBS_OF_RESPONSES not in include):
            fields["include"] = [*(include or ()), _LOGPROBS_OF_RESPONSES]
    else:
        fields = {"return_token_ids": True}
        if path.endswith("/chat/completions"):  # /completions counts alternatives there
            fields["logprobs"] = True
    refused = _refused.get(server, frozenset())
    return {
        name: value
        for name, value in fields.items()
        if name not in refused and (name not in body or name == "include")
    }


def strip(data: dict[str, Any], asked: Mapping[str, Any]) -> None:
    """Take what only we asked for out of an answer, or an event of a stream: the agent sees what it would have seen."""
    if "return_token_ids" in asked:
        data.pop("prompt_token_ids", None)
    choices = data.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            if "return_token_ids" in asked:
                choice.pop("token_ids", None)
                choice.pop("prompt_token_ids", None)
            if "logprobs" in asked and "logprobs" in choice:
                choice["logprobs"] = None
    whole = data if data.get("object") == "response" else data.get("response")
    if isinstance(whole, dict):
        _strip_response(whole, asked)
    if "include" in asked:
        _empty_logprobs(data)  # of an event with a piece of text
        _strip_item(data.get("item"))
        _empty_logprobs(data.get("part"))


def _strip_response(whole: dict[str, Any], asked: Mapping[str, Any]) -> None:
    if "enable_response_messages" in asked:
        whole.pop("input_messages", None)
        whole.pop("output_messages", None)
    output = whole.get("output")
    if "include" in asked and isinstance(output, list):
        for item in output:
            _strip_item(item)


def _strip_item(item: Any) -> None:
    content = item.get("content") if isinstance(item, dict) else None
    for part in content if isinstance(content, list) else ():
        _empty_logprobs(part)


def _empty_logprobs(part: Any) -> None:
    if isinstance(part, dict) and isinstance(part.get("logprobs"), list):
        part["logprobs"] = []


def refused_by(error: Exception, asked: Mapping[str, Any], server: tuple[str, str]) -> frozenset[str]:
    """Which of the fields that were added the server's error may be about; empty: it is about something else.

    Those that it names. Some servers give no reason: it may be any, unless the server has taken them before.
    """
    if not asked or getattr(error, "status_code", None) not in _REFUSALS:
        return frozenset()
    text = f"{error} {getattr(error, 'body', '')}".lower()
    named = frozenset(name for name in asked if any(word in text for word in _NAMES[name]))
    return named or (frozenset() if server in _took else frozenset(asked))


def settled(server: tuple[str, str], given_up: frozenset[str]) -> None:
    """A request went through: that server and model are not asked for `given_up` again, and took the rest."""
    if given_up:
        _refused[server] = _refused.get(server, frozenset()) | given_up
    _took.add(server)
