"""What reaches the other side byte for byte: requests, answers, errors, streams, with what the gateway adds in between."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from tests.collector.gateway_house import gateway, quick_polls, receiver, scripted, send
from tests.helpers.openai_stub import Stub
from tests.helpers.otlp_receiver import Receiver

from spanloop_collector.gateway.jsonedit import dump, replaced, with_members, without

__all__ = ["quick_polls", "receiver"]

ENTRY = '{"token": "}],\\"logprobs\\":", "logprob": -5e-1, "bytes":[1, 2] ,"top_logprobs":[ {"token":"{"} ]}'


class Back:
    """A back end that answers with exactly these bytes, and keeps what came."""

    def __init__(self, body: bytes, content_type: str = "application/json", status: int = 200) -> None:
        self.body, self.content_type, self.status = body, content_type, status
        self.headers: dict[str, str] = {}
        self.requests: list[bytes] = []
        self.sent: list[Any] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.read())
        self.sent.append(request.headers)
        return web.Response(
            body=self.body, status=self.status, headers={"content-type": self.content_type, **self.headers}
        )


WHOLE = """{ "id" : "x-1","model":"m", "created":1.50e3, "choices": [
  {"index":0, "message":{"content":"\\u00e9\\ud83d\\ude00 \\"token_ids\\": [9]", "role": "assistant"},%s "finish_reason":"stop"} ]
  %s, "usage": {"completion_tokens": 2, "prompt_tokens":2 }, "big": 123456789012345678901234567890}"""


@pytest.mark.parametrize("owner", ["vllm", "spanloop"])
@pytest.mark.parametrize(
    ("path", "logprobs"),
    [
        ("/chat/completions", f'{{ "content":[{ENTRY}, {ENTRY}], "refusal": null }}'),
        ("/completions", '{"tokens": ["}", "{"], "token_logprobs":[-0.5,-5e-1], "text_offset": [0, 1]}'),
    ],
    ids=["chat", "completions"],
)
def test_only_what_was_added_is_taken_out_of_an_answer(
    receiver: Receiver, path: str, logprobs: str, owner: str
) -> None:
    """What is left is what that server says to those who do not ask: vLLM says null, ours nothing."""
    full = WHOLE % (f' "logprobs" : {logprobs} , "token_ids":[4, 5],', ', "prompt_token_ids" :[ 1,2 ]')
    ids, prompt = (' "token_ids":null,', ', "prompt_token_ids" :null') if owner == "vllm" else ("", "")
    bare = WHOLE % (f' "logprobs" : null ,{ids}', prompt)
    back = Back(full.encode())
    with scripted(back, owner) as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        body = b'{"model":"m" , "prompt":"\\u00e9", "messages": [] }\n'
        status, passed = send("POST", house.url + "/v1" + path, body)
        assert (status, passed.decode()) == (200, bare)
        asked = b"true" if path == "/chat/completions" else b"0"
        assert back.requests == [
            b'{"model":"m" , "prompt":"\\u00e9", "messages": [] ,"return_token_ids":true,"logprobs":'
            + asked
            + b"}\n"
        ]
        (span,) = house.spans()
    assert span.json("spanloop.completion_token_ids") == [[4, 5]]
    assert span.json("spanloop.completion_logprobs") == [[-0.5, -0.5]]
    assert span.json("spanloop.prompt_token_ids") == [1, 2]


@pytest.mark.parametrize("owner", ["vllm", "spanloop"])
def test_a_stream_keeps_every_byte_but_the_tokens(receiver: Receiver, owner: str) -> None:
    event = 'data: {"id":"x", "model" : "m","choices":[{"index":0,"delta":{"content":"\\u00e9"},%s"finish_reason":%s}]}\n\n'
    added = f'"logprobs": {{"content": [{ENTRY}]}},"token_ids":[7],'
    silent = event.replace('{"content":"\\u00e9"}', "{}") % (
        added,
        "null",
    )  # only for those who ask for tokens
    unasked = '"logprobs": null,"token_ids":null,'
    last = event % (unasked, '"stop"')
    full = (
        ": hello\n\n"
        + event % (added, "null")
        + silent
        + event % (added, '"stop"')
        + last
        + "data: [DONE]\n\n"
    )
    left = unasked if owner == "vllm" else '"logprobs": null,'
    bare = ": hello\n\n" + event % (left, "null") + event % (left, '"stop"') * 2 + "data: [DONE]\n\n"
    back = Back(full.encode(), "text/event-stream; charset=utf-8")
    with scripted(back, owner) as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        status, passed = send("POST", house.url + "/v1/chat/completions", b'{"model":"m","stream":true}')
        assert (status, passed.decode()) == (200, bare)
        (span,) = house.spans()
    assert span.json("spanloop.completion_token_ids") == [[7, 7, 7]]
    assert span.json("spanloop.completion_logprobs") == [[-0.5, -0.5, -0.5]]
    assert "error.type" not in span.attributes


@pytest.mark.parametrize("status", [400, 404, 418, 429, 500, 503])
def test_an_error_is_passed_as_it_came(receiver: Receiver, status: int) -> None:
    back = Back(b'{"error" : {"message":"no \\u00e9",  "extra": 1}}', "application/json;x=y", status)
    back.headers = {"x-request-id": "r-1", "retry-after": "7"}
    with scripted(back) as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        for path in ("/chat/completions", "/completions", "/responses", "/embeddings"):
            assert send("POST", f"{house.url}/v1{path}", b'{"model":"m"}') == (status, back.body)
        spans = house.spans(4)
    assert {(span.attributes["error.type"], span.attributes["spanloop.error"]) for span in spans} == {
        (str(status), "no é")
    }


def test_what_a_back_end_does_not_take_is_not_asked_again(receiver: Receiver) -> None:
    class Picky(Back):
        async def __call__(self, request: web.Request) -> web.StreamResponse:
            self.requests.append(await request.read())
            if "logprobs" in json.loads(self.requests[-1]):
                return web.json_response({"error": {"message": "logprobs is not supported"}}, status=400)
            return web.Response(body=self.body, content_type="application/json")

    back = Picky(b'{"id":"x","choices":[{"index":0,"token_ids":[1],"finish_reason":"stop"}]}')
    with scripted(back, "spanloop") as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        for _ in range(2):
            status, passed = send("POST", house.url + "/v1/chat/completions", b'{"model":"m"}')
            assert (status, passed) == (200, b'{"id":"x","choices":[{"index":0,"finish_reason":"stop"}]}')
        assert [json.loads(body).get("logprobs") for body in back.requests] == [True, None, None]
        # The client's own wish is the client's own error.
        assert send("POST", house.url + "/v1/chat/completions", b'{"model":"m","logprobs":true}')[0] == 400


def test_an_error_that_repeats_the_request_is_no_refusal_of_what_was_added(receiver: Receiver) -> None:
    """As pydantic's do: one client's mistake must not end the capture of tokens for all others."""

    class Echoing(Back):
        async def __call__(self, request: web.Request) -> web.StreamResponse:
            body = json.loads(await request.read())
            self.sent.append(body)
            if "messages" not in body:
                return web.json_response(
                    {"error": {"message": f"missing: messages, input: {body}"}}, status=400
                )
            return web.Response(body=b'{"id":"x","choices":[]}', content_type="application/json")

    back = Echoing(b"")
    with scripted(back) as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        status, said = send("POST", house.url + "/v1/chat/completions", b'{"model":"m"}')
        assert (status, json.loads(said)["error"]["message"]) == (
            400,
            "missing: messages, input: {'model': 'm'}",
        )
        assert send("POST", house.url + "/v1/chat/completions", b'{"model":"m","messages":[]}')[0] == 200
    assert back.sent[-1] == {"model": "m", "messages": [], "return_token_ids": True, "logprobs": True}


async def _posted(url: str, body: bytes, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers=headers, skip_auto_headers=["content-type"]) as answer,
    ):
        return answer.status


def test_utf_16_is_no_json_and_a_byte_order_mark_stays(receiver: Receiver) -> None:
    back = Back(b'{"id":"x","choices":[]}')
    with scripted(back) as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        path = house.url + "/v1/chat/completions"
        assert send("POST", path, '{"model":"m"}'.encode("utf-16-le"))[0] == 400
        assert send("POST", path, b'\xef\xbb\xbf{"model":"m"}')[0] == 200
    assert back.requests == [b'\xef\xbb\xbf{"model":"m","return_token_ids":true,"logprobs":true}']


def test_headers_of_one_connection_stay_on_it(receiver: Receiver) -> None:
    back = Back(b"{}")
    back.headers = {"connection": "X-Hop", "x-hop": "1", "x-far": "2"}
    with scripted(back) as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        for path in ("/v1/chat/completions", "/v1/other"):
            given = {"connection": "keep-alive, X-Near", "x-near": "3", "x-far": "4"}
            assert asyncio.run(_posted(house.url + path, b'{"model":"m"}', **given)) == 200
    for sent in back.sent:
        assert (sent.get("x-near"), sent["x-far"]) == (None, "4")


@pytest.mark.parametrize(
    "given",
    [
        {"authorization": "bearer call"},
        {"authorization": "Bearer  call"},
        {"api-key": "call"},
        {"authorization": "Bearer sk", "x-api-key": "call"},
    ],
    ids=["lower case", "two spaces", "another header", "beside a key"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/other"], ids=["call", "other"])
def test_the_gateways_token_stays_here_however_it_was_sent(
    receiver: Receiver, given: dict[str, str], path: str
) -> None:
    back = Back(b"{}")
    with scripted(back) as url, gateway(Stub(), receiver, upstreams=[url], token="call") as house:
        headers = {"x-spanloop-token": "call", **given}
        assert asyncio.run(_posted(house.url + path, b'{"model":"m"}', **headers)) == 200
    assert "call" not in str(back.sent[0])
    assert ("sk" in str(back.sent[0])) == ("sk" in str(given))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/other", "/v1/models"])
def test_an_upstreams_own_password_takes_the_place_of_the_clients_key(receiver: Receiver, path: str) -> None:
    back = Back(b"{}")
    with scripted(back) as url:
        owned = url.replace("http://", "http://user:p%40ss@")
        with gateway(Stub(), receiver, upstreams=[owned]) as house:
            method = "GET" if path == "/v1/models" else "POST"

            async def go() -> int:
                async with (
                    aiohttp.ClientSession(headers={"authorization": "Bearer sk"}) as session,
                    session.request(method, house.url + path, data=b'{"model":"m"}') as answer,
                ):
                    return answer.status

            assert asyncio.run(go()) == 200
    assert [sent["authorization"] for sent in back.sent] == ["Basic dXNlcjpwQHNz"] * len(back.sent)


def test_a_body_that_cannot_be_read_is_its_senders_fault(receiver: Receiver) -> None:
    back = Back(b"{}")
    with scripted(back) as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        for _ in range(3):
            status = asyncio.run(_posted(house.url + "/v1/files", b"no gzip", **{"content-encoding": "gzip"}))
            assert status == 400
        health = json.loads(send("GET", house.url + "/healthz")[1])
    assert [upstream["well"] for upstream in health["upstreams"]] == [True]


def test_compressed_both_ways(receiver: Receiver) -> None:
    """A compressed request is sent on plain; an answer that comes compressed, against our wish, is read all the same."""
    back = Back(gzip.compress(b'{"id":"x","model":"m","choices":[]}'))
    back.headers = {"content-encoding": "gzip"}
    with scripted(back, owner="openai") as url, gateway(Stub(), receiver, upstreams=[url]) as house:

        async def go() -> tuple[int, bytes]:
            body = gzip.compress(b'{"model":"m"}')
            async with (
                aiohttp.ClientSession() as session,
                session.post(
                    house.url + "/v1/chat/completions", data=body, headers={"content-encoding": "gzip"}
                ) as answer,
            ):
                return answer.status, await answer.read()

        assert asyncio.run(go()) == (200, b'{"id":"x","model":"m","choices":[]}')
        (span,) = house.spans()
    assert back.requests == [b'{"model":"m"}']
    assert "content-encoding" not in back.sent[0]
    assert span.attributes["gen_ai.response.id"] == "x"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(['"model":', '\\"', "}", "model"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "a", '"', "\\"]), inner, max_size=3)
    ),
    max_leaves=10,
)
layouts = st.sampled_from(
    [{}, {"separators": (",", ":")}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (" , ", " : ")}]
)


@given(
    st.dictionaries(st.sampled_from(["model", "a", "b"]), json_values, min_size=1),
    st.dictionaries(st.sampled_from(["model", "a", "c"]), json_values, max_size=3),
    layouts,
)
def test_members_are_set_and_nothing_else_changes(
    body: dict[str, Any], changes: dict[str, Any], layout: dict[str, Any]
) -> None:
    raw = json.dumps(body, **layout).encode()
    changed = with_members(raw, body, changes)
    assert json.loads(changed) == {**body, **changes}
    if set(changes) == {"model"} and "model" in body and "indent" not in layout:
        # No byte but the value's has changed.
        before, after = json.dumps(body["model"], **layout).encode(), dump(changes["model"])
        assert raw.count(before) == 0 or changed in {
            raw[:i] + after + raw[i + len(before) :] for i in range(len(raw)) if raw.startswith(before, i)
        }


@given(st.lists(json_values, min_size=1, max_size=3), layouts, json_values)
def test_members_are_taken_out_or_the_caller_is_told(
    values: list[Any], layout: dict[str, Any], other: Any
) -> None:
    document = {"first": other, "list": [{"model": value, "z": other} for value in values]}
    raw = json.dumps(document, **layout).encode()
    bare = {"first": other, "list": [{"z": other} for _ in values]}
    passed = without(raw, "model", document["list"])  # type: ignore[arg-type]  # a list of objects
    assert passed is None or json.loads(passed) == bare
    nulled = {"first": other, "list": [{"model": None, "z": other} for _ in values]}
    passed = replaced(raw, "model", document["list"], b"null")  # type: ignore[arg-type]  # the same
    assert passed is None or json.loads(passed) == nulled
    if '"model"' not in json.dumps(other) and not any("model" in json.dumps(value) for value in values):
        assert passed is not None
