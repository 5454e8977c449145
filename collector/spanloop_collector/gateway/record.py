"""What one chat call leaves behind: ids, token ids, log-probabilities and usage, read from answers as they pass.

The same walk takes out of an answer what the gateway asked for and the client did not (vLLM's token protocol:
`prompt_token_ids` at the top, `choices[i].token_ids`, `choices[i].logprobs.content[j].logprob`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# An upstream's error text goes into a span attribute: enough to act on, too little to carry a prompt along.
MAX_ERROR_CHARS = 300


@dataclass
class Choice:
    """One of the n answers, gathered over all chunks of a stream."""

    token_ids: list[int] = field(default_factory=list)
    # aligned with token_ids; shorter or longer where the back end did not keep the protocol
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class Call:
    """One chat call as the gateway saw it."""

    requested_model: str
    # NAME@VERSION where the registry named it; None where the name passed through as it was
    version: str | None = None
    # what the back end was asked for
    sent_model: str = ""
    start_ns: int = field(default_factory=time.time_ns)
    end_ns: int = 0
    # request parameters that decide the distribution; only those that the client set
    sampling: dict[str, float | int] = field(default_factory=dict)
    stream: bool = False
    status: int = 0  # HTTP status of the answer; 0: there was none
    response_id: str | None = None
    response_model: str | None = None
    prompt_token_ids: list[int] | None = None
    choices: dict[int, Choice] = field(default_factory=dict)
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    error_type: str | None = None

    def fail(self, kind: str, message: str) -> None:
        """Note a failure; the first one stays, later ones are its consequences."""
        if self.error is None:
            self.error, self.error_type = message[:MAX_ERROR_CHARS], kind

    @property
    def aligned(self) -> bool:
        """Whether every choice has one log-probability for each of its token ids."""
        return all(len(choice.logprobs) == len(choice.token_ids) for choice in self.choices.values())


@dataclass(frozen=True)
class Additions:
    """What the gateway added to a request, and so has to take out of the answer."""

    token_ids: bool = False
    logprobs: bool = False

    def __bool__(self) -> bool:
        return self.token_ids or self.logprobs


_SAMPLING = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "n")


def sampling_of(body: Mapping[str, Any]) -> dict[str, float | int]:
    """The numeric sampling parameters that a request sets."""
    return {key: body[key] for key in _SAMPLING if _is_number(body.get(key))}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def absorb(call: Call, answer: dict[str, Any], additions: Additions) -> None:
    """Read a whole answer or one chunk of a stream into `call`, and strip `additions` out of `answer` in place.

    Fields of unexpected types are left alone: a back end's peculiarity must not break the agent's call.
    """
    if call.response_id is None and isinstance(answer.get("id"), str) and answer["id"]:
        call.response_id = answer["id"]
    if call.response_model is None and isinstance(answer.get("model"), str) and answer["model"]:
        call.response_model = answer["model"]
        if call.version is not None and call.response_model != call.version:
            # A server that takes any name answered as another model: what it said must not be learnt as that version's.
            call.version = None
    if isinstance(answer.get("prompt_token_ids"), list) and call.prompt_token_ids is None:
        call.prompt_token_ids = answer["prompt_token_ids"]
    if additions.token_ids:
        answer.pop("prompt_token_ids", None)
    usage = answer.get("usage")
    if isinstance(usage, dict):
        call.input_tokens = _integer(usage.get("prompt_tokens"), call.input_tokens)
        call.output_tokens = _integer(usage.get("completion_tokens"), call.output_tokens)
    choices = answer.get("choices")
    for position, choice in enumerate(choices if isinstance(choices, list) else ()):
        if isinstance(choice, dict):
            _absorb_choice(call, position, choice, additions)
    if answer.get("error"):
        call.fail("upstream_error", error_text(answer["error"]))


def _absorb_choice(call: Call, position: int, choice: dict[str, Any], additions: Additions) -> None:
    index = _integer(choice.get("index"), position)
    assert index is not None
    seen = call.choices.get(index)
    if seen is None:
        seen = call.choices[index] = Choice()
    token_ids = choice.get("token_ids")
    if isinstance(token_ids, list):
        seen.token_ids += token_ids
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if isinstance(content, list):
        seen.logprobs += [
            entry["logprob"]
            for entry in content
            if isinstance(entry, dict) and _is_number(entry.get("logprob"))
        ]
    if choice.get("finish_reason"):
        seen.finish_reason = str(choice["finish_reason"])
    if additions.token_ids:
        choice.pop("token_ids", None)
    if additions.logprobs and "logprobs" in choice:
        choice["logprobs"] = None  # what servers answer when nobody asked for them


def _integer(value: object, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def error_text(error: object) -> str:
    """The message of an OpenAI-shaped error object, or the object as text."""
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error["message"])
    return str(error)
