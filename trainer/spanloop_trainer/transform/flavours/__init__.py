"""The conventions by which instrumentations record a model call: one module each, one canonical form out.

A module gives one `Flavour`, and this package's list names it. SQL slices what a span holds into raw messages, a function in Python
reads one raw message; it meets only distinct ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import polars as pl


class Message(NamedTuple):
    """One message in OpenAI chat form."""

    chat: str  # a JSON object
    key: str  # what prefix chains compare: `chat` without reasoning, and without what differs between call and history
    role: str
    text: str | None  # plain text; None: no text
    finish_reason: str | None = None  # of an answer; None: not recorded
    tool_calls: int = 0


# Facts of a call that are read alike whatever the flavour: column → SQL over a row of `otel_traces`. What a convention records
# elsewhere its flavour says under the same name. Strings: '' where absent; numbers: null.
FACTS: Mapping[str, str] = MappingProxyType(
    {
        "request_model": "SpanAttributes['gen_ai.request.model']",
        "response_model": "SpanAttributes['gen_ai.response.model']",
        "response_id": "SpanAttributes['gen_ai.response.id']",
        "temperature": "toFloat64OrNull(SpanAttributes['gen_ai.request.temperature'])",
        "top_p": "toFloat64OrNull(SpanAttributes['gen_ai.request.top_p'])",
        "max_tokens": "toInt64OrNull(SpanAttributes['gen_ai.request.max_tokens'])",
        "seed": "toInt64OrNull(SpanAttributes['gen_ai.request.seed'])",
        "has_usage": "SpanAttributes['gen_ai.usage.output_tokens'] != '' OR SpanAttributes['gen_ai.usage.completion_tokens'] != ''",
        "finish_reasons": "JSONExtract(SpanAttributes['gen_ai.response.finish_reasons'], 'Array(String)')",
        "span_agent": "multiIf(SpanAttributes['gen_ai.agent.name'] != '', SpanAttributes['gen_ai.agent.name'], "
        "SpanAttributes['traceloop.association.properties.lc_agent_name'])",
        # Whole arrays, where slicing by the engine would lose digits of a long integer; else ''.
        "input_verbatim": "''",
        "output_verbatim": "''",
        "tools": "''",
    }
)


@dataclass(frozen=True)
class Flavour:
    """How one convention is recognised, sliced and read.

    Attributes:
        name: as `explain` and the funnel say it.
        recognise: SQL condition over a row of `otel_traces`: the span is a model call of this convention. By attributes,
            never by span name.
        columns: SQL select list giving `input` and `output` (Array(String): raw messages of the prompt in order, system first;
            one raw answer a choice), `has_content` and `invalid` (Bool: a recorded JSON does not parse), and names that
            start with an underscore for its own use.
        prompt: one raw message of the prompt to none, one or several in OpenAI chat form; None where its shape is not of this
            convention (the call is then `invalid`).
        answer: one raw answer likewise.
        tools: the recorded tool definitions to OpenAI form (JSON); None where they do not parse.
        facts: those of `FACTS` that are recorded elsewhere.
        joined: SQL behind `FROM otel_traces`: a JOIN, where a part of the call is recorded in other rows.
        quick: for speed: reads a column of raw messages at once, as `prompt` and `answer` would (the fields of `Message`, one row
            each, in order; null `chat`: left to them). None: there is none.
    """

    name: str
    recognise: str
    columns: str
    prompt: Callable[[str], Sequence[Message] | None]
    answer: Callable[[str], Message | None]
    tools: Callable[[str], str | None]
    facts: Mapping[str, str] = field(default_factory=dict)
    joined: str = ""
    quick: Callable[[pl.Series], pl.DataFrame] | None = None

    def select_list(self) -> str:
        """`columns` and all facts."""
        facts = ",\n    ".join(f"({sql}) AS {name}" for name, sql in {**FACTS, **self.facts}.items())
        return f"{self.columns},\n    {facts}"


@cache
def flavours() -> tuple[Flavour, ...]:
    """All known flavours; the first that recognises a span reads it."""
    from spanloop_trainer.transform.flavours.gen_ai import GEN_AI

    return (GEN_AI,)
