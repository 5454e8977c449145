"""Traceloop before messages were JSON: `gen_ai.prompt.N.*` and `gen_ai.completion.N.*`, tools in `llm.request.functions.N.*`.

Written by OpenLLMetry up to 0.4x (openai, anthropic, langchain, ollama, bedrock, …) and by what followed it; 0.47 was read for the
details. `docs/flavours.md` lists what it does not record.
"""

from __future__ import annotations

import json

import orjson

from spanloop_trainer.transform.flavours import MODEL_OPERATIONS, Flag, Flavour, Message, chat
from spanloop_trainer.transform.flavours.chat import Json
from spanloop_trainer.transform.flavours.numbered import Unreadable, listed, numbered, value_of

# Embeddings and rerankings number their inputs in the same way, and have another type.
RECOGNISE = f"""
    SpanAttributes['llm.request.type'] IN ('chat', 'completion')
    OR (SpanAttributes['llm.request.type'] = ''
        AND (SpanAttributes['gen_ai.operation.name'] = '' OR SpanAttributes['gen_ai.operation.name'] IN {MODEL_OPERATIONS})
        AND SpanAttributes['openinference.span.kind'] = ''
        AND (mapContains(SpanAttributes, 'gen_ai.prompt.0.role') OR mapContains(SpanAttributes, 'gen_ai.prompt.0.content')
            OR mapContains(SpanAttributes, 'gen_ai.prompt.0.user') OR mapContains(SpanAttributes, 'gen_ai.completion.0.role')
            OR mapContains(SpanAttributes, 'gen_ai.completion.0.content')))
"""

PREPARED = ",".join(
    numbered(name, prefix)
    for name, prefix in (
        ("prompt", "gen_ai.prompt"), ("completion", "gen_ai.completion"), ("function", "llm.request.functions"),
    )
)  # fmt: skip

# Anthropic's thoughts have a number of their own, before that of the answer which they belong to.
COLUMNS = f"""
    arrayMap(
        of_one -> NOT (length(of_one) > 0 AND of_one[1] = 'thinking'),
        arrayMap(n -> if(n = 1, [''], [{value_of("role", "_completion[n - 1]")}]), arrayEnumerate(_completion))
    ) AS _begins,
    arrayMap(message -> concat('[', message, ']'), _prompt_json) AS input,
    arrayMap(
        of_one -> concat('[', arrayStringConcat(of_one, ','), ']'),
        arraySplit((message, begins) -> begins, _completion_json, _begins)
    ) AS output,
    notEmpty(_prompt) AS has_content,
    NOT (_prompt_whole AND _completion_whole AND _function_whole) AS invalid
"""


# What `json.dumps` made of content that was no text.
_PARTS = frozenset(
    (
        "text",
        "image_url",
        "image",
        "input_audio",
        "file",
        "document",
        "refusal",
        "thinking",
        "redacted_thinking",
        "tool_use",
    )
) | {"tool_result", "input_text", "output_text", "input_image"}
# Bedrock's name their type by their one key.
_KEYED = frozenset(("text", "toolUse", "toolResult", "image", "document", "video", "reasoningContent"))


def content(text: str | None, role: str) -> object:
    """What was sent as content: a list of parts was written as JSON text. A tool's result stays text: it often is JSON itself."""
    if text is None or role == "tool":
        return text
    if text in ('""', "[]", "null"):  # LangChain's empty content, Anthropic's without its tool calls
        return None
    if not text.startswith("[{"):
        return text
    try:
        parts = json.loads(text)
    except ValueError:
        return text
    known = all(
        isinstance(part, dict) and (part.get("type") in _PARTS or (part and part.keys() <= _KEYED))
        for part in parts
    )
    return parts if known else text


def _thought(text: str) -> str:
    """Of the Responses API: its summary as JSON."""
    if not text.startswith("[{"):
        return text
    try:
        return "".join(str(part.get("text") or "") for part in json.loads(text))
    except (ValueError, AttributeError):
        return text


def _message(flat: dict[str, str], role: str) -> Json:
    """One numbered message as a chat API has it.

    Args:
        role: where none is recorded.
    """
    # A prompt of the older completions APIs.
    text = flat.get("content", flat.get("user"))
    recorded = flat.get("role", role)
    value: Json = {
        "role": role if recorded in ("unknown", "") else recorded,
        "content": content(text, recorded),
        **{key: flat[key] for key in ("tool_call_id", "refusal", "finish_reason") if key in flat},
    }
    if thought := flat.get("reasoning", flat.get("reasoning_content")):
        value["reasoning_content"] = _thought(thought)
    if calls := listed(flat, "tool_calls"):
        value["tool_calls"] = calls
    return value


def prompt(raw: str) -> list[Message] | None:
    """One message of the prompt."""
    (flat,) = orjson.loads(raw)
    try:
        return chat.message(_message(flat, "user" if "user" in flat else ""), by_value=True)
    except Unreadable:
        return None


def answer(raw: str) -> Message | None:
    """One answer, with the thoughts before it."""
    *thoughts, flat = orjson.loads(raw)
    try:
        value = _message(flat, "assistant")
    except Unreadable:
        return None
    if thoughts:
        value["reasoning_content"] = "".join(thought.get("content", "") for thought in thoughts)
        value.setdefault("finish_reason", thoughts[0].get("finish_reason"))
    read = chat.message(value, answering=True, by_value=True)
    return read[0] if read is not None and len(read) == 1 else None


def tools(raw: str) -> str | None:
    """`llm.request.functions.N.*`, in order, as OpenAI's `tools`."""
    definitions = []
    for flat in orjson.loads(raw):
        definition: Json = {key: flat[key] for key in ("name", "description") if key in flat}
        schema = flat.get("parameters", flat.get("input_schema"))
        if schema is not None:
            try:
                definition["parameters"] = json.loads(schema)
            except ValueError:
                return None
        definitions.append(definition)
    return chat.tools(chat.dump(definitions))


LEGACY = Flavour(
    name="legacy",
    recognise=RECOGNISE,
    columns=COLUMNS,
    prepared=PREPARED,
    prompt=prompt,
    answer=answer,
    tools=tools,
    facts={
        # The Responses API's items of other kinds than messages are in no attribute of the prompt.
        "flags": f"""if(SpanAttributes['llm.request.type'] = '' AND startsWith(SpanAttributes['gen_ai.response.id'], 'resp_')
            AND arrayExists(of_one -> {value_of("role")} = 'assistant', _prompt), {int(Flag.PARTIAL_PROMPT)}, 0)""",
        "tools": "if(empty(_function), '', concat('[', arrayStringConcat(_function_json, ','), ']'))",
        "has_usage": "SpanAttributes['gen_ai.usage.completion_tokens'] != '' OR SpanAttributes['gen_ai.usage.output_tokens'] != ''",
        "finish_reasons": """if(SpanAttributes['gen_ai.response.finish_reason'] = '',
            JSONExtract(SpanAttributes['gen_ai.response.finish_reasons'], 'Array(String)'),
            [SpanAttributes['gen_ai.response.finish_reason']])""",
    },
)
