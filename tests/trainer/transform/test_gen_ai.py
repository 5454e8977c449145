"""What spans, log events and span events of the GenAI conventions hold, read from the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from spanloop_store import connect
from spanloop_trainer.transform.flavours import Flag
from spanloop_trainer.transform.pieces.piece import canonical
from spanloop_trainer.transform.reading.read import Window, read_spans

from .conftest import Row, insert, said, user

Json = dict[str, Any]
Events = list[tuple[str, Json]]
Call = dict[str, Any]
Read = Callable[..., list[Call]]
_SECOND = 1_000_000_000
# Far from any retention.
_START = 4_000_000_000 * _SECOND


def span(number: int, attributes: Json, events: Sequence[tuple[str, Json]] = ()) -> Row:
    """Span `s<number>` in trace `t<number>`, at `number` seconds; values that are no text become JSON."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in attributes.items()}
    return {
        "Timestamp": _START + number * _SECOND,
        "TraceId": f"t{number}",
        "SpanId": f"s{number}",
        "ParentSpanId": "",
        "SpanName": "any",
        "ServiceName": "agent",
        "ResourceAttributes": {},
        "SpanAttributes": texts,
        "Duration": _SECOND,
        "StatusCode": "Unset",
        "StatusMessage": "",
        "Events.Timestamp": [_START + number * _SECOND] * len(events),
        "Events.Name": [name for name, _ in events],
        "Events.Attributes": [
            {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
            for _, values in events
        ],
    }


def log(number: int, name: str, body: Any = "", *, in_attribute: bool = True, **attributes: Any) -> Row:
    """A log record of span `s<number>`."""
    values = {key.replace("__", "."): json.dumps(value) for key, value in attributes.items()}
    return {
        "Timestamp": _START + number * _SECOND,
        "TraceId": f"t{number}",
        "SpanId": f"s{number}",
        "ServiceName": "agent",
        "Body": body if isinstance(body, str) else json.dumps(body),
        "LogAttributes": {**values, **({"event.name": name} if in_attribute else {})},
        "EventName": "" if in_attribute else name,
    }


def chat(**attributes: Any) -> Json:
    """Attributes of a call; `__` in a name stands for a dot."""
    return {
        "gen_ai.operation.name": "chat",
        **{key.replace("__", "."): value for key, value in attributes.items()},
    }


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    opened = connect(f"chdb://{tmp_path_factory.mktemp('gen_ai')}/store")
    yield opened
    opened.close()


@pytest.fixture
def read(client: Client) -> Read:
    """Calls that were read, in order of start, with `messages` and `chats` parsed."""

    def run(rows: Sequence[Row], *batches_of_logs: Sequence[Row]) -> list[Call]:
        client.command("TRUNCATE TABLE otel_traces")
        client.command("TRUNCATE TABLE otel_logs")
        insert(client, rows)
        for logs in batches_of_logs:
            names = list(logs[0])
            client.insert("otel_logs", [[row[name] for name in names] for row in logs], column_names=names)
        piece = canonical(read_spans(client, Window()))
        calls = piece.slim.calls.join(piece.texts, on="call").sort("start").to_dicts()
        for call in calls:
            call["messages"] = [json.loads(message) for message in call["messages"] or []]
            call["chats"] = [json.loads(answer) for answer in call["chats"]]
            call["flags"] = Flag(call["flags"]).names()
        return calls

    return run


ASKED = [user("2+2?")]
ANSWERED = [{**said("4"), "finish_reason": "stop"}]
PROMPT = [{"role": "user", "content": "2+2?"}]
ANSWER = [{"role": "assistant", "content": "4"}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
TEXT_PART = {"type": "text", "content": "Be brief."}


def test_system_instructions(read: Read) -> None:
    shapes = ([TEXT_PART], TEXT_PART, "Be brief.", '"Be brief."', ["Be brief."])
    attributes = chat(gen_ai__input__messages=ASKED, gen_ai__output__messages=ANSWERED)
    rows = [span(n, {**attributes, "gen_ai.system_instructions": shape}) for n, shape in enumerate(shapes)]
    for call in read(rows):
        assert (call["messages"], call["chats"], call["status"]) == ([*SYSTEM, *PROMPT], ANSWER, "ok")


def test_instructions_that_only_look_like_json_are_text(read: Read) -> None:
    [call] = read(
        [span(1, chat(gen_ai__input__messages=ASKED, gen_ai__system_instructions="[INST] {x} [/INST]"))]
    )
    assert call["messages"][0] == {"role": "system", "content": "[INST] {x} [/INST]"}


def test_prompts_of_other_shapes(read: Read) -> None:
    shapes = ([{"role": "user", "content": "2+2?"}], user("2+2?"), [json.dumps(user("2+2?"))], "2+2?")
    rows = [
        span(n, chat(gen_ai__input__messages=shape, gen_ai__output__messages=ANSWERED))
        for n, shape in enumerate(shapes)
    ]
    calls = read(rows)
    assert [(call["messages"], call["chats"]) for call in calls] == [(PROMPT, ANSWER)] * len(shapes)
    assert [call["flags"] for call in calls] == [[], [], [], ["only_text"]]


def test_what_was_cut_is_invalid_and_harms_nothing_beside_it(read: Read) -> None:
    whole = json.dumps(ASKED)
    cut = [
        {"gen_ai.input.messages": whole[:-9]},
        {"gen_ai.input.messages": whole, "gen_ai.output.messages": json.dumps(ANSWERED)[:-9]},
        {"gen_ai.input.messages": whole, "gen_ai.system_instructions": json.dumps([TEXT_PART])[:-9]},
        {"gen_ai.input.messages": whole, "gen_ai.tool.definitions": '[{"name": "a'},
        {"gen_ai.input.messages": '[{"role": "user", "parts": [3]}]'},
    ]
    good = chat(gen_ai__input__messages=ASKED, gen_ai__output__messages=ANSWERED)
    calls = read([span(0, good), *(span(n, {**chat(), **attributes}) for n, attributes in enumerate(cut, 1))])
    assert [call["status"] for call in calls] == ["ok", *["invalid"] * len(cut)]
    assert calls[0]["messages"] == PROMPT


def test_only_calls_of_models_are_calls(read: Read) -> None:
    content = {"gen_ai.input.messages": ASKED, "gen_ai.output.messages": ANSWERED}
    names = ["chat", "text_completion", "generate_content", "embeddings", "execute_tool", "invoke_agent"]
    calls = read([span(n, {"gen_ai.operation.name": name, **content}) for n, name in enumerate(names)])
    assert [call["span_id"] for call in calls] == ["s0", "s1", "s2"]


def test_n_answers_long_numbers_and_finish_reasons_of_the_span(read: Read) -> None:
    number = 123456789012345678901234567890
    part = {"type": "tool_call", "id": "c1", "name": "add", "arguments": {"a": number}}
    answers = [{"role": "assistant", "parts": [part]}, said("é 日本 😀")]
    [call] = read(
        [
            span(
                1,
                chat(
                    gen_ai__input__messages=ASKED,
                    gen_ai__output__messages=answers,
                    gen_ai__response__finish_reasons=["tool_call", "stop"],
                ),
            )
        ]
    )
    assert json.loads(call["chats"][0]["tool_calls"][0]["function"]["arguments"]) == {"a": number}
    assert call["chats"][1]["content"] == "é 日本 😀"
    assert call["finish_reasons"] == ["tool_call", "stop"]
    assert call["status"] == "ok"
    # The tools that were offered are not recorded, and one was called.
    assert call["flags"] == ["unknown_tools"]


NAMED: Events = [
    ("gen_ai.system.message", {"content": "Be brief."}),
    ("gen_ai.user.message", {"content": "2+2?"}),
    (
        "gen_ai.assistant.message",
        {
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
            ]
        },
    ),
    ("gen_ai.tool.message", {"content": "4", "id": "c1"}),
    ("gen_ai.choice", {"index": 1, "finish_reason": "length", "message": {"content": "Four"}}),
    (
        "gen_ai.choice",
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "4"}},
    ),
]
NAMED_PROMPT = [
    *SYSTEM,
    *PROMPT,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "4"},
]


