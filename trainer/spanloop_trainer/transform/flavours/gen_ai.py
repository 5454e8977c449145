"""The current OpenTelemetry GenAI convention: messages as JSON in `gen_ai.input.messages` and `gen_ai.output.messages`.

Specification: OpenTelemetry semantic conventions, GenAI spans, `gen-ai-input-messages.json` and `gen-ai-output-messages.json`.
Written by Traceloop (openai, langchain, openai-agents, anthropic; Python and Node), genai-openai, Pydantic AI and others; messages that
stand there in OpenAI's own form are read as well. Where the messages are log events or span events: `events`.
"""

from __future__ import annotations

from spanloop_trainer.transform.flavours import MODEL_OPERATIONS, Flag, Flavour, chat, quick

# What is a call of a model, whoever recorded it.
_CALLS = f"""
    SpanAttributes['gen_ai.operation.name'] IN {MODEL_OPERATIONS}
    AND NOT mapContains(SpanAttributes, 'gen_ai.prompt.0.role')
"""
OPERATIONS = f"{_CALLS} AND SpanAttributes['openinference.span.kind'] = ''"
# OpenInference's processors for Pydantic AI and others write their attributes beside these, from which they lose parts and names of tools.
RECOGNISE = f"""
    SpanAttributes['gen_ai.input.messages'] != '' AND SpanAttributes['openinference.span.kind'] IN ('', 'LLM') AND ({_CALLS})
"""

# Pydantic AI up to version 4 of its spans has what it offered among its own parameters, LiteLLM where Traceloop once had it.
TOOLS = """multiIf(
    SpanAttributes['gen_ai.tool.definitions'] != '', SpanAttributes['gen_ai.tool.definitions'],
    JSONLength(SpanAttributes['model_request_parameters'], 'function_tools')
        + JSONLength(SpanAttributes['model_request_parameters'], 'output_tools') > 0,
    concat('[', arrayStringConcat(arrayConcat(
        JSONExtractArrayRaw(SpanAttributes['model_request_parameters'], 'function_tools'),
        JSONExtractArrayRaw(SpanAttributes['model_request_parameters'], 'output_tools')), ','), ']'),
    mapContains(SpanAttributes, 'llm.request.functions.0.name'), concat('[', arrayStringConcat(arrayMap(
        n -> concat('{"name":', toJSONString(SpanAttributes[concat('llm.request.functions.', toString(n), '.name')]),
            ',"description":', toJSONString(SpanAttributes[concat('llm.request.functions.', toString(n), '.description')]),
            ',"parameters":', if(isValidJSON(SpanAttributes[concat('llm.request.functions.', toString(n), '.parameters')]),
                SpanAttributes[concat('llm.request.functions.', toString(n), '.parameters')], 'null'), '}'),
        range(arrayCount(key -> match(key, '^llm[.]request[.]functions[.][0-9]+[.]name$'), mapKeys(SpanAttributes)))), ','), ']'),
    '')"""


def array(value: str, role: str = "user") -> str:
    """SQL: the messages of a JSON array, of one object, or of a text that is no JSON, which `role` said."""
    return f"""multiIf(
        startsWith({value}, '['), JSONExtractArrayRaw({value}),
        {value} IN ('', 'null'), [],
        startsWith({value}, '{{'), [{value}],
        [concat('{{"role":"{role}","parts":[{{"type":"text","content":', toJSONString({value}), '}}]}}')])"""


def instructions(value: str) -> str:
    """SQL: none or one message of the system; instructions are parts, one part, a JSON string or plain text."""
    return f"""if({value} = '', [], [concat('{{"role":"system","parts":', multiIf(
        NOT isValidJSON({value}), concat('[{{"type":"text","content":', toJSONString({value}), '}}]'),
        startsWith({value}, '['), {value},
        match({value}, '^["{{]'), concat('[', {value}, ']'),
        concat('[{{"type":"text","content":', toJSONString({value}), '}}]')), '}}')])"""


def broken(value: str) -> str:
    """SQL: it began as JSON and does not parse."""
    return f"((startsWith({value}, '[') OR startsWith({value}, '{{')) AND NOT isValidJSON({value}))"


def only_text(value: str) -> str:
    """SQL: the flag of a text where messages should be."""
    json = f"startsWith({value}, '[') OR startsWith({value}, '{{')"
    return f"if({value} IN ('', 'null') OR {json}, 0, {int(Flag.ONLY_TEXT)})"


COLUMNS = f"""
    SpanAttributes['gen_ai.input.messages'] AS _input,
    SpanAttributes['gen_ai.output.messages'] AS _output,
    SpanAttributes['gen_ai.system_instructions'] AS _instructions,
    arrayConcat({instructions("_instructions")}, {array("_input")}) AS input,
    {array("_output", "assistant")} AS output,
    _input NOT IN ('', 'null') AS has_content,
    ({broken("_input")} OR {broken("_output")}
        OR (startsWith(_instructions, '[{{\"') AND NOT isValidJSON(_instructions))
        OR (tools != '' AND NOT isValidJSON(tools))) AS invalid
"""

GEN_AI = Flavour(
    name="gen_ai",
    recognise=RECOGNISE,
    columns=COLUMNS,
    prompt=chat.read,
    answer=chat.read_answer,
    tools=chat.tools,
    quick=quick.messages,
    facts={
        "tools": TOOLS,
        "flags": only_text("_input"),
        # The engine's JSON reader turns integers above 64 bits into text: such arrays are sliced without it.
        "input_verbatim": "if(match(_input, '[0-9]{20}') AND startsWith(_input, '['), _input, '')",
        "output_verbatim": "if(match(_output, '[0-9]{20}') AND startsWith(_output, '['), _output, '')",
    },
)
