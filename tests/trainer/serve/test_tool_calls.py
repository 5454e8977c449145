"""The parser of Hermes tool calls: what parses, what stays text, and that nothing makes it fall over."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanloop_trainer.serve.tool_calls import ToolCall, parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
# A tag inside a JSON string ends the block: the Hermes form has no escape for it.
UNTAGGED = st.dictionaries(st.text(), JSON, max_size=4).filter(
    lambda value: "</tool_call>" not in json.dumps(value)
)


def block(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>'


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.text(min_size=1).filter(lambda name: "</tool_call>" not in name), UNTAGGED),
        min_size=1,
        max_size=3,
    )
)
def test_calls_come_back_as_written(calls: list[tuple[str, dict[str, object]]]) -> None:
    written = [(name, json.dumps(arguments, indent=1)) for name, arguments in calls]
    content, parsed = parse("before " + "\n".join(block(*call) for call in written) + " after")
    assert parsed == [ToolCall(*call) for call in written]
    assert content is not None
    assert content.split() == ["before", "after"]


@settings(deadline=None)
@given(st.text(alphabet='<>/tool_cal{}"name: ,arguments1[]\\\n') | st.text())
def test_any_text_is_answered(text: str) -> None:
    content, calls = parse(text)
    if not calls:
        assert content == text


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>not json</tool_call>",
        '<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": 1}}',
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "[1]"}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {}} trailing</tool_call>',
        "<tool_call>" + "[" * 5000 + "</tool_call>",
        '<tool_call>{"name": "a", "arguments": ' + '{"a":' * 5000 + "</tool_call>",
        "",
    ],
)
def test_what_does_not_parse_stays_content(text: str) -> None:
    assert parse(text) == (text, [])


def test_a_broken_block_stays_beside_a_good_one() -> None:
    content, calls = parse("<tool_call>{</tool_call>" + block("add", "{}"))
    assert content == "<tool_call>{</tool_call>"
    assert calls == [ToolCall("add", "{}")]


def test_quoted_and_missing_arguments() -> None:
    assert parse('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>')[1] == [
        ToolCall("f", '{"a": 1}')
    ]
    assert parse('<tool_call>{"name": "f"}</tool_call>')[1] == [ToolCall("f", "{}")]