def check_named(call: Call) -> None:
    assert call["messages"] == NAMED_PROMPT
    assert call["chats"] == [*ANSWER, {"role": "assistant", "content": "Four"}]
    assert [answer["finish"] for answer in call["answers"]] == ["stop", "length"]
    assert call["flags"] == ["unknown_tools"]


def test_messages_in_log_events(read: Read) -> None:
    logs = [log(n, name, body, in_attribute=n == 1) for n in (1, 3) for name, body in NAMED]
    elsewhere = [
        log(2, "gen_ai.user.message", {"content": "another call's"}),
        log(1, "gen_ai.evaluation.result", {}),
    ]
    calls = read([span(1, chat()), span(3, chat())], [*logs, *elsewhere])
    assert [call["span_id"] for call in calls] == ["s1", "s3"]
    for call in calls:
        check_named(call)


def test_records_that_were_sent_twice_count_once_and_equal_messages_stay(read: Read) -> None:
    logs = [log(1, name, body) for name, body in [NAMED[1], NAMED[1], *NAMED[1:]]]
    # Each batch has another record beside them: equal batches the table takes once.
    batches = [[*logs, log(number, *NAMED[1])] for number in (7, 8, 9)]
    for sent in (1, 2, 3):
        [call] = read([span(1, chat())], *batches[:sent])
        assert [message["role"] for message in call["messages"]] == [
            "user",
            "user",
            "user",
            "assistant",
            "tool",
        ]
        assert len(call["chats"]) == 2


