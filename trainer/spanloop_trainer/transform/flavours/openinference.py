"""OpenInference: `openinference.span.kind` LLM, messages under `llm.input_messages.N.message.*` and `llm.output_messages.N.message.*`.

Specification: `OpenInference semantic conventions <https://github.com/Arize-ai/openinference/tree/main/spec>`_. Request and response
stand once more in `input.value` and `output.value`, in the shape of the library that was called: they are read where the numbered
attributes are missing or say less.
"""

from __future__ import annotations

import json
import re

import orjson

from spanloop_trainer.transform.flavours import Flag, Flavour, Message, chat
from spanloop_trainer.transform.flavours.chat import Json
from spanloop_trainer.transform.flavours.libraries import joined, langchain, response
from spanloop_trainer.transform.flavours.numbered import Unreadable, listed, numbered, value_of

REDACTED = "__REDACTED__"
# In a request: the address of a picture, of OpenAI's chat and Responses API.
_HIDDEN_PICTURE = re.compile(rf'"image_url": *(?:"{REDACTED}"|{{[^{{}}]*"{REDACTED}"[^{{}}]*}})')

# LlamaIndex also calls the making of a request a model call: its output is the request.
RECOGNISE = """
    SpanAttributes['openinference.span.kind'] = 'LLM'
    AND NOT (startsWith(SpanAttributes['output.value'], '{')
        AND NOT mapContains(SpanAttributes, 'llm.input_messages.0.message.role')
        AND JSONHas(SpanAttributes['output.value'], 'messages') AND JSONHas(SpanAttributes['input.value'], 'chat_history'))
"""

PREPARED = f"""
    {numbered("in", "llm.input_messages")},
    {numbered("out", "llm.output_messages")},
    {numbered("prompt", "llm.prompts")},
    {numbered("choice", "llm.choices")},
    {numbered("tool", "llm.tools")},
    SpanAttributes['llm.invocation_parameters'] AS _parameters,
    SpanAttributes['input.value'] AS _asked,
    SpanAttributes['output.value'] AS _answered,
    -- LiteLLM puts the provider before the model's name.
    if(startsWith(SpanAttributes['llm.model_name'], concat(SpanAttributes['llm.provider'], '/')),
        substring(SpanAttributes['llm.model_name'], length(SpanAttributes['llm.provider']) + 2), SpanAttributes['llm.model_name']) AS _named,
    -- LlamaIndex has the client's response inside its own; smolagents has it printed by Python.
    if(startsWith(_answered, '{{') AND JSONHas(_answered, 'raw', 'choices'), JSONExtractRaw(_answered, 'raw'), _answered) AS _response,
    JSONExtractString(_answered, 'raw') AS _printed,
    -- A stream that was printed instead of read (Groq): the answer is not recorded.
    (empty(_out) AND match(_answered, '^<[A-Za-z_. ]+ at 0x[0-9a-f]+>$')) AS _unread,
    JSONExtractArrayRaw(_response, 'choices') AS _choices,
    arrayMap(choice -> JSONExtract(choice, 'token_ids', 'Array(Int32)'), _choices) AS _token_ids,
    startsWith(_asked, '{{') AS _asked_is_object,
    -- Messages of the request, if they are objects: LlamaIndex and smolagents write their own classes as text. LangChain has a list of lists.
    -- Without a request around them they may be items of the Responses API, whose instructions stand elsewhere.
    multiIf(
        _asked_is_object AND JSONHas(_asked, 'messages', 1, 1, 'lc'), JSONExtractArrayRaw(_asked, 'messages', 1),
        _asked_is_object, JSONExtractArrayRaw(_asked, 'messages'),
        startsWith(_asked, '[{{') AND startsWith(_answered, '[{{') AND NOT match(_asked, '"type": *"function_call'), JSONExtractArrayRaw(_asked),
        []) AS _listed,
    -- The engine's JSON reader turns integers above 64 bits into text.
    if(arrayAll(message -> startsWith(message, '{{'), _listed) AND NOT match(_asked, '[^"0-9][0-9]{{20}}'), _listed, []) AS _sent,
    -- The Responses API: items instead of messages; instructions have the number 0, which is missing where there are none.
    (JSONExtractString(_answered, 'object') = 'response'
        OR (empty(_listed) AND (startsWith(_asked, '[') OR (_asked_is_object AND JSONHas(_asked, 'input'))))) AS _items,
    (_in_whole OR (_asked != '' AND empty(_listed) AND _in[1][1].1 = 1 AND _in[-1][1].1 = length(_in))) AS _in_complete,
    -- Where the request says more: attributes were dropped; several results in one message, audio and files, which have none; a message
    -- with nothing but a role (LangChain.js), a system prompt (Anthropic for Node), a result without its call (LiteLLM), a picture that
    -- is not even mentioned (openai-agents).
    (notEmpty(_sent) AND (length(_sent) > length(_in) OR NOT _in_complete
            OR arrayExists(of_one -> length(of_one) = 1, _in)
            OR (JSONHas(_asked, 'system') AND _in[1][1].3 != 'system')
            OR arrayExists(of_one -> {value_of("message.role")} = 'tool' AND {value_of("message.tool_call_id")} = '', _in)
            OR (match(_asked, '"type": *"(image|image_url)"') AND NOT arrayExists(t -> endsWith(t.2, '.type') AND t.3 = 'image', _in_pairs))
            -- Its numbers go on from one message to the next.
            OR arrayExists(of_one -> arrayExists(t -> startsWith(t.2, 'message.tool_calls.'), of_one)
                AND NOT arrayExists(t -> startsWith(t.2, 'message.tool_calls.0.'), of_one), _in)
            -- Parts as JSON in a text: mistralai.
            OR arrayExists(t -> t.2 = 'message.content' AND startsWith(t.3, '[{{\"'), _in_pairs) OR match(_asked, '"type": *"(tool_result|input_audio|file)"|"arguments": *""')))
        AS _from_request,
    arrayMap(of_one -> {value_of("message.role")}, _in) AS _roles,
    arrayMap(role -> transform(role, ['tool-call', 'tool-response'], ['assistant', 'user'], role), _roles) AS _sent_roles,
    -- smolagents joins messages that follow each other with one role before it sends them.
    (hasAny(_roles, ['tool-call', 'tool-response']) OR endsWith(ScopeName, 'smolagents')) AS _joins
"""

