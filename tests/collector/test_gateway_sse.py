"""Event streams, cut anywhere: no byte is lost, changed or reordered, and what is recorded does not depend on the cuts."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.examples import few

from spanloop_collector.gateway.apis.base import Api
from spanloop_collector.gateway.apis.embeddings import Embeddings
from spanloop_collector.gateway.calls import APIS
from spanloop_collector.gateway.record import Call
from spanloop_collector.gateway.sse import EventSplitter, data_of, with_data

events = st.lists(
    st.one_of(
        st.text(alphabet=st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=20).map(
            lambda text: f"data: {text}\n\n".encode()
        ),
        st.sampled_from(
            [
                b": ping\n\n",
                b"data:x\r\n\r\n",
                b"event: a\ndata: 1\ndata: 2\n\n",
                b"\n\n",
                b"data: [DONE]\n\n",
            ]
        ),
    ),
    max_size=8,
)


@given(
    events,
    st.lists(st.integers(0, 200), max_size=6),
    st.sampled_from([b"", b"data: tail", b"data: a\nid: 3\n"]),
)
def test_cuts_change_nothing(parts: list[bytes], cuts: list[int], tail: bytes) -> None:
    stream = b"".join(parts) + tail
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    splitter = EventSplitter()
    out: list[bytes] = []
    for begin, end in itertools.pairwise(bounds):
        out += splitter.feed(stream[begin:end])
    rest = splitter.rest()
    assert b"".join(out) + rest == stream
    whole = EventSplitter()
    assert [data_of(e) for e in whole.feed(stream)] + [data_of(whole.rest())] == [
        data_of(e) for e in [*out, rest]
    ]


def test_data_is_read_as_the_standard_says() -> None:
    assert data_of(b"data: x\n\n") == b"x"
    assert data_of(b"data:x\r\n\r\n") == b"x"
    assert data_of(b"data:  x\n\n") == b" x"
    assert data_of(b"event: a\ndata: 1\ndata: 2\n\n") == b"1\n2"
    assert data_of(b"data: a\nid: 3\n") == b"a"
    assert data_of(b": ping\n\n") is None
    assert with_data(b"event: a\ndata: 1\nid: 7\n\n", b"2") == b"event: a\nid: 7\ndata: 2\n\n"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
odd_answers = st.dictionaries(
    st.sampled_from(
        [
            "id",
            "model",
            "choices",
            "usage",
            "prompt_token_ids",
            "error",
            "object",
            "type",
            "response",
            "output",
            "item",
            "part",
            "delta",
            "logprobs",
            "input_messages",
        ]
    ),
    json_values
    | st.lists(
        st.dictionaries(
            st.sampled_from(["index", "token_ids", "logprobs", "finish_reason"]),
            json_values | st.fixed_dictionaries({"content": json_values}),
        ),
        max_size=3,
    ),
)


@pytest.mark.parametrize("api", APIS, ids=lambda api: str(api.path))
@settings(max_examples=few(50))
@given(answer=odd_answers, owner=st.sampled_from(["vllm", "spanloop"]))
def test_no_peculiar_answer_breaks_a_call(api: Api, answer: dict[str, Any], owner: str) -> None:
    """Neither noting it nor taking out of it what was added fails, and both ways to take it out give the same."""
    added = {"return_token_ids": True, "logprobs": True, "enable_response_messages": True, "include": []}
    before = json.loads(json.dumps(answer))
    api.absorb(Call("m"), answer, text=True)
    assert answer == before
    if not isinstance(api, Embeddings):
        raw = json.dumps(answer).encode()
        passed = api.stripped(raw, answer, added, owner)
        api.strip(answer, added, owner)
        assert passed is None or json.loads(passed) == answer