def test_messages_in_span_events_and_in_an_attribute(read: Read) -> None:
    as_content: Events = [(name, {"gen_ai.event.content": body}) for name, body in NAMED]
    listed = [{**body, "event.name": name, "gen_ai.message.index": n} for n, (name, body) in enumerate(NAMED)]
    calls = read([span(1, chat(), NAMED), span(2, chat(), as_content), span(3, chat(events=listed))])
    assert len(calls) == 3
    for call in calls:
        check_named(call)


def test_googles_content_in_log_events_and_a_stream_in_pieces(read: Read) -> None:
    """google-genai of OpenTelemetry: role and parts inside, every field there, an event a piece."""
    part = {
        "thought": None,
        "inline_data": None,
        "function_call": None,
        "function_response": None,
        "text": None,
    }
    called = {**part, "function_call": {"id": None, "name": "add", "args": {"a": 1}}}
    returned = {**part, "function_response": {"id": None, "name": "add", "response": {"sum": 2}}}
    pieces = [{**part, "text": "Let "}, {**part, "text": "me."}, called]
    logs = [
        log(1, "gen_ai.user.message", {"content": {"role": "user", "parts": [{**part, "text": "1 + 1?"}]}}),
        log(1, "gen_ai.user.message", {"content": {"role": "model", "parts": [called]}}),
        log(1, "gen_ai.user.message", {"content": {"role": "user", "parts": [returned]}}),
        *(
            log(1, "gen_ai.choice", {
                "index": n, "content": {"role": "model", "parts": [piece]},
                **({"finish_reason": "STOP"} if n == len(pieces) - 1 else {}),
            }) for n, piece in enumerate(pieces)
        ),
    ]  # fmt: skip
    [call] = read([span(1, chat())], logs)
    assert [message["role"] for message in call["messages"]] == ["user", "assistant", "tool"]
    assert call["messages"][2]["content"] == '{"sum":2}'
    [answer] = call["chats"]
    assert answer["content"] == "Let me."
    assert answer["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}


def test_bedrocks_results_in_two_events_count_once(read: Read) -> None:
    results = [{"toolResult": {"toolUseId": "c1", "content": [{"text": "2"}]}}, {"text": "go on"}]
    logs = [
        log(1, "gen_ai.tool.message", {"id": "c1", "content": [{"text": "2"}]}),
        log(1, "gen_ai.user.message", {"content": results}),
        log(1, "gen_ai.tool.message", {"id": "other", "content": [{"text": "3"}]}),
    ]
    [call] = read([span(1, chat())], logs)
    assert [(m["role"], m["content"]) for m in call["messages"]] == [
        ("tool", "2"),
        ("user", "go on"),
        ("tool", "3"),
    ]


def test_a_text_beside_calls_may_be_left_out_of_events(read: Read) -> None:
    """openai-v2 leaves it out of the history, Bedrock's out of the answer: the call goes on all the same."""
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    spoken = {"content": "I add.", "tool_calls": calls}
    logs = [
        log(1, "gen_ai.user.message", {"content": "1 + 1?"}),
        log(1, "gen_ai.choice", {"index": 0, "finish_reason": "tool_calls", "message": spoken}),
        log(2, "gen_ai.user.message", {"content": "1 + 1?"}),
        log(2, "gen_ai.assistant.message", {"tool_calls": calls}),
        log(2, "gen_ai.tool.message", {"id": "c1", "content": "2"}),
    ]
    first, second = read([span(1, chat()), span(2, chat())], logs)
    assert first["chats"][0]["content"] == "I add."
    assert first["answers"][0]["code"] in {prefix["code"] for prefix in second["prefixes"]}


@pytest.mark.parametrize(
    "attributes",
    [
        {"model_request_parameters": {
            "function_tools": [{"name": "add", "parameters_json_schema": {"type": "object"}}], "output_tools": [],
        }},
        {"llm.request.functions.0.name": "add", "llm.request.functions.0.parameters": '{"type": "object"}'},
    ],
    ids=["pydantic-ai", "litellm"],
)  # fmt: skip
def test_tools_may_stand_elsewhere(read: Read, attributes: Json) -> None:
    messages = {"gen_ai.input.messages": [user("1 + 1?")]}
    for call in read([span(1, {**chat(), **messages, **attributes})]):
        [tool] = json.loads(call["tools_json"])
        assert tool["function"]["name"] == "add"
        assert tool["function"]["parameters"] == {"type": "object"}


def test_what_openinference_adds_beside_the_messages_is_not_read(read: Read) -> None:
    """Its processors write their attributes beside Pydantic AI's, without names of tools and with results run together."""
    beside = {
        "openinference.span.kind": "LLM",
        "llm.input_messages.1.message.role": "user",
        "llm.tools.0.tool.json_schema": '{"type": "object"}',
    }
    attributes = chat(gen_ai__input__messages=ASKED, gen_ai__output__messages=ANSWERED)
    tools = {"gen_ai.tool.definitions": [{"type": "function", "name": "add", "parameters": {}}]}
    [call] = read([span(1, {**attributes, **beside, **tools})])
    assert (call["flavour"], call["messages"], call["chats"]) == ("gen_ai", PROMPT, ANSWER)
    assert json.loads(call["tools_json"])[0]["function"]["name"] == "add"


def test_googles_request_and_response_in_one_attribute_each(read: Read) -> None:
    """Google's ADK; its tools' spans have an empty request."""
    called = {"function_call": {"id": "c1", "args": {"n": 1}, "name": "add"}}
    result = {"function_response": {"id": "c1", "name": "add", "response": {"sum": 2}}}
    tool = {"name": "add", "parameters": {"type": "OBJECT"}}
    request = {
        "model": "m-1",
        "config": {
            "system_instruction": "Be brief.", "temperature": 0.5, "tools": [{"function_declarations": [tool]}],
            "labels": {"adk_agent_name": "adder"},
        },
        "contents": [
            {"role": "user", "parts": [{"text": "1 + 1?"}]}, {"role": "model", "parts": [called]},
            {"role": "user", "parts": [result]},
        ],
    }  # fmt: skip
    response = {"content": {"role": "model", "parts": [{"text": "2"}]}, "partial": False}
    names = ("llm_request", "llm_response", "session_id")
    of_call, of_tool = (
        {f"gcp.vertex.agent.{name}": value for name, value in zip(names, values, strict=True)}
        for values in ((request, response, "s-1"), ("{}", "{}", "s-1"))
    )
    [call] = read([span(1, {**of_call, "gen_ai.usage.output_tokens": "5"}), span(2, of_tool)])
    assert call["messages"] == [
        *SYSTEM,
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"n":1}'}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"sum":2}'},
    ]  # fmt: skip
    assert (call["chats"], call["status"]) == ([{"role": "assistant", "content": "2"}], "ok")
    assert [call[name] for name in ("request_model", "temperature", "session", "span_agent")] == [
        "m-1",
        0.5,
        "s-1",
        "adder",
    ]
    assert json.loads(call["tools_json"]) == [{"type": "function", "function": tool}]


