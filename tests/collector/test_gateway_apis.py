"""Completions, Responses and embeddings through the gateway with the real client: alias, version, span, tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from aiohttp import web
from tests.collector.gateway_house import House, gateway, quick_polls, receiver, scripted, send
from tests.helpers.openai_stub import END_OF_TURN, PROMPT_IDS, Stub, openai_stub, tool_call
from tests.helpers.otlp_receiver import Receiver

__all__ = ["quick_polls", "receiver"]

IDS = [100, 101, 102, 103, 104, END_OF_TURN]
LOGPROBS = [-0.5, -1.5, -2.5, -3.5, -4.5, -5.5]


@pytest.fixture
def house(receiver: Receiver) -> Iterator[House]:
    with openai_stub(responses=True) as stub, gateway(stub, receiver) as running:
        running.registry.point(2)
        yield running


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_responses_get_version_span_and_tokens(house: House, stream: bool) -> None:
    raw = house.client().responses.with_raw_response.create(
        model="calculator@candidate", input="2+2?", temperature=0.5, max_output_tokens=50, stream=stream
    )
    assert raw.headers["x-spanloop-model-version"] == "calculator@2"
    if stream:
        events = list(raw.parse())
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta").endswith(
            "calculator@2"
        )
        assert not any(getattr(event, "logprobs", None) for event in events)
        assert "raw_message_tokens" not in str(events)
    else:
        answer = raw.http_response.json()
        # As vLLM says it where nobody asks.
        assert (answer["input_messages"], answer["output_messages"]) == (None, None)
        assert answer["output"][0]["content"][0]["logprobs"] is None
    (span,) = house.spans()
    assert span.name == "chat calculator@candidate"
    assert {key: span.attributes[key] for key in span.attributes if key.startswith("gen_ai")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "calculator@2",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.response.model": "calculator@2",
        "gen_ai.response.id": "resp_1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 6,
        **({"gen_ai.request.stream": True} if stream else {}),
    }
    assert span.json("spanloop.prompt_token_ids") == PROMPT_IDS
    assert span.json("spanloop.completion_token_ids") == [IDS]
    assert span.json("spanloop.completion_logprobs") == [LOGPROBS]
    assert "error.type" not in span.attributes


def test_responses_of_a_server_without_tokens_are_the_same_bytes(receiver: Receiver) -> None:
    body = b'{ "model":"gpt-x", "input" : "2+2?", "stream":true}'
    with openai_stub(owned_by="openai", responses=True) as stub, gateway(stub, receiver) as house:
        _, direct = send("POST", stub.url + "/responses", body)
        _, passed = send("POST", house.url + "/v1/responses", body)
        assert passed == direct.replace(b"resp_1", b"resp_2").replace(b"msg_1", b"msg_2")
        assert stub.bodies == [body, body]
        (span,) = house.spans()
    assert span.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert "spanloop.completion_token_ids" not in span.attributes


def test_a_tool_call_of_responses_ends_as_one(house: House) -> None:
    house.stub.respond = lambda _body: tool_call("add", '{"a": 2, "b": 2}')
    for event in house.client().responses.create(model="m", input="2+2?", stream=True):
        last = event
    assert last.response.output[0].name == "add"  # type: ignore[union-attr]  # the stub always calls
    (span,) = house.spans()
    assert span.attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]


def test_a_response_that_is_cut_is_recorded_as_such(receiver: Receiver) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        events = [
            {"type": "response.created", "response": {"id": "resp_1", "object": "response", "model": "m"}},
            {"type": "response.output_text.delta", "delta": "4", "logprobs": []},
        ]
        text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        return web.Response(text=text, content_type="text/event-stream")

    with scripted(cut) as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        list(house.client().responses.create(model="m", input="2+2?", stream=True))
        (span,) = house.spans()
    assert span.attributes["error.type"] == "truncated"
    assert span.attributes["gen_ai.response.id"] == "resp_1"


def completion(request: dict[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "text": "4.", "finish_reason": "stop", "logprobs": None}
    if request.get("return_token_ids"):
        choice |= {"token_ids": [7, 8], "prompt_token_ids": [1, 2]}
    if request.get("logprobs") is not None:
        choice["logprobs"] = {"tokens": ["4", "."], "token_logprobs": [-0.25, -0.5], "top_logprobs": []}
    usage = {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": request["model"],
        "choices": [choice],
        "usage": usage,
    }


def test_legacy_completions_get_version_span_and_tokens(receiver: Receiver) -> None:
    seen: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(await request.json())
        return web.json_response(completion(seen[-1]))

    with scripted(answer) as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        house.registry.point(1)
        said = house.client().completions.create(model="calculator@candidate", prompt="2+2=", seed=3)
        assert (said.choices[0].text, said.choices[0].logprobs, said.model) == ("4.", None, "calculator@1")
        assert (said.choices[0].model_extra or {}) == {"token_ids": None, "prompt_token_ids": None}
        house.client().completions.create(model="m", prompt=["a", "b"])
        house.client().completions.create(model="m", prompt="a", echo=True, logprobs=2)
        spans = house.spans(3)
    assert [sorted(body.keys() & {"logprobs", "return_token_ids"}) for body in seen] == [
        ["logprobs", "return_token_ids"],
        [],  # whose tokens are whose would not be known
        ["logprobs"],
    ]
    span = spans[0]
    assert (span.name, span.attributes["gen_ai.operation.name"]) == (
        "text_completion calculator@candidate",
        "text_completion",
    )
    assert span.json("spanloop.prompt_token_ids") == [1, 2]
    assert span.json("spanloop.completion_token_ids") == [[7, 8]]
    assert span.json("spanloop.completion_logprobs") == [[-0.25, -0.5]]
    assert span.attributes["spanloop.model.version"] == "calculator@1"


def test_embeddings_get_a_version_and_a_span(receiver: Receiver) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        return web.json_response(
            {
                "object": "list",
                "model": body["model"],
                "data": data,
                "usage": {"prompt_tokens": 3, "total_tokens": 3},
            }
        )

    with scripted(answer) as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        house.registry.point(2)
        got = house.client().embeddings.create(
            model="calculator@candidate", input="x", encoding_format="float"
        )
        assert (got.model, got.data[0].embedding) == ("calculator@2", [0.5, 0.25])
        (span,) = house.spans()
    assert (span.name, span.status) == ("embeddings calculator@candidate", 0)
    assert span.attributes["gen_ai.usage.input_tokens"] == 3
    assert span.attributes["spanloop.model.version"] == "calculator@2"


def test_everything_else_goes_to_the_default_upstream_as_it_is(house: House) -> None:
    status, body = send("DELETE", house.url + "/v1/files/a%2Fb?x=%20")
    assert (status, json.loads(body)["path"]) == (200, "/v1/files/a%2Fb?x=%20")
    for path in ("/v1/../metrics", "/v1/%2e%2e/metrics", "/v1/files/..%2F..", "/v1/files/.."):
        assert send("GET", house.url + path)[0] in (400, 404), path
    with pytest.raises(openai.NotFoundError):
        openai.OpenAI(base_url=house.url, api_key="x", max_retries=0).files.list()
