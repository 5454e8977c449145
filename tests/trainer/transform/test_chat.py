"""Messages of every convention's shape, in OpenAI chat form."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanloop_trainer.transform.flavours import Flag, Message, chat, quick

Json = dict[str, Any]


def read(value: Any) -> list[Json]:
    messages = chat.read(json.dumps(value))
    assert messages is not None
    return [json.loads(message.chat) for message in messages]


def flags(value: Any) -> list[str]:
    messages = chat.read(json.dumps(value))
    assert messages is not None
    return [name for message in messages for name in Flag(message.flags).names()]


def parts(role: str, *of: Any, **fields: Any) -> Json:
    return {"role": role, "parts": list(of), **fields}


def function(name: str, arguments: str, call: str) -> Json:
    return {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}


CALL = function("add", '{"a": 1}', "c1")
CALLS = {
    "otel": parts("assistant", {"type": "tool_call", "id": "c1", "name": "add", "arguments": {"a": 1}}),
    "otel-text-arguments": parts(
        "assistant", {"type": "tool_call", "id": "c1", "name": "add", "arguments": '{"a": 1}'}
    ),
    "openai": {"role": "assistant", "content": None, "tool_calls": [CALL]},
    "openai-flat": {"role": "assistant", "tool_calls": [{"id": "c1", "name": "add", "args": {"a": 1}}]},
    "responses": {
        "type": "function_call",
        "call_id": "c1",
        "id": "fc_9",
        "name": "add",
        "arguments": '{"a": 1}',
    },
    "anthropic": {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}}],
    },
    "vercel": {
        "role": "assistant",
        "content": [{"type": "tool-call", "toolCallId": "c1", "toolName": "add", "input": {"a": 1}}],
    },
    "google": parts("model", {"functionCall": {"id": "c1", "name": "add", "args": {"a": 1}}}),
    "bedrock": {
        "role": "assistant",
        "content": [{"toolUse": {"toolUseId": "c1", "name": "add", "input": {"a": 1}}}],
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    },
}


@pytest.mark.parametrize("shape", CALLS)
def test_a_tool_call(shape: str) -> None:
    assert read(CALLS[shape]) == [{"role": "assistant", "content": None, "tool_calls": [CALL]}]


RESULTS = {
    "otel": parts("tool", {"type": "tool_call_response", "id": "c1", "response": "42"}),
    "otel-early": parts("user", {"type": "tool_call_response", "id": "c1", "result": "42"}),
    "openai": {"role": "tool", "tool_call_id": "c1", "content": "42"},
    "openai-parts": {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "42"}]},
    "responses": {"type": "function_call_output", "call_id": "c1", "output": "42"},
    "anthropic": {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "42"}]}
        ],
    },
    "vercel": {
        "role": "tool",
        "content": [{"type": "tool-result", "toolCallId": "c1", "output": {"type": "text", "value": "42"}}],
    },
    "bedrock": {
        "role": "user",
        "content": [{"toolResult": {"toolUseId": "c1", "content": [{"text": "42"}]}}],
    },
}


@pytest.mark.parametrize("shape", RESULTS)
def test_a_tool_result(shape: str) -> None:
    assert read(RESULTS[shape]) == [{"role": "tool", "tool_call_id": "c1", "content": "42"}]
    assert flags(RESULTS[shape]) == []


def test_a_result_that_is_a_value_is_shown_as_frameworks_send_it_and_says_so() -> None:
    message = parts(
        "tool", {"type": "tool_call_response", "id": "c1", "response": {"city": "Köln", "days": [1, 2]}}
    )
    assert read(message) == [
        {"role": "tool", "tool_call_id": "c1", "content": '{"city":"Köln","days":[1,2]}'}
    ]
    assert flags(message) == ["rendered_tool_results"]


def test_parallel_results_are_messages_and_a_text_beside_them_is_the_users() -> None:
    results = [{"type": "tool_call_response", "id": f"c{n}", "response": str(n)} for n in range(3)]
    assert read(parts("user", *results, {"type": "text", "content": "And now?"})) == [
        *({"role": "tool", "tool_call_id": f"c{n}", "content": str(n)} for n in range(3)),
        {"role": "user", "content": "And now?"},
    ]


def test_reasoning_stands_beside_the_answer_and_not_in_what_chains_compare() -> None:
    with_thought = parts(
        "assistant", {"type": "reasoning", "content": "hm"}, {"type": "text", "content": "4"}
    )
    [message] = chat.read(json.dumps(with_thought)) or []
    [plain] = chat.read(json.dumps(parts("assistant", {"type": "text", "content": "4"}))) or []
    assert json.loads(message.chat) == {"role": "assistant", "content": "4", "reasoning_content": "hm"}
    assert message.key == plain.key
    item = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
    assert read(item) == [{"role": "assistant", "content": "", "reasoning_content": "hm"}]


def test_a_refusal_is_no_content() -> None:
    assert read(parts("assistant", {"type": "refusal", "content": "No."})) == [
        {"role": "assistant", "content": None, "refusal": "No."}
    ]
    assert read({"role": "assistant", "content": None, "refusal": "No."}) == [
        {"role": "assistant", "content": None, "refusal": "No."}
    ]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
ADDRESS = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
MEDIA = {
    "otel-blob": ({"type": "blob", "modality": "image", "mime_type": "image/png", "content": "QUJD"}, IMAGE),
    "otel-uri": ({"type": "uri", "modality": "image", "uri": "https://example.org/a.png"}, ADDRESS),
    "otel-file": (
        {"type": "file", "modality": "image", "file_id": "f1"},
        {"type": "file", "file": {"file_id": "f1"}},
    ),
    "otel-audio": (
        {"type": "blob", "modality": "audio", "mime_type": "audio/mp3", "content": "QUJD"},
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "mp3"}},
    ),
    "openai": (ADDRESS, ADDRESS),
    "responses": ({"type": "input_image", "image_url": "https://example.org/a.png"}, ADDRESS),
    "anthropic": (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
        IMAGE,
    ),
    "anthropic-url": (
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        ADDRESS,
    ),
    "vercel": ({"type": "image", "image": "QUJD", "mediaType": "image/png"}, IMAGE),
    "pydantic": ({"type": "image-url", "url": "https://example.org/a.png"}, ADDRESS),
    "pydantic-binary": ({"type": "binary", "media_type": "image/png", "content": "QUJD"}, IMAGE),
}


@pytest.mark.parametrize("shape", MEDIA)
def test_media(shape: str) -> None:
    recorded, expected = MEDIA[shape]
    message = parts("user", {"type": "text", "content": "What is it?"}, recorded)
    assert read(message) == [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, expected]}]
    assert flags(message) == []


def test_media_that_was_left_out_of_the_recording_says_so() -> None:
    assert flags(parts("user", {"type": "binary", "media_type": "image/png"})) == ["left_out_content"]


def test_an_unknown_part_stays_as_it_is_and_says_so() -> None:
    part = {"type": "hologram", "angle": 3}
    assert read(parts("user", part)) == [{"role": "user", "content": [part]}]
    assert flags(parts("user", part)) == ["unread_parts"]
    server = parts(
        "assistant",
        {"type": "tool_call_response", "id": "s1", "response": []},
        {"type": "text", "content": "x"},
    )
    answer = chat.read_answer(json.dumps(server))
    assert answer is not None  # one answer, whatever its provider's tools put in
    assert Flag(answer.flags).names() == ["unread_parts"]


@pytest.mark.parametrize(
    "empty",
    [parts("assistant"), {"role": "assistant", "parts": None}, {"role": "assistant", "content": []}],
    ids=["no-parts", "null", "no-content"],
)
def test_an_empty_message_has_an_empty_text(empty: Json) -> None:
    assert read(empty) == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("answer", "flagged"),
    [
        (parts("assistant", finish_reason="stop"), True),
        (parts("assistant", {"type": "text", "content": ""}), False),
        (parts("assistant", {"type": "text", "content": "I look."}, finish_reason="tool_calls"), True),
        (parts("assistant", tool_calls=[CALL], finish_reason="tool_calls"), False),
    ],
    ids=["nothing", "empty-text", "calls-left-out", "calls-beside-parts"],
)
def test_an_answer_of_which_something_is_not_recorded_says_so(answer: Json, flagged: bool) -> None:
    read_answer = chat.read_answer(json.dumps(answer))
    assert read_answer is not None
    assert Flag(read_answer.flags).names() == (["left_out_content"] if flagged else [])


def test_a_users_message_without_parts_had_some() -> None:
    assert flags(parts("user")) == ["left_out_content"]
    assert flags(parts("user", {"type": "text", "content": ""})) == []


def test_the_id_of_a_result_may_stand_beside_its_parts() -> None:
    """LiteLLM."""
    value = parts("tool", {"type": "text", "content": "21"}, tool_call_id="c1")
    assert read(value) == [{"role": "tool", "tool_call_id": "c1", "content": "21"}]


def test_an_answer_is_the_assistants_whatever_its_role_is_called() -> None:
    """LangChain's stream over Traceloop has an `unknown` one."""
    answer = chat.read_answer(json.dumps(parts("unknown", {"type": "text", "content": "x"})))
    assert answer is not None
    assert (answer.role, json.loads(answer.chat)["role"]) == ("assistant", "assistant")