def test_what_a_call_of_the_responses_api_goes_on_from_is_no_session(read: Read) -> None:
    attributes = chat(gen_ai__input__messages=ASKED, gen_ai__output__messages=ANSWERED)
    ids = ("resp_12", "conv_12")
    calls = read([span(n, {**attributes, "gen_ai.conversation.id": one}) for n, one in enumerate(ids)])
    assert [call["session"] for call in calls] == [None, "conv_12"]


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        ({"traceloop.span.kind": "task", "traceloop.entity.name": "any",
          "traceloop.association.properties.lc_agent_name": "any"}, "any"),
        ({"traceloop.span.kind": "task", "traceloop.entity.name": "LangGraph"}, "LangGraph"),
        ({"openinference.span.kind": "CHAIN", "metadata": {"lc_agent_name": "any"}}, "any"),
        ({"openinference.span.kind": "CHAIN", "metadata": {"lc_agent_name": "another"}}, None),
        ({"traceloop.span.kind": "task", "traceloop.entity.name": "tools",
          "traceloop.association.properties.lc_agent_name": "any"}, None),
    ],
)  # fmt: skip
def test_agents_of_langchain_are_graphs(client: Client, graph: Json, name: str | None) -> None:
    """Neither marks them as agents: OpenInference has a CHAIN, Traceloop a task, and an `invoke_agent` without children beside it."""
    call = span(2, chat(gen_ai__input__messages=ASKED, gen_ai__output__messages=ANSWERED))
    client.command("TRUNCATE TABLE otel_traces")
    insert(client, [span(1, graph), {**call, "TraceId": "t1", "ParentSpanId": "s1"}])
    above = read_spans(client, Window()).ancestors.filter(span_id="s1")
    assert above.select("is_agent", "agent_name").row(0) == (name is not None, name)