COLUMNS = f"""
    arrayMap(
        n -> n = 1 OR NOT (
            (_joins AND _sent_roles[n] = _sent_roles[n - 1])
            OR (_items AND _roles[n] IN ('', 'assistant') AND _roles[n - 1] IN ('', 'assistant'))),
        arrayEnumerate(_in)
    ) AS _begins,
    arrayMap(
        of_one -> concat('[', arrayStringConcat(of_one, ','), ']'),
        arraySplit((message, begins) -> begins, _in_json, _begins)
    ) AS _messages,
    multiIf(
        notEmpty(_prompt), {value_of("prompt.text", "_prompt[1]")},
        startsWith(SpanAttributes['llm.prompts'], '['), JSONExtractString(SpanAttributes['llm.prompts'], 1),
        '') AS _prompt_text,
    -- Nothing but text: what instrumentation by hand leaves.
    (empty(_in) AND empty(_sent) AND _prompt_text = '' AND _asked != '' AND SpanAttributes['input.mime_type'] != 'application/json'
        AND NOT match(_asked, '^[{{\\\\[]')) AS _only_text,
    multiIf(
        _from_request, arrayConcat(
            if(JSONHas(_asked, 'system'), [concat('{{"role":"system","content":', JSONExtractRaw(_asked, 'system'), '}}')], []), _sent),
        notEmpty(_in), _messages,
        -- The Responses API, before the instrumentation knew it: the request alone.
        _asked_is_object AND JSONHas(_asked, 'input') AND JSONExtractString(_answered, 'object') = 'response', arrayConcat(
            if(JSONExtractString(_asked, 'instructions') = '', [],
                [concat('{{"role":"system","content":', JSONExtractRaw(_asked, 'instructions'), '}}')]),
            if(JSONType(_asked, 'input') = 'String', [concat('{{"role":"user","content":', JSONExtractRaw(_asked, 'input'), '}}')],
                JSONExtractArrayRaw(_asked, 'input'))),
        _prompt_text != '', [concat('{{"role":"user","content":', toJSONString(_prompt_text), '}}')],
        _only_text, [concat('{{"role":"user","content":', toJSONString(_asked), '}}')],
        []) AS input,
    multiIf(
        notEmpty(_choices), length(_choices),
        JSONLength(_answered, 'generations', 1) > 0, JSONLength(_answered, 'generations', 1),
        -- CrewAI: the calls of one answer.
        startsWith(_answered, '[') AND NOT JSONHas(_answered, 1, 'function'), JSONLength(_answered),
        1) AS _answers,
    arrayMap(n -> concat('{{"choice":', toString(n), ',"response":', _answered, '}}'), range(_answers)) AS _responses,
    -- The response of OpenAI and LangChain has refusals and reasoning, which the attributes leave out; openai-agents lists its messages.
    multiIf(
        _unread, [],
        (notEmpty(_choices) AND JSONHas(_choices[1], 'message')) OR JSONHas(_answered, 'generations', 1, 1, 'message')
            OR (startsWith(_answered, '[{{') AND JSONExtractString(_answered, 1, 'role') = 'assistant' AND JSONHas(_answered, 1, 'content'))
            OR (JSONExtractString(_answered, 'object') = 'response' AND JSONLength(_answered, 'output') > 0), _responses,
        notEmpty(_out) AND _items, [concat('[', arrayStringConcat(_out_json, ','), ']')],
        notEmpty(_out), arrayMap(message -> concat('[', message, ']'), _out_json),
        notEmpty(_choice), arrayMap(choice -> concat('[', choice, ']'), _choice_json),
        _answered = '' OR (SpanAttributes['output.mime_type'] = 'application/json' AND NOT isValidJSON(_answered)), [],
        match(_answered, '^[{{\\\\[]') AND isValidJSON(_answered), _responses,
        [concat('{{"choice":0,"response":', toJSONString(_answered), '}}')]) AS output,
    (notEmpty(input) AND NOT arrayExists(t -> t.3 = '{REDACTED}' AND NOT endsWith(t.2, '.url'), arrayConcat(_in_pairs, _out_pairs, _choice_pairs))
        AND '{REDACTED}' NOT IN (_answered, _prompt_text) AND NOT _unread AND NOT (_only_text AND _asked = '{REDACTED}')) AS has_content,
    NOT ((_from_request OR _in_complete) AND (_out_whole OR _items) AND _tool_whole AND _choice_whole AND length(_prompt) < 2)
        OR (SpanAttributes['output.mime_type'] = 'application/json' AND empty(_out) AND _answered != '' AND NOT isValidJSON(_answered))
        AS invalid
"""

