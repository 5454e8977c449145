"""GenAI messages that are not on the span: in log events, in span events, or in an attribute `events`.

Sources: OpenTelemetry semantic conventions, GenAI events: `gen_ai.client.inference.operation.details` (since 1.37) and `gen_ai.user.message`,
`gen_ai.choice` and their like (up to 1.36: openai-node, openai-v2 for Python); span events `gen_ai.content.prompt` and `gen_ai.content.completion`
(up to 1.27). Log events belong to a span by trace and span id. `events` is Pydantic AI's attribute of version 1.
A call without recorded content anywhere is of this convention too, so that it is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from spanloop_trainer.transform.flavours import Flavour, Message, chat, quick
from spanloop_trainer.transform.flavours.chat import Json
from spanloop_trainer.transform.flavours.gen_ai import (
    OPERATIONS,
    TOOLS,
    array,
    broken,
    instructions,
    only_text,
)

RECOGNISE = f"""
    SpanAttributes['gen_ai.input.messages'] = '' AND SpanAttributes['ai.prompt.messages'] = '' AND ({OPERATIONS})
"""

# An event is a tuple: name, body, and what a details event has: input, output, instructions, tools.
COLUMNS = f"""
    arrayFilter(event -> startsWith(event.1, 'gen_ai.') AND NOT startsWith(event.1, 'gen_ai.evaluation'), arrayMap(
        (name, attributes) -> (name,
            if(attributes['gen_ai.event.content'] != '', attributes['gen_ai.event.content'],
                concat('{{"attributes":', toJSONString(attributes), '}}')),
            concat(attributes['gen_ai.input.messages'], attributes['gen_ai.prompt']),
            concat(attributes['gen_ai.output.messages'], attributes['gen_ai.completion']),
            attributes['gen_ai.system_instructions'], attributes['gen_ai.tool.definitions']),
        Events.Name, Events.Attributes)) AS _span_events,
    arrayFilter(event -> startsWith(event.1, 'gen_ai.'), arrayMap(
        body -> (JSONExtractString(body, 'event.name'), body, '', '', '', ''),
        JSONExtractArrayRaw(SpanAttributes['events']))) AS _listed_events,
    multiIf(notEmpty(_span_events), _span_events, notEmpty(_listed_events), _listed_events, _log_events) AS _events,
    -- Structured attributes were once in the body.
    arrayMap(event -> if(event.3 = '' AND event.4 = '' AND endsWith(event.1, '.details'), (event.1, event.2,
        JSONExtractRaw(event.2, 'gen_ai.input.messages'), JSONExtractRaw(event.2, 'gen_ai.output.messages'),
        JSONExtractRaw(event.2, 'gen_ai.system_instructions'), JSONExtractRaw(event.2, 'gen_ai.tool.definitions')), event),
        _events) AS _details,
    -- Bedrock's results stand in the user's message, and again in events of their own.
    arrayMap(event -> event.2, arrayFilter(event -> event.1 = 'gen_ai.user.message' AND position(event.2, '"toolResult"') > 0, _events))
        AS _results,
    arrayLast(event -> event.3 != '', _details).3 AS _input,
    SpanAttributes['gen_ai.output.messages'] AS _own_output,
    if(_own_output != '', _own_output, arrayLast(event -> event.4 != '', _details).4) AS _output,
    SpanAttributes['gen_ai.system_instructions'] AS _own_instructions,
    if(_own_instructions != '', _own_instructions, arrayLast(event -> event.5 != '', _details).5) AS _instructions,
    arrayMap(event -> concat('{{"event":', toJSONString(event.1), ',"body":',
        if(startsWith(event.2, '{{') AND isValidJSON(event.2), event.2, toJSONString(event.2)), '}}'),
        arrayFilter(event -> endsWith(event.1, '.message') AND NOT (event.1 = 'gen_ai.tool.message' AND arrayExists(
            results -> position(results, concat('"', JSONExtractString(event.2, 'id'), '"')) > 0, _results)), _events)) AS _messages,
    arraySort(event -> JSONExtractInt(event.2, 'index') + toInt64OrZero(JSONExtractString(event.2, 'attributes', 'index')),
        arrayFilter(event -> event.1 = 'gen_ai.choice', _events)) AS _chosen,
    arrayMap(event -> concat('{{"event":"gen_ai.choice","body":',
        if(startsWith(event.2, '{{') AND isValidJSON(event.2), event.2, toJSONString(event.2)), '}}'), _chosen) AS _choice_bodies,
    -- Google's: an event a piece of a stream.
    arrayMap(run -> if(length(run) = 1, run[1], concat('[', arrayStringConcat(run, ','), ']')), arraySplit(
        (body, n) -> n = 1 OR NOT (JSONHas(_chosen[n].2, 'content', 'parts')
            AND JSONExtractString(_chosen[n - 1].2, 'finish_reason') = ''),
        _choice_bodies, arrayEnumerate(_choice_bodies))) AS _choices,
    if(_input != '' OR empty(_messages), if(_input = '', [], arrayConcat({instructions("_instructions")}, {array("_input")})),
        arrayConcat({instructions("_own_instructions")}, _messages)) AS input,
    if(_output != '', {array("_output", "assistant")}, _choices) AS output,
    -- With capture switched off the events are there and their content is not.
    (_input != '' OR arrayExists(event -> NOT startsWith(event.2, '{{') OR position(event.2, '"content"') > 0,
        arrayFilter(event -> endsWith(event.1, '.message'), _events))) AS has_content,
    ({broken("_input")} OR {broken("_output")} OR (tools != '' AND NOT isValidJSON(tools))
        OR arrayExists(event -> startsWith(event.2, '{{"') AND NOT isValidJSON(event.2), _events)) AS invalid
