"""Reading answers and requests of model servers: what is found, and that nothing a server sends can break the agent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanloop_exporter.calls.record import Call, read_chat, read_response, request_attributes
from spanloop_exporter.calls.tools import results_in

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def shaped(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects that have some of the keys that a reader looks at, at every depth."""
    return st.recursive(
        JSON,
        lambda inner: st.dictionaries(st.sampled_from(keys), inner | st.lists(inner, max_size=2), max_size=5),
        max_leaves=12,
    ).filter(lambda value: isinstance(value, dict))


CHAT = shaped(
    "id", "choices", "index", "message", "delta", "tool_calls", "function", "arguments", "token_ids", "logprobs",
    "content", "logprob", "prompt_token_ids", "system_fingerprint",
)  # fmt: skip
RESPONSE = shaped(
    "type", "response", "object", "output", "output_index", "item", "call_id", "arguments", "delta", "logprobs",
    "input_messages", "output_messages", "tokens", "id", "content",
)  # fmt: skip
EVENTS = st.sampled_from(
    [
        "response.completed",
        "response.output_item.done",
        "response.output_text.delta",
        "response.function_call_arguments.delta",
    ]
)


@given(CHAT)
def test_no_chat_answer_breaks_the_reader(data: dict[str, Any]) -> None:
    call = Call()
    read_chat(call, data)
    assert all(isinstance(value, str) for value in call.attributes(content=True).values())


@given(RESPONSE, EVENTS | st.none())
def test_no_response_breaks_the_reader(data: dict[str, Any], event: str | None) -> None:
    call = Call()
    read_response(call, data | ({"type": event} if event else {"object": "response"}))
    assert all(isinstance(value, str) for value in call.attributes(content=True).values())


@given(
    shaped(
        "messages",
        "input",
        "role",
        "type",
        "tool_call_id",
        "call_id",
        "tool_calls",
        "function",
        "output",
        "content",
    )
)
def test_no_request_breaks_the_search_for_results(body: dict[str, Any]) -> None:
    assert all(isinstance(result.content, str) for result in results_in(body))