# The repr of the OpenAI client's object is all that smolagents leaves of the answer's id and finish reason.
_FINISH = """
    multiIf(
        notEmpty(_choices), arrayMap(choice -> JSONExtractString(choice, 'finish_reason'), _choices),
        SpanAttributes['llm.finish_reason'] != '', [SpanAttributes['llm.finish_reason']],
        JSONExtractString(_response, 'stop_reason') != '', [JSONExtractString(_response, 'stop_reason')],
        [extract(_printed, 'finish_reason=\\'([a-z_]+)\\'')])
"""

# DSPy's own spans have neither usage nor finish reason. The status is set when a call came to its end; a stream that the server
# cut has one too, and shows choices that did not finish.
_ENDED = "(toString(StatusCode) = 'Ok' AND empty(_choices) AND NOT JSONHas(_answered, 'generations'))"


def _number(*names: str, kind: str) -> str:
    """SQL: the first of these parameters that is a number; null: none is."""
    values = [f"JSONExtract(_parameters, '{name}', 'Nullable({kind})')" for name in names]
    return f"coalesce({', '.join(values)})"


def _own(attribute: str, kind: str, recorded: str) -> str:
    """Tokens that the exporter recorded, else those in the response (vLLM's `return_token_ids`)."""
    own = f"SpanAttributes['spanloop.{attribute}']"
    return f"if({own} != '', JSONExtract({own}, '{kind}'), {recorded})"