def test_details_in_a_log_event(read: Read) -> None:
    details: Json = {
        "gen_ai__input__messages": ASKED,
        "gen_ai__output__messages": ANSWERED,
        "gen_ai__system_instructions": [TEXT_PART],
        "gen_ai__tool__definitions": [{"type": "function", "name": "add", "parameters": {}}],
    }
    name = "gen_ai.client.inference.operation.details"
    in_body = {key.replace("__", "."): value for key, value in details.items()}
    calls = read(
        [span(1, chat()), span(2, chat()), span(3, chat(), [(name, in_body)])],
        [log(1, name, **details), log(2, name, in_body)],
    )
    assert len(calls) == 3
    for call in calls:
        assert (call["messages"], call["chats"], call["status"]) == ([*SYSTEM, *PROMPT], ANSWER, "ok")
        assert json.loads(call["tools_json"]) == [
            {"type": "function", "function": {"name": "add", "parameters": {}}}
        ]


def test_the_content_events_of_early_versions(read: Read) -> None:
    events: Events = [
        ("gen_ai.content.prompt", {"gen_ai.prompt": json.dumps([*SYSTEM, *PROMPT])}),
        ("gen_ai.content.completion", {"gen_ai.completion": json.dumps(ANSWER)}),
    ]
    plain: Events = [events[0], ("gen_ai.content.completion", {"gen_ai.completion": "4"})]
    for call in read([span(1, chat(), events), span(2, chat(), plain)]):
        assert (call["messages"], call["chats"]) == ([*SYSTEM, *PROMPT], ANSWER)