def test_chunks_add_up_to_what_the_whole_answer_says() -> None:
    streamed, whole = Call(), Call()
    for chunk in (
        {"id": "c", "prompt_token_ids": [1, 2], "choices": [{"index": 1, "delta": {"role": "assistant"}, "token_ids": []}]},
        {"id": "c", "choices": [{"index": 0, "delta": {"content": "x"}, "token_ids": [5], "logprobs": {"content": [{"logprob": -1}]}}]},
        {"id": "c", "choices": [{"index": 1, "delta": {"tool_calls": [{"index": 0, "id": "t", "function": {"name": "add", "arguments": ""}}]}, "token_ids": [6], "logprobs": {"content": [{"logprob": -2.0}]}}]},
        {"id": "c", "choices": [{"index": 1, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}}]},
        {"id": "c", "choices": [{"index": 1, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": " 1}"}}]}}]},
        {"id": "c", "choices": [], "usage": {}},
    ):  # fmt: skip
        read_chat(streamed, chunk)
    read_chat(
        whole,
        {
            "id": "c",
            "prompt_token_ids": [1, 2],
            "choices": [
                {"index": 0, "message": {"content": "x"}, "token_ids": [5], "logprobs": {"content": [{"logprob": -1}]}},
                {"index": 1, "token_ids": [6], "logprobs": {"content": [{"logprob": -2.0}]},
                 "message": {"tool_calls": [{"id": "t", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]}},
            ],
        },
    )  # fmt: skip
    assert streamed.attributes(content=True) == whole.attributes(content=True)
    assert whole.attributes(content=True) == {
        "spanloop.prompt_token_ids": "[1,2]",
        "spanloop.completion_token_ids": "[[5],[6]]",
        "spanloop.completion_logprobs": "[[-1],[-2.0]]",
        "spanloop.response.tool_calls": '[[], [{"id": "t", "name": "add", "arguments": "{\\"a\\": 1}"}]]',
    }


def test_log_probabilities_that_do_not_fit_their_tokens_are_left_out() -> None:
    call = Call()
    choice = {"token_ids": [5, 6], "logprobs": {"content": [{"logprob": -1.0}]}}
    read_chat(call, {"choices": [choice]})
    assert "spanloop.completion_logprobs" not in call.attributes(content=True)
    assert call.attributes(content=True)["spanloop.completion_token_ids"] == "[[5,6]]"


def test_a_refusal_has_its_log_probabilities() -> None:
    call = Call()
    logprobs = {"content": None, "refusal": [{"logprob": -1.0}]}
    read_chat(call, {"choices": [{"token_ids": [5], "logprobs": logprobs, "message": {"refusal": "no"}}]})
    assert call.attributes(content=True)["spanloop.completion_logprobs"] == "[[-1.0]]"


def test_an_answer_that_is_parsed_twice_counts_once() -> None:
    call, again = Call(), Call()
    answer = {
        "id": "c",
        "choices": [
            {"token_ids": [5], "message": {"tool_calls": [{"id": "t", "function": {"name": "add"}}]}}
        ],
    }
    for reader in (call, again, again):
        read_chat(reader, answer)
    assert again.attributes(content=True) == call.attributes(content=True)
    assert len(again.new_tools) == 1


def test_legacy_completions_have_their_tokens_in_other_places() -> None:
    call = Call()
    choice = {
        "text": "x",
        "prompt_token_ids": [1],
        "token_ids": [2, 3],
        "logprobs": {"token_logprobs": [-1.0, -2.0]},
    }
    read_chat(call, {"id": "cmpl-1", "choices": [choice]})
    assert call.attributes(content=True) == {
        "spanloop.prompt_token_ids": "[1]",
        "spanloop.completion_token_ids": "[[2,3]]",
        "spanloop.completion_logprobs": "[[-1.0,-2.0]]",
    }


def test_tokens_of_several_turns_at_the_server_are_not_guessed_apart() -> None:
    raw = {"type": "raw_message_tokens", "message": "", "tokens": [1]}
    one, two = Call(), Call()
    read_response(one, {"object": "response", "id": "r", "input_messages": [raw], "output_messages": [raw]})
    read_response(
        two, {"object": "response", "id": "r", "input_messages": [raw], "output_messages": [raw, raw]}
    )
    assert one.attributes(content=True)["spanloop.completion_token_ids"] == "[[1]]"
    assert "spanloop.completion_token_ids" not in two.attributes(content=True)


def test_without_content_only_what_was_not_said_is_recorded() -> None:
    call = Call(request=request_attributes({"seed": 1, "stop": "END"}), version="m@3", fingerprint="fp")
    read_chat(
        call,
        {
            "choices": [
                {"token_ids": [1], "message": {"tool_calls": [{"id": "t", "function": {"name": "add"}}]}}
            ]
        },
    )
    assert call.attributes(content=False) == {
        "gen_ai.request.seed": 1,
        "gen_ai.request.stop_sequences": ["END"],
        "spanloop.model.version": "m@3",
        "openai.response.system_fingerprint": "fp",
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"seed": 0, "n": 2}, {"gen_ai.request.seed": 0, "gen_ai.request.choice.count": 2}),
        ({"temperature": 0, "top_p": 1}, {"gen_ai.request.temperature": 0.0, "gen_ai.request.top_p": 1.0}),
        ({"max_completion_tokens": 5}, {"gen_ai.request.max_tokens": 5}),
        ({"stop": ["a", "b"]}, {"gen_ai.request.stop_sequences": ["a", "b"]}),
        ({"previous_response_id": "resp_1"}, {"spanloop.request.previous_response_id": "resp_1"}),
        ({"tool_choice": "auto"}, {"spanloop.request.tool_choice": '"auto"'}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "add"}}},
            {"spanloop.request.tool_choice": '{"type":"function","function":{"name":"add"}}'},
        ),
        ({"seed": True, "n": None, "stop": [], "temperature": "hot", "tool_choice": None}, {}),
    ],
    ids=["integers", "numbers", "limit", "stops", "previous", "choice", "choice-of-one", "nothing"],
)
def test_request_parameters(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert request_attributes(body) == expected


def test_results_of_one_id_belong_to_the_call_before_them() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "?"}]
    for number in range(3):
        function = {"name": "add", "arguments": str(number)}
        messages += [
            {"role": "assistant", "tool_calls": [{"id": "call_0", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "call_0", "content": f"of {number}"},
        ]
    found = [(result.arguments, result.content) for result in results_in({"messages": messages})]
    assert found == [("0", "of 0"), ("1", "of 1"), ("2", "of 2")]


def test_results_are_new_until_the_model_speaks() -> None:
    asked = {"id": "t", "type": "function", "function": {"name": "add", "arguments": '{"a":  1}'}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": "t", "content": [{"type": "text", "text": "3"}]},
    ]
    (result,) = results_in({"messages": messages})
    assert (result.id, result.name, result.arguments, result.new) == ("t", "add", '{"a":  1}', True)
    assert json.loads(result.content) == [{"type": "text", "text": "3"}]
    (again,) = results_in({"messages": [*messages, {"role": "assistant", "content": "3"}]})
    assert not again.new