FACTS = {
    "request_model": """multiIf(
        SpanAttributes['llm.request.model_name'] != '', SpanAttributes['llm.request.model_name'],
        _named != '', _named,
        JSONExtractString(_parameters, 'model'))""",
    "response_model": """multiIf(
        SpanAttributes['llm.response.model_name'] != '', SpanAttributes['llm.response.model_name'],
        JSONExtractString(_response, 'model') != '', JSONExtractString(_response, 'model'),
        _named)""",
    "response_id": """multiIf(
        SpanAttributes['gen_ai.response.id'] != '', SpanAttributes['gen_ai.response.id'],
        JSONExtractString(_response, 'id') != '', JSONExtractString(_response, 'id'),
        JSONExtractString(_response, 'generations', 1, 1, 'message', 'kwargs', 'response_metadata', 'id') != '',
        JSONExtractString(_response, 'generations', 1, 1, 'message', 'kwargs', 'response_metadata', 'id'),
        JSONExtractString(_response, 'llm_output', 'id') != '', JSONExtractString(_response, 'llm_output', 'id'),
        -- LangChain.js has it as the message's own, where LangChain would have the run's.
        JSONHas(_response, 'generations'),
        extract(JSONExtractString(_response, 'generations', 1, 1, 'message', 'kwargs', 'id'), '^(?:chatcmpl|cmpl|resp|msg)[-_].+'),
        extract(_printed, '^[A-Za-z]+\\\\(id=\\'([^\\']+)\\''))""",
    "temperature": _number("temperature", kind="Float64"),
    "top_p": _number("top_p", "topP", kind="Float64"),
    "max_tokens": _number(
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "maxTokens",
        "maxOutputTokens",
        kind="Int64",
    ),
    "seed": _number("seed", "random_seed", kind="Int64"),
    # Anthropic tells usage at the beginning of a stream, too.
    "has_usage": f"(SpanAttributes['llm.token_count.completion'] != '' OR {_ENDED}) AND NOT (JSONHas(_response, 'stop_reason') AND JSONType(_response, 'stop_reason') = 'Null')",
    "finish_reasons": f"if(arrayAll(reason -> reason = '', {_FINISH}), [], {_FINISH})",
    "span_agent": """if(SpanAttributes['agent.name'] != '', SpanAttributes['agent.name'],
        JSONExtractString(SpanAttributes['metadata'], 'lc_agent_name'))""",
    "tools": f"""multiIf(notEmpty(_tool),
        concat('[', arrayStringConcat(arrayMap(of_one -> {value_of("tool.json_schema")}, _tool), ','), ']'),
        JSONHas(_parameters, 'tools'), JSONExtractRaw(_parameters, 'tools'),
        JSONType(_asked, 'tools') = 'Array', JSONExtractRaw(_asked, 'tools'), '')""",
    "own_prompt_ids": _own(
        "prompt_token_ids", "Array(Int32)", "JSONExtract(_response, 'prompt_token_ids', 'Array(Int32)')"
    ),
    "own_completion_ids": _own("completion_token_ids", "Array(Array(Int32))", "_token_ids"),
    # One for each token, or none.
    "own_logprobs": _own(
        "completion_logprobs",
        "Array(Array(Float64))",
        """arrayMap((choice, ids) -> if(notEmpty(ids) AND JSONLength(choice, 'logprobs', 'content') = length(ids),
            arrayMap(token -> JSONExtractFloat(token, 'logprob'), JSONExtractArrayRaw(choice, 'logprobs', 'content')), []),
            _choices, _token_ids)""",
    ),
    "flags": f"""bitOr(if(_only_text, {int(Flag.ONLY_TEXT)}, 0),
        if({_ENDED} AND SpanAttributes['llm.token_count.completion'] = '' AND SpanAttributes['llm.finish_reason'] = '',
            {int(Flag.END_NOT_RECORDED)}, 0))""",
}


# smolagents keeps these in its history and sends the others; the span has the history.
_RENAMED = {"tool-call": "assistant", "tool-response": "user"}


def _part(flat: dict[str, str]) -> Json:
    """One of a message's contents."""
    flat = {key.removeprefix("message_content."): value for key, value in flat.items()}
    kind = flat.get("type", "text" if "text" in flat else "unknown")
    if kind == "tool_use":
        return {
            "type": "tool_use",
            "id": flat.get("tool_call.id"),
            "name": flat.get("tool_call.function.name"),
            "arguments": flat.get("tool_call.function.arguments"),
        }
    for modality in ("image", "audio", "video", "document"):
        if (url := flat.get(f"{modality}.{modality}.url")) is not None:
            # A long picture is replaced by this word.
            known = {} if url == REDACTED else {"url": url}
            return {"type": kind, "modality": modality.replace("document", "file"), **known}
    return {**flat, "type": kind}


def _contents(flat: dict[str, str]) -> tuple[list[Json], bool]:
    """The parts of a message, and whether a number is missing between them.

    LangChain's instrumentation counts parts that it has no attributes for, thoughts for one. A limit on attributes would have dropped the role
    first.
    """
    found: dict[int, dict[str, str]] = {}
    for key, value in flat.items():
        head, _, rest = key.removeprefix("contents.").partition(".")
        if key.startswith("contents.") and head.isdecimal():
            found.setdefault(int(head), {})[rest] = value
    if found and "role" not in flat:
        raise Unreadable("a message without a role")
    return [_part(found[number]) for number in sorted(found)], len(found) != max(found, default=-1) + 1