"""

_KNOWN = frozenset(("type", "text", "toolUse", "toolResult", "tool_calls", "role", "function", "content"))


def _body(value: Any) -> Any:
    """A body; attributes have its lists and objects as JSON in a text."""
    if not isinstance(value, dict) or not isinstance(value.get("attributes"), dict):
        return value
    fields = dict(value["attributes"])
    for name, kinds in (("content", list), ("tool_calls", list), ("message", (list, dict))):
        parsed = _parsed(fields.get(name))
        if isinstance(parsed, kinds):
            fields[name] = parsed
    return fields


def _parsed(text: Any) -> Any:
    """Parts, calls or a message, where it is such; a tool's result that happens to be JSON stays text."""
    if not isinstance(text, str) or not text.startswith(("[{", "{")):
        return text
    try:
        value = chat.load(text)
    except (ValueError, RecursionError):
        return text
    objects = value if isinstance(value, list) else [value]
    return value if all(isinstance(one, dict) and one.keys() & _KNOWN for one in objects) else text


def prompt(raw: str) -> Sequence[Message] | None:
    """One message event, or one message of a details event."""
    try:
        value = chat.load(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or "event" not in value:
        return chat.read(raw)
    body = _body(value["body"])
    if not isinstance(body, dict):
        body = {"content": body}
    # gen_ai.ROLE.message
    read = chat.message(_content(body), role=str(value["event"]).split(".")[1])
    return None if read is None else [_by_calls(message) for message in read]


def _content(body: Json) -> Json:
    """Google's content has the role and the parts in it."""
    content = body.get("content")
    if not isinstance(content, dict) or not isinstance(content.get("parts"), list):
        return body
    return {**{name: value for name, value in body.items() if name != "content"}, **content}


def _by_calls(message: Message) -> Message:
    """What calls tools is compared by its calls: openai-v2 leaves out the text beside them in a history, Bedrock's in an answer."""
    if message.role != "assistant" or not message.tool_calls:
        return message
    calls = chat.load(message.chat)["tool_calls"]
    (alone,) = chat.message({"role": "assistant", "tool_calls": calls}) or [message]
    return message._replace(key=alone.key)


def answer(raw: str) -> Message | None:
    """One choice event, the pieces of one in Google's stream, or one answer of a details event."""
    try:
        value = chat.load(raw)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list):
        value = {"event": "gen_ai.choice", "body": _together([_content(piece["body"]) for piece in value])}
    if not isinstance(value, dict) or "event" not in value:
        return chat.read_answer(raw)
    body = _body(value["body"])
    if not isinstance(body, dict):
        body = {"message": body}
    body = _content(body)
    message = body if "parts" in body else body.get("message")
    if not isinstance(message, dict):
        message = {"content": message if message is not None else body.get("content")}
    # Early versions had them beside the message.
    beside = {name: body[name] for name in ("tool_calls", "finish_reason") if body.get(name)}
    read = chat.message({**beside, **message}, answering=True, role="assistant")
    return _by_calls(read[0]) if read is not None and len(read) == 1 else None


def _together(pieces: list[Json]) -> Json:
    """The answer that was streamed in pieces."""
    parts: list[Json] = []
    for part in (part for piece in pieces for part in piece["parts"]):
        if parts and all(
            isinstance(one.get("text"), str) and not one.get("thought") for one in (parts[-1], part)
        ):
            parts[-1] = {**parts[-1], "text": parts[-1]["text"] + part["text"]}
        else:
            parts.append(part)
    return {**pieces[-1], "parts": parts}


EVENTS = Flavour(
    name="events",
    recognise=RECOGNISE,
    columns=COLUMNS,
    prompt=prompt,
    answer=answer,
    tools=chat.tools,
    joined=resources.files("spanloop_trainer.transform.reading")
    .joinpath("sql", "log_events.sql")
    .read_text(),
    quick=quick.messages,
    facts={
        "tools": f"if({TOOLS} != '', {TOOLS}, arrayLast(event -> event.6 != '', _details).6)",
        "flags": only_text("_input"),
    },
)
