"""The conventions by which instrumentations record a model call: one module each, one canonical form out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Message(NamedTuple):
    """One recorded message in OpenAI chat form; a recorded message with several tool results makes several."""

    chat: str  # JSON objects, joined by commas
    key: str  # what prefix chains compare: chat without reasoning
    role: str  # of the first object
    text: str | None  # plain text; None: no text
    finish_reason: str | None  # of an answer; None: not recorded
    tool_calls: int


@dataclass(frozen=True)
class Flavour:
    """How one convention is recognised, sliced and read.

    Attributes:
        recognise: SQL condition over a row of `otel_traces`; by attributes, never by span name.
        columns: SQL select list giving `input` and `output` (Array(String) of raw messages, system first),
            `input_verbatim` and `output_verbatim` (the whole array where slicing would lose digits, else ''),
            `tools` (String), `has_content` and `invalid` (Bool).
        message: one raw message to OpenAI chat form; None where its shape is not of this convention.
        tools: the recorded tool definitions to OpenAI form (JSON); None where they do not parse.
    """

    name: str
    recognise: str
    columns: str
    message: Callable[[str], Message | None]
    tools: Callable[[str], str | None]


def flavours() -> tuple[Flavour, ...]:
    """All known flavours, the first that recognises a span reads it."""
    from spanloop_trainer.transform.flavours.gen_ai import GEN_AI

    return (GEN_AI,)
