"""The gateway in front of a scripted back end, driven by the real openai client; its spans end in a real OTLP receiver."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from bench.gateway.process import serve
from tests.collector.gateway_house import (
    MESSAGES,
    House,
    Registry,
    gateway,
    quick_polls,
    receiver,
    send,
    stub,
)
from tests.helpers.openai_stub import END_OF_TURN, PROMPT_IDS, Stub, openai_stub
from tests.helpers.otlp_receiver import Receiver, otlp_receiver

from spanloop_collector.gateway.app import Gateway, Settings
from spanloop_collector.gateway.spans import CallTracer
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import Snapshot, Versions

__all__ = ["quick_polls", "receiver", "stub"]

IDS = [100, 101, 102, 103, 104, END_OF_TURN]
LOGPROBS = [-0.5, -1.5, -2.5, -3.5, -4.5, -5.5]


@pytest.fixture
def house(stub: Stub, receiver: Receiver) -> Iterator[House]:
    with gateway(stub, receiver) as running:
        yield running


def test_a_call_is_stamped_and_the_client_sees_only_what_it_asked_for(house: House) -> None:
    house.registry.point(2)
    raw = house.client().chat.completions.with_raw_response.create(
        model="calculator@candidate", messages=MESSAGES, temperature=0.7, seed=5, max_tokens=9
    )
    answer = raw.http_response.json()
    assert raw.headers["x-spanloop-model-version"] == "calculator@2"
    assert answer["choices"][0]["message"]["content"].endswith("for calculator@2")
    assert answer.get("prompt_token_ids") is None
    assert answer["choices"][0].get("token_ids") is None
    assert answer["choices"][0]["logprobs"] is None
    asked = house.stub.requests[0]
    assert (asked["model"], asked["return_token_ids"], asked["logprobs"]) == ("calculator@2", True, True)
    assert house.stub.headers[0]["authorization"] == "Bearer sk-upstream"
    (span,) = house.spans()
    assert (span.name, span.kind, span.service) == ("chat calculator@candidate", 2, "spanloop-gateway")
    assert span.attributes == {
        "spanloop.gateway": "true",
        "spanloop.model.alias": "calculator@candidate",
        "spanloop.model.version": "calculator@2",
        "spanloop.prompt_token_ids": json.dumps(PROMPT_IDS, separators=(",", ":")),
        "spanloop.completion_token_ids": json.dumps([IDS], separators=(",", ":")),
        "spanloop.completion_logprobs": json.dumps([LOGPROBS], separators=(",", ":")),
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "calculator@2",
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.seed": 5,
        "gen_ai.response.model": "calculator@2",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 6,
        "http.response.status_code": 200,
    }


def test_a_stream_is_stamped_and_stripped(house: House) -> None:
    chunks = list(house.client().chat.completions.create(model="plain", messages=MESSAGES, stream=True))
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "two and two is four for plain"
    )
    assert all(chunk.choices[0].logprobs is None for chunk in chunks)
    extra = [{**(chunk.model_extra or {}), **(chunk.choices[0].model_extra or {})} for chunk in chunks]
    assert not any(held.get("token_ids") or held.get("prompt_token_ids") for held in extra)
    (span,) = house.spans()
    assert span.json("spanloop.completion_token_ids") == [IDS]
    assert span.json("spanloop.completion_logprobs") == [LOGPROBS]
    assert span.json("spanloop.prompt_token_ids") == PROMPT_IDS
    assert span.attributes["gen_ai.response.id"] == "chatcmpl-1"
    assert span.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert span.attributes["gen_ai.usage.output_tokens"] == 6
    assert "spanloop.model.version" not in span.attributes  # no registry entry: nobody vouches for a version


def test_what_the_client_asked_for_stays_in_the_answer(house: House) -> None:
    answer = house.client().chat.completions.create(
        model="plain", messages=MESSAGES, n=2, logprobs=True, extra_body={"return_token_ids": True}
    )
    assert [choice.model_extra["token_ids"] for choice in answer.choices if choice.model_extra] == [
        IDS,
        [101, 102, 103, 104, 105, END_OF_TURN],
    ]
    assert answer.choices[1].logprobs is not None
    assert answer.model_extra == {"prompt_token_ids": PROMPT_IDS}
    (span,) = house.spans()
    assert span.json("spanloop.completion_token_ids") == [IDS, [101, 102, 103, 104, 105, END_OF_TURN]]
    assert len(span.json("spanloop.completion_logprobs")) == 2


def test_bytes_pass_untouched_where_nothing_had_to_change(receiver: Receiver) -> None:
    body = b'{ "model":"gpt-x",  "messages":[{"role":"user","content":"\\u00e9"}], "stream":true }'
    with openai_stub(owned_by="openai") as stub, gateway(stub, receiver) as house:
        _, expected = send("POST", stub.url + "/chat/completions", body)
        _, passed = send("POST", house.url + "/v1/chat/completions", body)
    assert passed == expected.replace(b"chatcmpl-1", b"chatcmpl-2")
    assert stub.bodies == [body, body]
    (span,) = receiver.wait(lambda spans: len(spans) == 1)
    assert "spanloop.completion_token_ids" not in span.attributes
    assert span.attributes["gen_ai.response.id"] == "chatcmpl-2"


def test_tools_and_many_at_once_async(house: House) -> None:
    house.stub.tool = True
    tools: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]

    async def ask() -> list[str]:
        async with house.async_client() as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model="m", messages=MESSAGES, tools=tools)
                    for _ in range(20)
                )
            )
        return [answer.choices[0].message.tool_calls[0].function.arguments for answer in answers]  # type: ignore[index, union-attr]  # the stub always calls

    assert asyncio.run(ask()) == ['{"a": 2, "b": 2}'] * 20
    assert house.stub.requests[0]["tools"] == tools
    spans = house.spans(20)
    assert len({span.attributes["gen_ai.response.id"] for span in spans}) == 20
    assert {tuple(span.attributes["gen_ai.response.finish_reasons"]) for span in spans} == {("tool_calls",)}
    assert house.stub.model_questions == 1  # capability is asked once, not at every call


def test_the_span_hangs_below_the_callers(house: House) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"  # not sampled there: recorded here all the same
    house.client(default_headers={"traceparent": parent}).chat.completions.create(
        model="m", messages=MESSAGES
    )
    (span,) = house.spans()
    assert (span.trace_id, span.parent_id) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert house.stub.headers[0]["traceparent"].split("-")[1:3] == [span.trace_id, span.span_id]


def test_a_swap_never_mixes_one_request(house: House) -> None:
    house.stub.gate = threading.Event()
    house.registry.point(1)
    client = house.client()

    def stream(_number: int) -> tuple[str, set[str], str]:
        raw = client.chat.completions.with_raw_response.create(
            model="calculator@candidate", messages=MESSAGES, stream=True
        )
        chunks = list(raw.parse())
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return raw.headers["x-spanloop-model-version"], {chunk.model for chunk in chunks}, text

    with ThreadPoolExecutor(16) as pool:
        before = [pool.submit(stream, i) for i in range(8)]
        for _ in before:
            assert house.stub.streaming.acquire(timeout=20)
        house.registry.point(2)  # all eight are in the middle of their answers
        after = [pool.submit(stream, i) for i in range(8)]
        for _ in after:
            assert house.stub.streaming.acquire(timeout=20)
        house.stub.gate.set()
        for futures, version in ((before, "calculator@1"), (after, "calculator@2")):
            for future in futures:
                header, models, text = future.result(20)
                assert header == version
                assert models == {version}
                assert text.endswith(f"for {version}")
    spans = house.spans(16)
    for span in spans:
        served = {span.attributes[f"gen_ai.{side}.model"] for side in ("request", "response")}
        assert served == {span.attributes["spanloop.model.version"]}
    assert len({span.attributes["gen_ai.response.id"] for span in spans}) == 16


def test_upstream_errors_reach_the_client_as_they_were(house: House) -> None:
    house.stub.status = 429
    with pytest.raises(openai.RateLimitError) as caught:
        house.client().chat.completions.create(model="m", messages=MESSAGES)
    assert caught.value.code == "rate_limited"
    assert caught.value.response.headers["x-request-id"] == "req-9"
    (span,) = house.spans()
    assert span.status == 2
    assert (span.attributes["spanloop.error"], span.attributes["error.type"]) == ("slow down", "429")


def test_an_upstream_that_is_not_there_is_named(receiver: Receiver, stub: Stub) -> None:
    # Port 1 needs root to listen on: nothing does.
    with gateway(stub, receiver, upstreams=["gone=http://127.0.0.1:1/v1"]) as house:
        with pytest.raises(openai.InternalServerError) as caught:
            house.client().chat.completions.create(model="gone@3", messages=MESSAGES)
        assert caught.value.status_code == 502
        assert "upstream gone (http://127.0.0.1:1/v1)" in caught.value.message
        with pytest.raises(openai.NotFoundError, match="--upstream"):
            house.client().chat.completions.create(model="other", messages=MESSAGES)
        with pytest.raises(openai.NotFoundError, match="default upstream"):
            house.client().files.list()
        first, second = house.spans(2)
    assert first.attributes["error.type"] == "upstream_unreachable"
    assert second.attributes["error.type"] == "model_not_found"


def test_unknown_versions_and_aliases_are_refused_with_what_exists(house: House) -> None:
    house.registry.point(2)
    for model in ("calculator@9", "calculator@nightly", "calculator", "calculator@" + "9" * 5000):
        with pytest.raises(openai.NotFoundError, match="calculator@candidate, calculator@1, calculator@2"):
            house.client().chat.completions.create(model=model, messages=MESSAGES)
    assert house.stub.requests == []


def test_last_known_aliases_serve_while_the_store_is_away(house: House) -> None:
    house.registry.point(2)
    house.registry.error = OSError("store is away")
    with house.registry.reads:
        seen = house.registry.count
        assert house.registry.reads.wait_for(lambda: house.registry.count >= seen + 2, timeout=20)
    answer = house.client().chat.completions.create(model="calculator@candidate", messages=MESSAGES)
    assert answer.model == "calculator@2"


def test_an_alias_is_not_guessed_before_the_registry_was_read() -> None:
    with otlp_receiver() as receiver, openai_stub() as stub:
        registry = Registry(None)
        tracer = CallTracer.to_collector(receiver.url, None)
        app = Gateway(Settings(Upstreams.parse([stub.url])), Versions(registry), tracer).application()
        with serve(app) as url:
            client = openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0)
            with pytest.raises(openai.InternalServerError, match="registry has not been reached"):
                client.chat.completions.create(model="calculator@candidate", messages=MESSAGES)
            for _ in range(20):
                assert (
                    client.chat.completions.create(model="yesterday", messages=MESSAGES).model == "yesterday"
                )
            assert registry.count < 20  # the calls did not each wait for one more look at the store
        tracer.shutdown()


def test_a_client_that_goes_away_cancels_the_upstream_and_is_recorded(house: House) -> None:
    house.stub.gate = threading.Event()
    stream = house.client().chat.completions.create(model="m", messages=MESSAGES, stream=True)
    next(iter(stream))
    stream.close()
    assert house.stub.cancelled.wait(20)
    (span,) = house.spans()
    assert span.attributes["error.type"] == "client_disconnected"
    assert span.json("spanloop.completion_token_ids") == [[100]]
    assert "gen_ai.response.finish_reasons" not in span.attributes


def test_a_stream_that_breaks_off_is_an_error_for_the_client(house: House) -> None:
    house.stub.break_off = True
    with pytest.raises(openai.APIError, match="upstream default"):
        list(house.client().chat.completions.create(model="m", messages=MESSAGES, stream=True))
    (span,) = house.spans()
    assert span.attributes["error.type"] == "upstream_unreachable"


def test_models_lists_aliases_versions_and_upstreams(receiver: Receiver, stub: Stub) -> None:
    with gateway(stub, receiver, upstreams=[stub.url, f"yesterday={stub.url}"]) as house:
        house.registry.point(2, alias="production")
        names = [model.id for model in house.client().models.list()]
        assert names == [
            "calculator",
            "calculator@production",
            "calculator@1",
            "calculator@2",
            "any",  # what the default upstream lists
            "yesterday",
        ]
        assert (
            house.client().chat.completions.create(model="calculator", messages=MESSAGES).model
            == "calculator@2"
        )
        # Every name of the list can be asked about, and nothing that is not in it.
        assert [house.client().models.retrieve(name).id for name in names] == names
        with gateway(stub, receiver, upstreams=[f"other={stub.url}"]) as elsewhere:
            elsewhere.registry.point(2, alias="production")
            assert [model.id for model in elsewhere.client().models.list()] == ["other"]
            with pytest.raises(openai.NotFoundError):
                elsewhere.client().models.retrieve("calculator")
            # Registered, and without a production alias: the bare name of an upstream is none to ask for.
            elsewhere.registry.snapshot = Snapshot.of([("other", 1)], [("other", "candidate", 1)])
            while [model.id for model in elsewhere.client().models.list()] != ["other@candidate", "other@1"]:
                pass


def test_other_paths_pass_through_and_bad_bodies_are_refused(house: House) -> None:
    status, body = send("POST", house.url + "/v1/responses/a%2Fb?x=1&y=%20", b"{}")
    assert (status, json.loads(body)) == (
        200,
        {"method": "POST", "path": "/v1/responses/a%2Fb?x=1&y=%20", "body": "{}"},
    )
    for bad in (b"not json", b"[]", b"{}", b'{"model": ""}'):
        status, body = send("POST", house.url + "/v1/chat/completions", bad)
        assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")
    # A base URL without /v1 is the commonest mistake of all.
    status, body = send("POST", house.url + "/chat/completions", b"{}")
    assert (status, "base URL with /v1" in json.loads(body)["error"]["message"]) == (404, True)
    status, body = send("GET", house.url + "/healthz")
    assert (status, json.loads(body)["status"]) == (200, "ok")


def test_a_token_is_demanded_and_stays_here(receiver: Receiver, stub: Stub) -> None:
    with gateway(stub, receiver, token="secret") as house:
        with pytest.raises(openai.AuthenticationError, match="SPANLOOP_TOKEN"):
            house.client().chat.completions.create(model="m", messages=MESSAGES)
        house.client(default_headers={"x-spanloop-token": "secret"}).chat.completions.create(
            model="m", messages=MESSAGES
        )
        client = openai.OpenAI(base_url=house.url + "/v1", api_key="secret", max_retries=0)
        client.chat.completions.create(model="m", messages=MESSAGES)
    assert stub.headers[0]["authorization"] == "Bearer sk-upstream"
    assert "x-spanloop-token" not in stub.headers[0]
    assert "authorization" not in stub.headers[1]


def test_spans_wait_for_a_collector_that_is_away(house: House) -> None:
    house.receiver.away = True
    house.client().chat.completions.create(model="m", messages=MESSAGES)
    deadline = threading.Event()
    for _ in range(400):
        if house.receiver.refused:
            break
        deadline.wait(0.05)
    house.receiver.away = False
    (span,) = house.spans()
    assert span.attributes["gen_ai.response.id"] == "chatcmpl-1"


@pytest.mark.parametrize("stream", [False, True])
def test_a_version_that_did_not_answer_is_not_stamped(house: House, stream: bool) -> None:
    """A server that takes any model's name answers as its own: nothing of that may be learnt as the version's."""
    house.registry.point(2)
    house.stub.answers_as = "some-other-model"
    answer = house.client().chat.completions.create(
        model="calculator@candidate", messages=MESSAGES, stream=stream
    )
    if stream:
        list(answer)
    (span,) = house.spans()
    assert "spanloop.model.version" not in span.attributes
    assert span.attributes["gen_ai.response.model"] == "some-other-model"


def test_flush_sends_the_spans_of_answered_calls(house: House) -> None:
    for _ in range(3):
        house.client().chat.completions.create(model="m", messages=MESSAGES)
    status, body = send("POST", house.url + "/flush")
    assert (status, json.loads(body)) == (200, {"sent": True})
    assert len(house.receiver.spans) == 3
