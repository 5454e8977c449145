"""The Vercel AI SDK (`ai.*`): the span of each request to a provider, within the span of `generateText` or `streamText`.

Source: AI SDK documentation, "Telemetry", span `ai.generateText.doGenerate` and its like; older names of attributes (SDK 3) are read too. The
outer span repeats messages and sums up usage: it has no `ai.prompt.messages` and is no call. Arguments of an answer are a raw string in one mode and a
value in another; the history has values. From version 7 on the SDK writes `gen_ai.*` too.
"""

from __future__ import annotations

from typing import Any

from spanloop_trainer.transform.flavours import Flavour, Message, chat
from spanloop_trainer.transform.flavours.gen_ai import array, broken
from spanloop_trainer.transform.flavours.values import compact

# Embeddings have `ai.value` and no messages. With `recordInputs: false` only the operation tells a request.
RECOGNISE = """
    (SpanAttributes['ai.prompt.messages'] != '' OR match(SpanAttributes['ai.operationId'], '\\\\.do(Generate|Stream)$'))
    AND SpanAttributes['gen_ai.input.messages'] = ''
"""

# Where the SDK finds no finish reason: the stream was cut, or the provider names none.
_NO_END = "('', 'unknown', 'other', 'error')"
# What an answer leaves; `recordOutputs: false` leaves a finish reason and none of these.
_ANSWER = ("text", "toolCalls", "object", "reasoning", "files")


def _either(*names: str) -> str:
    """SQL: the first of these attributes that the span has."""
    values = [f"SpanAttributes['{name}']" for name in names]
    return "multiIf(" + ", ".join(f"{value} != '', {value}" for value in values[:-1]) + f", {values[-1]})"


_RECORDED = " OR ".join(
    f"mapContains(SpanAttributes, 'ai.{side}.{name}')" for side in ("response", "result") for name in _ANSWER
)
COLUMNS = f"""
    SpanAttributes['ai.prompt.messages'] AS _input,
    {_either("ai.response.text", "ai.result.text", "ai.response.object", "ai.result.object")} AS _text,
    {_either("ai.response.toolCalls", "ai.result.toolCalls")} AS _calls,
    SpanAttributes['ai.response.reasoning'] AS _reasoning,
    SpanAttributes['ai.response.files'] AS _files,
    {_either("ai.response.finishReason", "ai.finishReason", "ai.response.finish_reason")} AS _finish,
    {array("_input")} AS input,
    if(_text = '' AND _calls = '' AND _reasoning = '' AND _files = '' AND _finish IN {_NO_END}, [], [concat(
        '{{"role":"assistant","finish_reason":', if(_finish IN {_NO_END}, 'null', toJSONString(_finish)),
        ',"parts":[', arrayStringConcat(arrayConcat(
            if(_reasoning = '', [], [concat('{{"type":"reasoning","content":', toJSONString(_reasoning), '}}')]),
            if(_text = '', [], [concat('{{"type":"text","content":', toJSONString(_text), '}}')]),
            arrayMap(call -> concat('{{"type":"tool-call",', substring(call, 2)),
                arrayFilter(call -> startsWith(call, '{{"'), JSONExtractArrayRaw(_calls))),
            JSONExtractArrayRaw(_files)), ','), ']}}')]) AS output,
    ({_RECORDED}) AS _answered,
    (_input != '' AND (_answered OR _finish = '')) AS has_content,
    ({broken("_input")} OR {broken("_calls")}
        OR (tools != '' AND NOT isValidJSON(tools))) AS invalid
"""


def prompt(raw: str) -> list[Message] | None:
    """One message of `ai.prompt.messages`."""
    if '"result":' in raw:
        try:
            value = chat.load(raw)
        except (ValueError, RecursionError):
            return None
        if isinstance(value, dict) and isinstance(value.get("content"), list):
            parts = [_result(part) for part in value["content"]]
            return chat.message({**value, "content": parts}, by_value=True)
    return chat.read(raw, by_value=True)


def _result(part: Any) -> Any:
    """Up to version 4 a tool's result has no `output` that says its kind: its JSON is what is sent, of a text too."""
    if (
        isinstance(part, dict)
        and part.get("type") == "tool-result"
        and "output" not in part
        and "result" in part
    ):
        return {**part, "result": compact(part["result"])}
    return part


def answer(raw: str) -> Message | None:
    """What `COLUMNS` put together of `ai.response.*`."""
    return chat.read_answer(raw, by_value=True)


VERCEL = Flavour(
    name="vercel",
    recognise=RECOGNISE,
    columns=COLUMNS,
    prompt=prompt,
    answer=answer,
    tools=chat.tools,
    facts={
        "tools": "SpanAttributes['ai.prompt.tools']",
        "request_model": _either("gen_ai.request.model", "ai.model.id"),
        "response_model": _either("gen_ai.response.model", "ai.response.model"),
        "response_id": _either("gen_ai.response.id", "ai.response.id"),
        "temperature": f"toFloat64OrNull({_either('gen_ai.request.temperature', 'ai.settings.temperature')})",
        "top_p": f"toFloat64OrNull({_either('gen_ai.request.top_p', 'ai.settings.topP')})",
        "max_tokens": "toInt64OrNull("
        + _either("gen_ai.request.max_tokens", "ai.settings.maxOutputTokens", "ai.settings.maxTokens")
        + ")",
        "seed": f"toInt64OrNull({_either('gen_ai.request.seed', 'ai.settings.seed')})",
        # Of a stream that was cut usage is NaN, or what the provider said at its beginning.
        "has_usage": "toInt64OrNull("
        + _either("gen_ai.usage.output_tokens", "ai.usage.outputTokens", "ai.usage.completionTokens")
        + ") IS NOT NULL AND (_finish NOT IN ('unknown', 'other', 'error') OR NOT endsWith(SpanAttributes['ai.operationId'], 'Stream'))",
        "finish_reasons": f"if(_finish IN {_NO_END}, [], [_finish])",
        "span_agent": _either("gen_ai.agent.name", "ai.telemetry.functionId"),
        "input_verbatim": "if(match(_input, '[0-9]{20}') AND startsWith(_input, '['), _input, '')",
    },
)