def _message(flat: dict[str, str]) -> Json:
    """One numbered message as a chat API has it.

    Raises:
        Unreadable: a part of it is missing.
    """
    if "completion.text" in flat:
        return {"role": "assistant", "content": flat["completion.text"]}
    unknown = not all(key.startswith("message.") for key in flat)  # AutoGen's results and thoughts
    flat = {key.removeprefix("message."): value for key, value in flat.items()}
    names = ("role", "content", "name", "tool_call_id", "refusal", "reasoning_content")
    value: Json = {name: flat[name] for name in names if name in flat}
    parts, holes = _contents(flat)
    if holes or unknown:
        value["left_out"] = True
    calls = listed(flat, "tool_calls")
    if calls:
        # CrewAI's listener writes the name as Python prints it, in quotes.
        value["tool_calls"] = [
            {
                key.removeprefix("tool_call.").removeprefix("function."): text.strip("'")
                if key.endswith("function.name")
                else text
                for key, text in call.items()
            }
            for call in calls
        ]
        parts = [part for part in parts if part["type"] != "tool_use"]
    elif "function_call_name" in flat:
        arguments = flat.get("function_call_arguments_json")
        value["function_call"] = {"name": flat["function_call_name"], "arguments": arguments}
    if parts and value.get("tool_call_id") and value.get("role") == "user":
        # Anthropic's message of a result and what the user said with it.
        result = {
            "type": "tool_result",
            "tool_use_id": value.pop("tool_call_id"),
            "content": value.get("content", ""),
        }
        value["content"] = [result, *parts]
    elif parts:
        # Some write a text in both places.
        alone = value.get("content") and not any(part["type"] == "text" for part in parts)
        value["content"] = [*([value["content"]] if alone else []), *parts]
    elif value.get("tool_call_id") and value.get("role") == "user":
        value["role"] = "tool"
    return value


def prompt(raw: str) -> list[Message] | None:
    """One message of the prompt: the numbered attributes of one or several that were sent as one, or what the request has."""
    if raw.startswith('{"lc":'):
        return langchain(raw)
    if raw.startswith("{"):
        return chat.read(_HIDDEN_PICTURE.sub('"left_out": true', raw), by_value=True)
    try:
        pieces = [_message(flat) for flat in orjson.loads(raw)]
    except Unreadable:
        return None
    flags = Flag(0)
    for piece in pieces:
        if piece.pop("left_out", False):
            flags |= Flag.LEFT_OUT_CONTENT
    if len(pieces) == 1 and pieces[0].keys() == {"role"}:
        # Nobody sends a message that is empty: what it holds has no attribute.
        flags |= Flag.LEFT_OUT_CONTENT
    if any(piece.get("role") in _RENAMED for piece in pieces):
        flags |= Flag.RENAMED_ROLES
    value = joined([{**piece, "role": _RENAMED.get(role := piece.get("role", ""), role)} for piece in pieces])
    read = chat.message(value, by_value=True)
    if flags and read is not None:
        return [message._replace(flags=message.flags | flags) for message in read]
    return read


def _run_together(arguments: str) -> bool:
    """Whether they are those of several calls (OpenAI for Node, of a stream): which call had which name and id cannot be told."""
    if "}{" not in arguments:
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(arguments)
    except (ValueError, RecursionError):
        return False
    return arguments.startswith("{", end)


def answer(raw: str) -> Message | None:
    """One answer: numbered attributes, or a choice in the response."""
    try:
        if raw.startswith("{"):
            found = chat.load(raw)
            value = response(found["response"], found["choice"])
        else:
            value = joined([_message(flat) for flat in orjson.loads(raw)])
            value.pop("left_out", None)
            if any(_run_together(call.get("arguments") or "") for call in value.get("tool_calls") or []):
                return None
        read = chat.message(
            {**value, "role": value.get("role") or "assistant"}, answering=True, by_value=True
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return read[0] if read is not None and len(read) == 1 else None


OPENINFERENCE = Flavour(
    name="openinference",
    recognise=RECOGNISE,
    columns=COLUMNS,
    prepared=PREPARED,
    prompt=prompt,
    answer=answer,
    tools=chat.tools,
    facts=FACTS,
)
