"""What one call to a model leaves behind: ids, token ids, log-probabilities and usage, gathered from answers as they pass."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

# An upstream's error text goes into a span attribute: enough to act on, too little to carry a prompt along.
MAX_ERROR_CHARS = 300
# It is cut to that once secrets are out of it: half of one would not be recognised.
MAX_UNREAD_CHARS = 20_000


@dataclass(slots=True)
class Choice:
    """One of the n answers, gathered over all chunks of a stream."""

    token_ids: list[int] = field(default_factory=list)
    # aligned with token_ids; shorter or longer where the back end did not keep the protocol
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    # what was said, in pieces; kept only where token ids would say it again
    text: list[str] = field(default_factory=list)


class PromptUse(Protocol):
    """What became of a call's system prompt."""

    @property
    def version(self) -> str | None:
        """NAME@VERSION that it runs with; None: no prompt that we know, or not yet."""

    @property
    def requested(self) -> str | None:
        """NAME@VERSION that the agent sent, where another one was put in its place."""

    @property
    def skipped(self) -> str | None:
        """Why the one that the registry names was not put in its place."""


@dataclass(slots=True)
class Call:
    """One call as the gateway saw it."""

    requested_model: str
    # "chat", "text_completion", "embeddings": gen_ai.operation.name
    operation: str = "chat"
    # NAME@VERSION where the registry named it; None where the name passed through as it was
    version: str | None = None
    # None: the call was not part of a canary; else whether the candidate's share took it
    canary: bool | None = None
    # what the back end was asked for
    sent_model: str = ""
    start_ns: int = field(default_factory=time.time_ns)
    end_ns: int = 0
    # request parameters as span attributes, as they were sent; only those that somebody set
    sampling: dict[str, Any] = field(default_factory=dict)
    stream: bool = False
    status: int = 0  # HTTP status of the answer; 0: there was none
    retries: int = 0  # attempts after the first one
    response_id: str | None = None
    response_model: str | None = None
    prompt_token_ids: list[int] | None = None
    choices: dict[int, Choice] = field(default_factory=dict)
    input_tokens: int | None = None
    output_tokens: int | None = None
    # which system prompt it ran with; None: none, or nobody looks
    prompt: PromptUse | None = None
    error: str | None = None
    error_type: str | None = None

    def fail(self, kind: str, message: str) -> None:
        """Note a failure; the first one stays, later ones are its consequences."""
        if self.error is None:
            self.error, self.error_type = message[:MAX_UNREAD_CHARS], kind

    def choice(self, index: int) -> Choice:
        """The answer of that index; made when it is first seen."""
        found = self.choices.get(index)
        if found is None:
            found = self.choices[index] = Choice()
        return found

    def answered_by(self, model: object) -> None:
        """Note the model that the answer names."""
        if self.response_model is None and isinstance(model, str) and model:
            self.response_model = model
            if self.version is not None and model != self.version:
                # A server that takes any name answered as another model: what it said must not be learnt as that version's.
                self.version = None

    @property
    def finished(self) -> bool:
        """Whether every answer that has begun said why it ended."""
        return bool(self.choices) and all(choice.finish_reason for choice in self.choices.values())

    @property
    def aligned(self) -> bool:
        """Whether every choice has one log-probability for each of its token ids."""
        return all(len(choice.logprobs) == len(choice.token_ids) for choice in self.choices.values())


def integer(value: object, otherwise: int | None = None) -> int | None:
    """`value` where it is a whole number."""
    return value if type(value) is int else otherwise


def is_number(value: object) -> bool:
    """Whether it is a number; JSON's true is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def error_text(error: object) -> str:
    """The message of an OpenAI-shaped error object, or the object as text."""
    if isinstance(error, Mapping) and isinstance(error.get("message"), str):
        return str(error["message"])
    return str(error)
