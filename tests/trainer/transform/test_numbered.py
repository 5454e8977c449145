"""Attributes with numbers in their keys: random chats come back as they were sent, and damage stays where it is."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.examples import few
from tests.helpers.stores import laid

from spanloop_store import connect
from spanloop_trainer.transform.flavours import Flag, legacy
from spanloop_trainer.transform.reading.read import Window, read_spans

from .conftest import Row, insert
from .numbered import CHAT, WRITERS, Chat, Json, calls, chats, plain, said, span


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    opened = connect(laid(tmp_path_factory.mktemp("numbered") / "store"))
    yield opened
    opened.close()


# A read takes a quarter of a second: few of them, of many chats.
RANDOM = settings(max_examples=few(3), deadline=None)


@RANDOM
@given(drawn=st.lists(chats(), min_size=1, max_size=10))
def test_chats_come_back(client: Client, drawn: list[Chat]) -> None:
    both = [(flavour, chat) for flavour in WRITERS for chat in drawn]
    found = calls(client, [span(n, WRITERS[flavour](chat)) for n, (flavour, chat) in enumerate(both)])
    for (flavour, chat), call in zip(both, found, strict=True):
        assert call["flavour"] == flavour
        assert said(call["messages"]) == [plain(message) for message in chat.messages]
        assert said(call["chats"]) == [plain(message) for message in chat.answers]
        assert json.loads(call["tools_json"] or "[]") == chat.tools
        assert call["status"] == ("ok" if chat.answers else "truncated")
        assert call["flags"] & ~Flag.UNKNOWN_TOOLS == 0


@RANDOM
@given(drawn=st.lists(chats(), min_size=1, max_size=10), data=st.data())
def test_lost_attributes_harm_one_call_alone(client: Client, drawn: list[Chat], data: st.DataObject) -> None:
    """An attribute limit drops any of them: the call may be invalid, and the others are what they were."""
    kind = {"llm.request.type", "openinference.span.kind"}
    rows: list[Row] = []
    for flavour, write in WRITERS.items():
        whole = [write(chat) for chat in drawn]
        gone = data.draw(
            st.sets(st.sampled_from(sorted(whole[0].keys() - kind)), min_size=1, max_size=3), flavour
        )
        harmed = {key: value for key, value in whole[0].items() if key not in gone}
        rows += [span(len(rows) + n, attributes) for n, attributes in enumerate([harmed, *whole])]
    found = calls(client, rows)
    assert len(found) == len(rows)
    for number, call in enumerate(found):
        place = number % (len(drawn) + 1)
        if place:
            assert said(call["messages"]) == [plain(message) for message in drawn[place - 1].messages]


@pytest.mark.parametrize("flavour", WRITERS)
def test_ten_comes_after_nine(client: Client, flavour: str) -> None:
    chat = Chat(
        [
            {"role": "user" if place % 2 == 0 else "assistant", "content": f"message {place}"}
            for place in range(25)
        ],
        [{"role": "assistant", "content": "done"}],
        [
            {"type": "function", "function": {"name": f"f{place}", "description": "d", "parameters": {}}}
            for place in range(13)
        ],
    )
    (call,) = calls(client, [span(0, WRITERS[flavour](chat))])
    assert said(call["messages"]) == [plain(message) for message in chat.messages]
    assert [tool["function"]["name"] for tool in json.loads(call["tools_json"])] == [
        f"f{n}" for n in range(13)
    ]


@pytest.mark.parametrize("flavour", WRITERS)
@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_prompt_with_a_hole_is_invalid(client: Client, flavour: str, gone: int) -> None:
    """All but the last, whose loss nothing shows."""
    attributes = WRITERS[flavour](CHAT)
    kept = {
        key: value
        for key, value in attributes.items()
        if f".{gone}." not in key.replace("contents.", "contents")
    }
    (call,) = calls(client, [span(0, {**kept, "llm.request.type": "chat"} if flavour == "legacy" else kept)])
    assert call["invalid"] == (gone != 2)


@pytest.mark.parametrize("flavour", WRITERS)
def test_unknown_keys_change_nothing(client: Client, flavour: str) -> None:
    attributes = WRITERS[flavour](CHAT)
    first = next(key for key in attributes if ".0." in key).partition(".0.")[0]
    more = {
        **attributes,
        f"{first}.0.of_tomorrow": "x",
        f"{first}.prompt_filter_results": "[]",
        f"{first}.": "x",
        f"{first}.-1.role": "user",
        "llm.tomorrow.0.x": "y",
    }
    old, new = calls(client, [span(0, attributes), span(1, more)])
    assert (new["messages"], new["chats"], new["invalid"]) == (old["messages"], old["chats"], False)


@pytest.mark.parametrize("flavour", WRITERS)
def test_an_answer_is_the_same_as_history_whatever_its_spaces(client: Client, flavour: str) -> None:
    """Frameworks parse a tool call's arguments and write them anew into the next request."""

    def called(arguments: str) -> Json:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    asked = CHAT.messages
    later = [*asked, called('{"a": 1, "b": [1, 2]}'), {"role": "tool", "tool_call_id": "c", "content": "3"}]
    first, second = calls(
        client,
        [
            span(0, WRITERS[flavour](Chat(asked, [called('{"a":1,"b":[1,2]}')], []))),
            span(1, WRITERS[flavour](Chat(later, [], []))),
        ],
    )
    assert first["answers"][0]["code"] in [prefix["code"] for prefix in second["prefixes"]]
    # What is trained on stays what the model wrote.
    assert '{\\"a\\":1,\\"b\\":[1,2]}' in first["chats"][0]


def test_a_kind_of_span_that_numbers_other_things_is_no_model_call(client: Client) -> None:
    embedding = {"llm.request.type": "embedding", "gen_ai.prompt.0.content": "text"}
    rerank = {"llm.request.type": "rerank", "gen_ai.prompt.0.content": "text", "gen_ai.prompt.0.role": "user"}
    retriever = {"openinference.span.kind": "RETRIEVER", "input.value": "text"}
    assert (
        calls(client, [span(n, attributes) for n, attributes in enumerate([embedding, rerank, retriever])])
        == []
    )


def test_columns_of_all_flavours_agree(client: Client) -> None:
    rows = [span(number, write(CHAT)) for number, write in enumerate(WRITERS.values())]
    client.command("TRUNCATE TABLE otel_traces")
    insert(client, rows)
    frame = read_spans(client, Window()).calls
    assert set(frame["flavour"]) == set(WRITERS)
    assert set(frame["request_model"]) == {"m"}


@pytest.mark.parametrize(
    ("text", "role", "content"),
    [
        ('[{"type": "text", "text": "a"}]', "user", [{"type": "text", "text": "a"}]),
        ('[{"type": "text", "text": "a"}]', "tool", '[{"type": "text", "text": "a"}]'),
        ('[{"type": "of tomorrow"}]', "user", '[{"type": "of tomorrow"}]'),
        ('[{"type": "text", "te', "user", '[{"type": "text", "te'),
        ("[{}]", "user", "[{}]"),
        ('[{"text": "a"}, {"toolUse": {}}]', "user", [{"text": "a"}, {"toolUse": {}}]),
        ('""', "assistant", None),
        ("[]", "assistant", None),
        ("[1, 2]", "user", "[1, 2]"),
        (None, "assistant", None),
    ],
)
def test_content_that_was_a_list_is_one_again(text: str | None, role: str, content: object) -> None:
    assert legacy.content(text, role) == content
