"""Request and response in one attribute each, as the library that was called has them: JSON of OpenAI's APIs, Anthropic's or LangChain's.

Sources: Langfuse SDK from version 3 (`langfuse.observation.input` and `.output` of a `generation`), MLflow (`mlflow.spanInputs` and
`mlflow.spanOutputs` of a `CHAT_MODEL` or `LLM`), Google's ADK (`gcp.vertex.agent.llm_request` and `.llm_response`), LangSmith's OpenTelemetry export and others (`gen_ai.prompt` and `gen_ai.completion`).
"""

from __future__ import annotations

from spanloop_trainer.transform.flavours import Flag, Flavour, Message, chat, libraries, openinference
from spanloop_trainer.transform.flavours.gen_ai import OPERATIONS

RECOGNISE = f"""
    SpanAttributes['gen_ai.input.messages'] = '' AND SpanAttributes['openinference.span.kind'] = '' AND (
        SpanAttributes['langfuse.observation.type'] = 'generation'
        OR SpanAttributes['mlflow.spanType'] IN ('"CHAT_MODEL"', '"LLM"', 'CHAT_MODEL', 'LLM')
        OR SpanAttributes['gcp.vertex.agent.llm_request'] NOT IN ('', '{{}}')
        OR (SpanAttributes['gen_ai.prompt'] != '' AND ({OPERATIONS})))
"""

PREPARED = """
    multiIf(
        SpanAttributes['langfuse.observation.type'] != '', SpanAttributes['langfuse.observation.input'],
        SpanAttributes['mlflow.spanType'] != '', SpanAttributes['mlflow.spanInputs'],
        SpanAttributes['gcp.vertex.agent.llm_request'] != '', SpanAttributes['gcp.vertex.agent.llm_request'],
        SpanAttributes['gen_ai.prompt']) AS _asked,
    multiIf(
        SpanAttributes['langfuse.observation.type'] != '', SpanAttributes['langfuse.observation.output'],
        SpanAttributes['mlflow.spanType'] != '', SpanAttributes['mlflow.spanOutputs'],
        SpanAttributes['gcp.vertex.agent.llm_request'] != '', SpanAttributes['gcp.vertex.agent.llm_response'],
        SpanAttributes['gen_ai.completion']) AS _answered,
    -- Of Google's request: settings, instructions and tools.
    JSONExtractRaw(_asked, 'config') AS _config,
    multiIf(
        SpanAttributes['langfuse.observation.model.parameters'] != '', SpanAttributes['langfuse.observation.model.parameters'],
        _config != '', _config, _asked) AS _parameters,
    -- LangChain lists lists of messages: one a prompt of a batch, whose spans are apart.
    multiIf(
        JSONType(_asked, 'messages', 1) = 'Array', JSONExtractArrayRaw(_asked, 'messages', 1),
        JSONType(_asked, 'messages') = 'Array', JSONExtractArrayRaw(_asked, 'messages'),
        JSONType(_asked, 'input') = 'Array', JSONExtractArrayRaw(_asked, 'input'),
        JSONType(_asked, 'contents') = 'Array', JSONExtractArrayRaw(_asked, 'contents'),
        startsWith(_asked, '[['), JSONExtractArrayRaw(_asked, 1),
        startsWith(_asked, '['), JSONExtractArrayRaw(_asked),
        []) AS _listed,
    -- Langfuse puts LangChain's tools behind the messages.
    arrayMap(message -> JSONExtractRaw(message, 'content'), arrayFilter(
        message -> JSONExtractString(message, 'role') = 'tool' AND JSONType(message, 'content', 'function') = 'Object', _listed)) AS _offered,
    arrayFilter(
        message -> NOT (JSONExtractString(message, 'role') = 'tool' AND JSONType(message, 'content', 'function') = 'Object'), _listed
    ) AS _sent,
    multiIf(
        JSONType(_asked, 'input') = 'String', JSONExtractString(_asked, 'input'),
        JSONType(_asked, 'prompt') = 'String', JSONExtractString(_asked, 'prompt'),
        startsWith(_asked, '"'), JSONExtractString(_asked),
        match(_asked, '^[{\\\\[]'), '', _asked) AS _text,
    arrayFirst(name -> JSONType(_asked, name) IN ('String', 'Array'), ['system', 'instructions']) AS _system,
    if(_system != '', JSONExtractRaw(_asked, _system), JSONExtractRaw(_config, 'system_instruction')) AS _instructions,
    -- Of the Responses API, whose items are a message together: what the assistant thought, said and called in a row.
    arrayMap(item -> JSONExtractString(item, 'role') = 'assistant' OR JSONExtractString(item, 'type') IN ('function_call', 'reasoning'), _sent)
        AS _says
"""

COLUMNS = """
    arrayConcat(
        if(_instructions IN ('', 'null'), [], [concat('{"role":"system","content":', _instructions, '}')]),
        if(empty(_sent) AND _text != '', [concat('{"role":"user","content":', toJSONString(_text), '}')],
            arrayMap(run -> concat('[', arrayStringConcat(run, ','), ']'), arraySplit(
                (item, n) -> n = 1 OR NOT (_says[n] AND _says[n - 1]
                    AND (JSONHas(item, 'type') OR JSONHas(_sent[n - 1], 'type')) AND NOT JSONHas(item, 'lc')),
                _sent, arrayEnumerate(_sent))))) AS input,
    multiIf(
        _answered IN ('', 'null', '""'), [],
        startsWith(_answered, '{') OR startsWith(_answered, '['), arrayMap(
            n -> concat('{"choice":', toString(n), ',"response":', _answered, '}'),
            range(greatest(JSONLength(_answered, 'choices'), JSONLength(_answered, 'generations', 1), 1))),
        startsWith(_answered, '"') AND isValidJSON(_answered), [concat('{"choice":0,"response":', _answered, '}')],
        [concat('{"choice":0,"response":', toJSONString(_answered), '}')]) AS output,
    -- An object of another shape is what a function was called with.
    notEmpty(input) AND (_text != '' OR arrayExists(message -> startsWith(message, '{'), _sent)) AS has_content,
    ((match(_asked, '^[{\\\\[]') AND NOT isValidJSON(_asked)) OR (match(_answered, '^[{\\\\[]') AND NOT isValidJSON(_answered))) AS invalid
"""