def test_parts_as_json_in_the_attributes_of_span_events(read: Read) -> None:
    call = {"toolUse": {"toolUseId": "c1", "name": "add", "input": {"a": 2}}}
    answered = {"toolResult": {"toolUseId": "c1", "content": [{"text": '[{"sum": 4}]'}]}}
    events: Events = [
        ("gen_ai.user.message", {"content": [{"text": "2+2?"}]}),
        ("gen_ai.assistant.message", {"content": [call]}),
        ("gen_ai.tool.message", {"content": [answered], "role": "tool"}),
        ("gen_ai.choice", {"message": [{"text": "4"}], "finish_reason": "end_turn"}),
    ]
    [read_call] = read([span(1, chat(), events)])
    assert read_call["messages"] == [
        *PROMPT,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '[{"sum": 4}]'},
    ]
    assert read_call["chats"] == ANSWER


def test_what_is_on_the_span_wins_over_events(read: Read) -> None:
    on_span = chat(gen_ai__input__messages=ASKED, gen_ai__output__messages=ANSWERED)
    logs = [log(1, name, body) for name, body in NAMED]
    [call] = read([span(1, on_span, NAMED)], logs)
    assert (call["messages"], call["chats"], call["flavour"]) == (PROMPT, ANSWER, "gen_ai")


def test_a_call_without_content_and_one_whose_event_was_cut(read: Read) -> None:
    logs = [
        log(2, "gen_ai.user.message", '{"content": "2+'),
        log(3, "gen_ai.user.message", "2+2?"),
        # Content is not captured, but that there was a message is.
        log(4, "gen_ai.user.message", {"role": "user"}),
        log(4, "gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}),
    ]
    calls = read([span(n, chat()) for n in (1, 2, 3, 4)], logs)
    assert [call["has_content"] for call in calls] == [False, True, True, False]
    assert calls[1]["status"] == "invalid"
    assert calls[2]["messages"] == PROMPT


VERCEL_PROMPT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
]


def test_the_ai_sdk(read: Read) -> None:
    tool = json.dumps({"type": "function", "name": "add", "inputSchema": {"type": "object"}})
    base = {
        "ai.operationId": "ai.generateText.doGenerate",
        "ai.prompt.messages": VERCEL_PROMPT,
        "ai.prompt.tools": [tool],
    }
    raw = [{"toolCallId": "c1", "toolName": "add", "input": '{"a":2}'}]
    history = [
        *VERCEL_PROMPT,
        {
            "role": "assistant",
            "content": [{"type": "tool-call", "toolCallId": "c1", "toolName": "add", "input": {"a": 2}}],
        },
        {
            "role": "tool",
            "content": [
                {"type": "tool-result", "toolCallId": "c1", "output": {"type": "json", "value": [4]}}
            ],
        },
    ]
    calls = read(
        [
            span(1, {**base, "ai.response.toolCalls": raw, "ai.response.finishReason": "tool-calls"}),
            span(2, {**base, "ai.prompt.messages": history, "ai.response.text": "4", "ai.response.finishReason": "stop"}),
            span(3, {"ai.prompt.messages": VERCEL_PROMPT, "ai.result.text": "4", "ai.finishReason": "stop"}),
            span(4, {**base, "ai.response.object": '{"sum":4}', "ai.response.finishReason": "stop"}),
            span(5, base),
            span(6, {"ai.operationId": "ai.generateText", "ai.prompt": "{}", "ai.response.text": "4"}),
            span(7, {"ai.operationId": "ai.embed.doEmbed", "ai.values": ["x"]}),
            span(8, {**base, "ai.prompt.messages": json.dumps(history)[:-5]}),
        ]
    )  # fmt: skip
    assert [call["span_id"] for call in calls] == ["s1", "s2", "s3", "s4", "s5", "s8"]
    assert [call["status"] for call in calls] == ["ok", "ok", "ok", "ok", "truncated", "invalid"]
    assert calls[0]["chats"][0]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a":2}'}
    assert calls[1]["messages"][:2] == [*SYSTEM, *PROMPT]
    assert calls[1]["messages"][3] == {"role": "tool", "tool_call_id": "c1", "content": "[4]"}
    # The answer has its arguments as the model wrote them, the history as a value: the second call goes on from the first.
    assert calls[0]["answers"][0]["code"] in [prefix["code"] for prefix in calls[1]["prefixes"]]
    assert [calls[n]["chats"][0]["content"] for n in (1, 2, 3)] == ["4", "4", '{"sum":4}']
    assert json.loads(calls[0]["tools_json"])[0]["function"] == {
        "name": "add",
        "parameters": {"type": "object"},
    }