def test_thoughts_may_be_the_json_of_a_summary_and_parts_may_have_a_kind() -> None:
    summary = parts(
        "assistant", {"type": "reasoning", "content": '[{"text": "Hm.", "type": "summary_text"}]'}
    )
    kinds = {
        "role": "assistant",
        "content": [{"kind": "thinking", "text": "Hm."}, {"kind": "text", "text": "x"}],
    }
    assert read(summary)[0]["reasoning_content"] == "Hm."
    assert read(kinds) == [{"role": "assistant", "content": "x", "reasoning_content": "Hm."}]


@pytest.mark.parametrize(
    "broken", ["42", "null", "[]", '{"parts": []}', '{"role": 3}', "{", '{"role": "user", "parts": [3]}']
)
def test_another_shape_is_not_guessed_at(broken: str) -> None:
    assert chat.read(broken) is None
    assert chat.read_answer("[1]") is None


def test_half_a_surrogate_pair_does_not_stop_a_build() -> None:
    [message] = (
        chat.read('{"role": "user", "parts": [{"type": "text", "content": "a\\ud83d b \\ud83d\\ude00"}]}')
        or []
    )
    assert message.text == "a? b 😀"
    message.chat.encode()


def test_names_and_finish_reasons() -> None:
    value = parts("assistant", {"type": "text", "content": "x"}, name="planner", finish_reason="stop")
    [message] = chat.read(json.dumps(value)) or []
    assert json.loads(message.chat) == {"role": "assistant", "content": "x", "name": "planner"}
    assert message.finish_reason == "stop"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = {
    "flat": [{"type": "function", "name": "add", "description": "Adds", "parameters": SCHEMA}],
    "nested": [
        {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": SCHEMA}}
    ],
    "anthropic": [{"name": "add", "description": "Adds", "input_schema": SCHEMA}],
    "mcp": [{"name": "add", "description": "Adds", "inputSchema": SCHEMA}],
    "texts": [json.dumps({"type": "function", "name": "add", "description": "Adds", "inputSchema": SCHEMA})],
    "google": [{"functionDeclarations": [{"name": "add", "description": "Adds", "parameters": SCHEMA}]}],
    "one": {"name": "add", "description": "Adds", "parameters": SCHEMA},
}


@pytest.mark.parametrize("shape", TOOLS)
def test_tool_definitions(shape: str) -> None:
    assert json.loads(chat.tools(json.dumps(TOOLS[shape])) or "") == [
        {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": SCHEMA}}
    ]


def test_tools_of_the_provider_and_broken_ones() -> None:
    assert json.loads(chat.tools('[{"type": "web_search"}]') or "") == [{"type": "web_search"}]
    assert chat.tools("[1]") is None
    assert chat.tools('[{"name":') is None


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_FLAT = st.dictionaries(
    _TEXT, st.one_of(_TEXT, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())
)
_PART = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "content": _TEXT}),
    st.fixed_dictionaries({"type": st.just("tool_call_response"), "id": _TEXT, "response": _TEXT}),
    st.fixed_dictionaries(
        {"type": st.just("tool_call"), "name": _TEXT, "id": st.one_of(_TEXT, st.just("fc_1")), "arguments": st.one_of(_TEXT, _FLAT)}
    ),
)  # fmt: skip
_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "model", "ai"]), "parts": st.lists(_PART, max_size=2)},
    optional={"finish_reason": st.sampled_from(["stop", "tool_call"]), "name": st.none()},
)  # fmt: skip