def prompt(raw: str) -> list[Message] | None:
    """One message, or items of the Responses API that are one."""
    if raw.startswith("{"):
        return chat.read(raw, by_value=True)
    try:
        value = chat.load(raw)
    except (ValueError, RecursionError):
        return None
    return chat.message(libraries.of_items(value) if len(value) > 1 else _unpacked(value[0]), by_value=True)


def _unpacked(value: object) -> object:
    """LangChain writes a message's class, and its fields below `kwargs`."""
    if isinstance(value, dict) and isinstance(value.get("kwargs"), dict):
        fields = {name: field for name, field in value["kwargs"].items() if name not in ("id", "type")}
        return {**fields, "role": value["kwargs"].get("role") or value["kwargs"].get("type")}
    return value


def answer(raw: str) -> Message | None:
    """A choice in the response; Langfuse has the items of a Responses answer without the rest."""
    try:
        found = chat.load(raw)
    except (ValueError, RecursionError):
        return None
    response = found["response"]
    if isinstance(response, list) and all(isinstance(item, dict) and "type" in item for item in response):
        return openinference.answer(chat.dump({"choice": 0, "response": {"output": response}}))
    return openinference.answer(raw)


def _number(name: str, kind: str, *others: str) -> str:
    """SQL: a setting of the request."""
    values = [f"JSONExtract(_parameters, '{one}', 'Nullable({kind})')" for one in (name, *others)]
    own = [
        f"to{kind}OrNull(SpanAttributes['{prefix}{name}'])"
        for prefix in ("gen_ai.request.", "langsmith.metadata.ls_")
    ]
    return f"coalesce({', '.join(own + values)})"


_ID_OF_RUN = (
    "JSONExtractString(_answered, 'generations', 1, 1, 'message', 'kwargs', 'response_metadata', 'id')"
)
_FINISHED = "SpanAttributes['langfuse.observation.metadata.finish_reason']"

BODIES = Flavour(
    name="bodies",
    recognise=RECOGNISE,
    columns=COLUMNS,
    prepared=PREPARED,
    prompt=prompt,
    answer=answer,
    tools=chat.tools,
    facts={
        "span_agent": """multiIf(
            SpanAttributes['gen_ai.agent.name'] != '', SpanAttributes['gen_ai.agent.name'],
            SpanAttributes['traceloop.association.properties.lc_agent_name'] != '', SpanAttributes['traceloop.association.properties.lc_agent_name'],
            JSONExtractString(_config, 'labels', 'adk_agent_name'))""",
        "request_model": """multiIf(
            SpanAttributes['gen_ai.request.model'] != '', SpanAttributes['gen_ai.request.model'],
            JSONExtractString(_asked, 'model') != '', JSONExtractString(_asked, 'model'),
            SpanAttributes['langfuse.observation.model.name'])""",
        "response_model": """multiIf(
            SpanAttributes['gen_ai.response.model'] != '', SpanAttributes['gen_ai.response.model'],
            JSONExtractString(_answered, 'model') != '', JSONExtractString(_answered, 'model'),
            SpanAttributes['langfuse.observation.model.name'] != '', SpanAttributes['langfuse.observation.model.name'],
            JSONExtractString(SpanAttributes['mlflow.llm.model']))""",
        "response_id": f"""multiIf(
            SpanAttributes['gen_ai.response.id'] != '', SpanAttributes['gen_ai.response.id'],
            {_ID_OF_RUN} != '', {_ID_OF_RUN},
            JSONExtractString(_answered, 'id'))""",
        "temperature": _number("temperature", "Float64"),
        "top_p": _number("top_p", "Float64"),
        "max_tokens": _number("max_tokens", "Int64", "max_completion_tokens", "max_output_tokens"),
        "seed": _number("seed", "Int64"),
        "has_usage": """SpanAttributes['gen_ai.usage.output_tokens'] != '' OR SpanAttributes['mlflow.chat.tokenUsage'] != ''
            OR SpanAttributes['langfuse.observation.usage_details'] NOT IN ('', '{}', 'null')""",
        "finish_reasons": f"""if({_FINISHED} != '', [trim(BOTH '"' FROM {_FINISHED})],
            JSONExtract(SpanAttributes['gen_ai.response.finish_reasons'], 'Array(String)'))""",
        "tools": """multiIf(
            notEmpty(_offered), concat('[', arrayStringConcat(_offered, ','), ']'),
            JSONType(_asked, 'tools') = 'Array', JSONExtractRaw(_asked, 'tools'),
            JSONType(_config, 'tools') = 'Array', JSONExtractRaw(_config, 'tools'),
            SpanAttributes['mlflow.chat.tools'] != '', SpanAttributes['mlflow.chat.tools'],
            SpanAttributes['gen_ai.tool.definitions'])""",
        "flags": f"if(_text != '' AND startsWith(_asked, '{{') = 0, {int(Flag.ONLY_TEXT)}, 0)",
    },
)
