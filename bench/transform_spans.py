"""Spans for `bench/transform.py`, made by the engine itself: ten million in two minutes, and the same ones every time.

One span in four is a model call; twelve spans are an episode of three turns: every second one a trace below an agent's span, the
others plain loops, three traces whose spans are all roots. The rest are steps and tools with a short text.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

EPISODE_SPANS, TURNS = 12, 3
FIRST = datetime(2026, 3, 1, tzinfo=UTC)
# So that a store holds many days, as a real one does.
SPANS_A_DAY = 1_000_000
_BLOCK = 500_000

_SYSTEM = "You are an agent with a calculator. " * 5

# `e`: episode, `turn`, `k`: 3 for a model call; `at`: nanoseconds.
_SPANS = """
INSERT INTO otel_traces (Timestamp, TraceId, SpanId, ParentSpanId, SpanName, SpanKind, ServiceName, ResourceAttributes,
    SpanAttributes, Duration, StatusCode)
WITH
    number AS n, intDiv(n, 12) AS e, intDiv(n % 12, 4) AS turn, n % 4 AS k, e % 2 = 0 AS nested,
    lower(hex(sipHash128('trace', e, if(nested, 0, turn)))) AS trace,
    (role, parts) -> concat('{"role": "', role, '", "parts": [', parts, ']}') AS message,
    text -> concat('{"type": "text", "content": "', text, '"}') AS said,
    t -> concat('{"type": "tool_call", "id": "call_', toString(e), '_', toString(t), '", "name": "add", "arguments": {"a": ',
        toString(e), ', "b": ', toString(t), '}}') AS called,
    t -> concat('{"type": "tool_call_response", "id": "call_', toString(e), '_', toString(t), '", "response": "',
        toString(e + t), '"}') AS result,
    concat('[', message('system', said({system:String})), ', ', message('user', said(concat('Add up ', toString(e), ', please.'))),
        arrayStringConcat(arrayMap(t -> concat(', ', message('assistant', called(t)), ', ', message('tool', result(t))),
            range(turn))), ']') AS prompt,
    concat('[{"role": "assistant", "parts": [', if(turn = 2, said(toString(e)), called(turn)), '], "finish_reason": "',
        if(turn = 2, 'stop', 'tool_calls'), '"}]') AS answer
SELECT
    fromUnixTimestamp64Nano({first:Int64} + toInt64(e) * {step:Int64} + toInt64(n % 12) * 1000),
    trace,
    lower(hex(sipHash64('span', n))),
    multiIf(NOT nested OR n % 12 = 0, '', lower(hex(sipHash64('span', e * 12)))),
    multiIf(k = 3, 'chat small', nested AND n % 12 = 0, 'invoke_agent adder', 'execute_tool add'),
    if(k = 3, 'Client', 'Internal'),
    'bench',
    map('service.name', 'bench', 'service.instance.id', concat('bench-', toString(e % 8))),
    multiIf(
        k = 3, map('gen_ai.operation.name', 'chat', 'gen_ai.request.model', 'small', 'gen_ai.response.model', 'small@1',
            'gen_ai.response.id', concat('chatcmpl-', toString(n)), 'gen_ai.usage.output_tokens', '20',
            'gen_ai.tool.definitions', '[{"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}]',
            'gen_ai.input.messages', prompt, 'gen_ai.output.messages', answer),
        nested AND n % 12 = 0, map('gen_ai.operation.name', 'invoke_agent', 'gen_ai.agent.name', 'adder'),
        map('gen_ai.operation.name', 'execute_tool', 'gen_ai.tool.name', 'add', 'gen_ai.tool.call.arguments',
            concat('{"a": ', toString(e), ', "b": ', toString(turn), '}'), 'gen_ai.tool.call.result', toString(e + turn))),
    5000,
    'Unset'
FROM numbers({begin:UInt64}, {count:UInt64})
"""

# Traces of `spans` spans: a root, then each span below the root (flat) or below the one before it (nested); every fourth is a call.
_TRACES = """
INSERT INTO otel_traces (Timestamp, TraceId, SpanId, ParentSpanId, SpanName, ServiceName, SpanAttributes, Duration, StatusCode)
WITH intDiv(number, {spans:UInt64}) AS trace, number % {spans:UInt64} AS place
SELECT
    fromUnixTimestamp64Nano({first:Int64} + toInt64(number) * 1000),
    lower(hex(sipHash128('trace', trace))),
    lower(hex(sipHash64('span', number))),
    if(place = 0, '', lower(hex(sipHash64('span', if({nested:Bool}, number - 1, number - place))))),
    multiIf(place = 0, 'agent', place % 4 = 3, 'openai.chat.completion', 'step'),
    'bench',
    multiIf(
        place = 0, map('gen_ai.operation.name', 'invoke_agent', 'gen_ai.agent.name', 'adder'),
        place % 4 = 3, map('gen_ai.operation.name', 'chat', 'gen_ai.response.model', 'small', 'gen_ai.usage.output_tokens', '20',
            'gen_ai.response.id', toString(number),
            'gen_ai.input.messages', concat('[{"role": "user", "parts": [{"type": "text", "content": "', toString(place), '"}]}]'),
            'gen_ai.output.messages', '[{"role": "assistant", "parts": [{"type": "text", "content": "ok"}], "finish_reason": "stop"}]'),
        map()),
    if(place = 0, {spans:UInt64} * 1000, 500),
    'Unset'
FROM numbers({spans:UInt64} * {traces:UInt64})
"""


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000


def fill(client: Any, spans: int) -> datetime:
    """Insert `spans` (a multiple of 12) spans; the end of their window."""
    step = 86_400_000_000_000 // (SPANS_A_DAY // EPISODE_SPANS)
    for begin in range(0, spans, _BLOCK):
        client.command(
            _SPANS,
            parameters={
                "first": _nanoseconds(FIRST),
                "step": step,
                "system": _SYSTEM,
                "begin": begin,
                "count": min(_BLOCK, spans - begin),
            },
        )
    return FIRST + timedelta(days=spans // SPANS_A_DAY + 1)


def fill_trace(client: Any, spans: int, traces: int, *, nested: bool) -> None:
    """Insert traces of `spans` spans each."""
    parameters = {"first": _nanoseconds(FIRST), "spans": spans, "traces": traces, "nested": nested}
    client.command(_TRACES, parameters=parameters)