# The first example waits for Polars' threads.
@settings(deadline=None)
@given(st.lists(_MESSAGE, min_size=1, max_size=8), st.booleans())
def test_what_is_read_quickly_is_read_alike(values: list[Json], ascii_only: bool) -> None:
    raw = [json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only) for value in values]
    fast = quick.messages(pl.Series(raw, dtype=pl.String))
    for text, row in zip(raw, fast.iter_rows(), strict=True):
        if row[0] is not None:
            assert [tuple(Message(*row))] == [tuple(message) for message in chat.read(text) or []]
            assert tuple(Message(*row)) == chat.read_answer(text) or row[2] == "tool"


def test_the_commonest_shapes_are_read_quickly() -> None:
    """Else a build takes several times as long, and nothing tells."""
    text = {"type": "text", "content": 'Köln \\ "x"\n'}
    call = {"type": "tool_call", "name": "add", "id": "c1", "arguments": {"a": 1, "b": "x"}}
    common = [
        parts("system", text),
        parts("user", {"content": "x", "type": "text"}, name=None),
        parts("assistant", call, finish_reason="tool_call"),
        parts("assistant", {**call, "arguments": '{"a": 1}'}),
        parts("tool", {"type": "tool_call_response", "id": "c1", "response": "42"}),
    ]
    raw = [json.dumps(message, separators=(",", ":"), ensure_ascii=False) for message in common]
    assert quick.messages(pl.Series(raw))["chat"].null_count() == 0
    # And what only looks common is left to the reader that defines it.
    same_key = raw[2].replace('"b":"x"', '"a":"x"')
    odd = [same_key, raw[2].replace("c1", "fc_1"), raw[1].replace("user", "human")]
    assert quick.messages(pl.Series(odd))["chat"].null_count() == len(odd)