def test_what_the_ai_sdk_leaves_out(read: Read) -> None:
    """`recordInputs: false` and `recordOutputs: false` leave no message and no answer, and neither is made up."""
    base = {"ai.operationId": "ai.streamText.doStream", "ai.prompt.messages": VERCEL_PROMPT}
    cut = {"ai.response.text": "half", "ai.response.finishReason": "unknown"}
    calls = read(
        [
            span(1, {"ai.operationId": "ai.generateText.doGenerate", "ai.response.finishReason": "stop"}),
            span(2, {**base, "ai.response.finishReason": "stop", "ai.usage.outputTokens": 5}),
            span(3, {**base, **cut, "ai.usage.completionTokens": "nan"}),
            # Anthropic tells usage at the beginning of a stream.
            span(4, {**base, **cut, "ai.usage.completionTokens": 1}),
            span(5, {**base, "ai.response.text": "4", "ai.response.finishReason": "stop"}),
        ]
    )
    assert [call["has_content"] for call in calls] == [False, False, True, True, True]
    assert [call["status"] for call in calls][2:] == ["truncated", "truncated", "ok"]


def test_results_of_the_ai_sdk_up_to_version_4_are_json(read: Read) -> None:
    results = [
        {"type": "tool-result", "toolCallId": "c1", "toolName": "f", "result": result}
        for result in ("a text", {"a": [1]})
    ]
    (call,) = read(
        [
            span(
                1,
                {
                    "ai.prompt.messages": [*VERCEL_PROMPT, {"role": "tool", "content": results}],
                    "ai.telemetry.metadata.sessionId": "s",
                },
            )
        ]
    )
    assert [message["content"] for message in call["messages"][2:]] == ['"a text"', '{"a":[1]}']
    assert call["flags"] == []
    assert call["session"] == "s"


@pytest.mark.parametrize(
    ("attributes", "message", "raised", "error"),
    [
        ({"error.type": "429"}, "boom", "", "429"),
        ({}, "Error code: 429 - {'error': 'boom 7'}", "openai.RateLimitError", "openai.RateLimitError"),
        ({}, "RateLimitError: Error code: 429", "", "RateLimitError"),
        ({}, 'OpenAIRateLimitError("Error code: 429")Traceback\n', "", "OpenAIRateLimitError"),
        ({}, "Error getting response: {'a': 7}", "", "Error getting response"),
        ({}, "boom", "", "boom"),
        ({"error.type": "BadRequest"}, "{'code': 'content_filter'}", "", "BadRequest: content_filter"),
        ({}, "Request timed out.", "openai.APITimeoutError", "openai.APITimeoutError"),
        ({}, "", "", None),
    ],
)
def test_an_error_is_named_by_its_class(
    read: Read, attributes: Json, message: str, raised: str, error: str | None
) -> None:
    """A whole message has another number in each: nothing could be counted by it."""
    events = [("exception", {"exception.type": raised})] if raised else []
    row = span(1, {"ai.prompt.messages": VERCEL_PROMPT, **attributes}, events)
    (call,) = read([{**row, "StatusCode": "Error", "StatusMessage": message}])
    assert (call["error_type"], call["status"]) == (error, "error")
