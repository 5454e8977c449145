"""The conventions by which instrumentations record a model call: one module each, one canonical form out.

A module gives one `Flavour`, and this package's list names it. SQL slices what a span holds into raw messages, a function in Python
reads one raw message; it meets only distinct ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import polars as pl

# `gen_ai.operation.name` of what asks a model for an answer; embeddings, tools and agents have others (OpenTelemetry semantic
# conventions, GenAI spans).
MODEL_OPERATIONS = "('chat', 'text_completion', 'generate_content')"


class Flag(IntFlag):
    """What a recording does not say exactly about a call; its name in small letters is what a row carries (docs/flavours.md)."""

    MERGED_TOOL_RESULTS = 1  # results of several tool calls stand in one text and cannot be told apart
    RENAMED_ROLES = 2  # roles that no model API knows; the nearest known ones are shown
    CACHED = 4  # answered from a cache: no server saw it
    RENDERED_TOOL_RESULTS = 8  # a result was recorded as a value: its JSON is shown, not what was sent
    UNREAD_PARTS = 16  # parts of an unknown type, shown as recorded
    LEFT_OUT_CONTENT = 32  # an image, audio or file was sent that is not in the recording
    PAIRED_BY_ORDER = 64  # tool calls have ids of the record, not of the API; results are paired by order
    ONLY_TEXT = 128  # a text was recorded, and no messages: it is shown as one of the user's
    UNKNOWN_TOOLS = 256  # tools were called whose definitions are not recorded
    PARTIAL_PROMPT = 512  # tool calls and results of a history have no attributes: they may be missing
    EDITED_HISTORY = 1024  # the history is not what was said before, but goes on from it (docs/episodes.md)
    COMPACTED = 2048  # a history that was cut or summed up: a fork (docs/episodes.md)
    PROMPT_REPLACED = 4096  # the gateway sent another system prompt than `state` shows (docs/prompts.md)

    # Neither usage nor a finish reason is recorded: that the answer is whole is known from the span's status alone.
    END_NOT_RECORDED = 8192

    def names(self) -> list[str]:
        """In the order above."""
        return [str(flag.name).lower() for flag in self]


class Message(NamedTuple):
    """One message in OpenAI chat form."""

    chat: str  # a JSON object
    key: str  # what prefix chains compare: `chat` without reasoning, and without what differs between call and history
    role: str
    text: str | None  # plain text; None: no text
    finish_reason: str | None = None  # of an answer; None: not recorded
    tool_calls: int = 0
    flags: int = 0  # of `Flag`


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
        # Exact tokens that the exporter recorded inside the agent, by the gateway's names; empty: none.
        "own_prompt_ids": "JSONExtract(SpanAttributes['spanloop.prompt_token_ids'], 'Array(Int32)')",
        "own_completion_ids": "JSONExtract(SpanAttributes['spanloop.completion_token_ids'], 'Array(Array(Int32))')",
        "own_logprobs": "JSONExtract(SpanAttributes['spanloop.completion_logprobs'], 'Array(Array(Float64))')",
        # Of `Flag`, where attributes tell.
        "flags": "0",
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
        prepared: select list over a row of `otel_traces` that the rest may build on. The engine puts an alias's whole expression
            into each of its places; what stands here is worked out once.
        quick: for speed: reads a column of raw messages at once, as `prompt` and `answer` would (the fields of `Message`, one row
            each, in order, `flags` may be missing; null `chat`: left to them). None: there is none.
    """

    name: str
    recognise: str
    columns: str
    prompt: Callable[[str], Sequence[Message] | None]
    answer: Callable[[str], Message | None]
    tools: Callable[[str], str | None]
    facts: Mapping[str, str] = field(default_factory=dict)
    joined: str = ""
    prepared: str = ""
    quick: Callable[[pl.Series], pl.DataFrame] | None = None

    def select_list(self) -> str:
        """`columns` and all facts."""
        facts = ",\n    ".join(f"({sql}) AS {name}" for name, sql in {**FACTS, **self.facts}.items())
        return f"{self.columns},\n    {facts}"

    def spans(self) -> str:
        """What the select list is taken from."""
        return f"(SELECT *,\n{self.prepared}\nFROM otel_traces)" if self.prepared else "otel_traces"


@cache
def flavours() -> tuple[Flavour, ...]:
    """All known flavours; the first that recognises a span reads it."""
    from spanloop_trainer.transform.flavours.bodies import BODIES
    from spanloop_trainer.transform.flavours.events import EVENTS
    from spanloop_trainer.transform.flavours.gen_ai import GEN_AI
    from spanloop_trainer.transform.flavours.legacy import LEGACY
    from spanloop_trainer.transform.flavours.openinference import OPENINFERENCE
    from spanloop_trainer.transform.flavours.vercel import VERCEL

    return (GEN_AI, VERCEL, LEGACY, OPENINFERENCE, BODIES, EVENTS)
