"""The current OpenTelemetry GenAI convention: messages as JSON in `gen_ai.input.messages` and `gen_ai.output.messages`.

Specification: OpenTelemetry semantic conventions, GenAI spans, `gen-ai-input-messages.json` and `gen-ai-output-messages.json`.
Written by Traceloop 0.62 (openai, langchain) and others. Not read here: messages recorded as log events.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from spanloop_trainer.transform.flavours import Flavour, Message, quick

RECOGNISE = """
    SpanAttributes['gen_ai.operation.name'] IN ('chat', 'text_completion', 'generate_content')
    AND NOT mapContains(SpanAttributes, 'gen_ai.prompt.0.role')
    AND SpanAttributes['openinference.span.kind'] = ''
"""

COLUMNS = """
    SpanAttributes['gen_ai.input.messages'] AS _input,
    SpanAttributes['gen_ai.output.messages'] AS _output,
    SpanAttributes['gen_ai.system_instructions'] AS _instructions,
    (startsWith(_instructions, '[') AND isValidJSON(_instructions)) AS _instructions_are_parts,
    if(_instructions = '', [], [concat('{"role":"system","parts":', if(_instructions_are_parts, _instructions,
        concat('[{"type":"text","content":', toJSONString(_instructions), '}]')), '}')]) AS _system,
    arrayConcat(_system, JSONExtractArrayRaw(_input)) AS input,
    JSONExtractArrayRaw(_output) AS output,
    _input != '' AS has_content,
    ((_input != '' AND NOT isValidJSON(_input)) OR (_output != '' AND NOT isValidJSON(_output))
        OR (tools != '' AND NOT isValidJSON(tools))) AS invalid
"""


# JSON as chat templates render it (`tojson`: spaces after separators, no ASCII escapes), so that text trained on and text
# served agree.
dump = json.JSONEncoder(ensure_ascii=False).encode
# Messages are assembled from text: a dict and a `dump` of it cost three times as much, and this runs once a message.
_string = json.encoder.encode_basestring
# orjson turns longer integers into floats.
_LONG_INTEGER = re.compile("[0-9]{19}")


def _tool_call(part: dict[str, Any]) -> str:
    arguments = part.get("arguments")
    if not isinstance(arguments, str):
        arguments = dump({} if arguments is None else arguments)
    identity, name = str(part.get("id") or ""), str(part.get("name") or "")
    return (
        f'{{"id": {_string(identity)}, "type": "function", '
        f'"function": {{"name": {_string(name)}, "arguments": {_string(arguments)}}}}}'
    )


def _tool_result(part: dict[str, Any]) -> tuple[str, str]:
    """The message of one result, and its content."""
    # Earlier drafts of the convention called the field `result`.
    response = part["response"] if "response" in part else part.get("result")
    content = response if isinstance(response, str) else dump(response)
    identity = str(part.get("id") or "")
    return f'{{"role": "tool", "tool_call_id": {_string(identity)}, "content": {_string(content)}}}', content


def _content(parts: list[dict[str, Any]]) -> tuple[str, str | None]:
    """OpenAI content as JSON, and its text: one text is a string; several, or anything else, stay a list of parts."""
    texts = [str(part["content"]) for part in parts if part.get("type") == "text"]
    if len(parts) == 1 and texts:
        return _string(texts[0]), texts[0]
    rendered = [
        {"type": "text", "text": str(part["content"])} if part.get("type") == "text" else part
        for part in parts
    ]
    return dump(rendered), "".join(texts)


def messages(raw: str) -> list[Message] | None:
    """One recorded message (`{"role", "parts", "finish_reason"?}`) in OpenAI chat form; None: another shape.

    One with several tool results makes one message a result.

    Empty text is dropped and an assistant's `content` is null beside tool calls: streaming and plain recordings of one
    answer must compare equal to the same answer sent back as history.
    """
    value = json.loads(raw) if _LONG_INTEGER.search(raw) else orjson.loads(raw)
    if not isinstance(value, dict):
        return None
    role, parts = value.get("role"), value.get("parts", [])
    if not isinstance(role, str) or not isinstance(parts, list):
        return None
    calls, results, reasoning, content = [], [], [], []
    for part in parts:
        if not isinstance(part, dict):
            return None
        kind = part.get("type")
        if kind == "text":
            if part.get("content"):
                content.append(part)
        elif kind == "tool_call":
            calls.append(_tool_call(part))
        elif kind == "tool_call_response":
            results.append(_tool_result(part))
        elif kind in ("reasoning", "thinking"):
            reasoning.append(str(part.get("content") or ""))
        else:
            content.append(part)
    if results:
        return [Message(chat, chat, "tool", text) for chat, text in results]
    if content:
        body, text = _content(content)
    else:
        body, text = ("null", None) if calls else ('""', "")
    key = f'{{"role": {_string(role)}, "content": {body}'
    if calls:
        key += f', "tool_calls": [{", ".join(calls)}]'
    thought = f', "reasoning_content": {_string("".join(reasoning))}' if reasoning else ""
    return [
        Message(f"{key}{thought}}}", key + "}", role, text, value.get("finish_reason") or None, len(calls))
    ]


def answer(raw: str) -> Message | None:
    """One recorded answer: one message."""
    read = messages(raw)
    return read[0] if read is not None and len(read) == 1 else None


def tools(raw: str) -> str | None:
    """Tool definitions, flat (`{"name", "parameters"}`) or nested, as OpenAI's `tools`."""
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        return None
    nested = []
    for tool in value:
        function = tool.get("function")
        if not isinstance(function, dict):
            function = {
                key: tool[key] for key in ("name", "description", "parameters", "strict") if key in tool
            }
        nested.append({"type": "function", "function": function})
    return dump(nested)


GEN_AI = Flavour(
    name="gen_ai",
    recognise=RECOGNISE,
    columns=COLUMNS,
    prompt=messages,
    answer=answer,
    tools=tools,
    quick=quick.messages,
    facts={
        "tools": "SpanAttributes['gen_ai.tool.definitions']",
        # The engine's JSON reader turns integers above 64 bits into text: such arrays are sliced without it.
        "input_verbatim": "if(match(_input, '[0-9]{20}'), _input, '')",
        "output_verbatim": "if(match(_output, '[0-9]{20}'), _output, '')",
    },
)
