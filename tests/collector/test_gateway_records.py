"""What the gateway leaves behind of odd calls: no secret in token ids, no span lost for what another one holds, none too large."""

from __future__ import annotations

import json
import logging
import threading
from contextlib import AbstractContextManager
from typing import Any

import pytest
from aiohttp import web
from tests.collector.gateway_house import (
    MESSAGES,
    gateway,
    quick_polls,
    receiver,
    scripted,
    send,
    stub,
)
from tests.helpers.openai_stub import Stub
from tests.helpers.otlp_receiver import Receiver

from spanloop_collector.gateway import sending, spans
from spanloop_collector.gateway.privacy import Privacy, texts_in
from spanloop_collector.gateway.record import Call
from spanloop_collector.gateway.sending import Sender
from spanloop_collector.gateway.spans import MAX_TEXT_CHARS, CallTracer, attributes_of
from spanloop_exporter.redaction.redactor import Redactor
from spanloop_exporter.spooling.batches import Answer, Batch, Outcome

__all__ = ["quick_polls", "receiver", "stub"]

REDACTING = Privacy(Redactor(b"0123456789abcdef"))
SECRET = "AKIA" + "IOSFODNN7" + "QWERTYU"


def answering(answer: dict[str, Any]) -> AbstractContextManager[str]:
    """A back end that answers every call with that."""

    async def handle(_request: web.Request) -> web.StreamResponse:
        return web.json_response(answer)

    return scripted(handle)


@pytest.mark.parametrize(
    "said",
    [
        {"messages": [{"role": "user", "content": f"data: the key is {SECRET}"}]},
        {"messages": [{"role": "user", "content": f"data:text/plain;base64,no {SECRET}"}]},
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {SECRET: {}}}}}]},
    ],
    ids=["data", "no-base64", "key"],
)  # fmt: skip
def test_token_ids_do_not_say_a_secret_again(stub: Stub, receiver: Receiver, said: dict[str, Any]) -> None:
    with gateway(stub, receiver, privacy=REDACTING) as house:
        house.client().chat.completions.create(model="m", **said)
        (span,) = house.spans()
    assert span.attributes["spanloop.redacted"] == "true"
    assert not [key for key in span.attributes if key.endswith(("token_ids", "logprobs"))]


@pytest.mark.parametrize(
    "held", [{"previous_response_id": "resp_0"}, {"conversation": "conv_0"}], ids=["previous", "conversation"]
)
def test_tokens_of_what_only_the_server_has_are_not_recorded(
    stub: Stub, receiver: Receiver, held: dict[str, Any]
) -> None:
    """The earlier turns are in the prompt's token ids, and nobody here can look whether there are secrets in them."""
    raw = [{"type": "raw_message_tokens", "message": "", "tokens": [1, 2]}]
    answer = {
        "id": "r", "object": "response", "model": "m", "status": "completed", "output": [],
        "input_messages": raw, "output_messages": raw,
    }  # fmt: skip
    with answering(answer) as url, gateway(stub, receiver, upstreams=[url], privacy=REDACTING) as house:
        for more in ({}, held):
            body = json.dumps({"model": "m", "input": "And now?", **more}).encode()
            assert send("POST", house.url + "/v1/responses", body)[0] == 200
        first, second = house.spans(2)
    assert "spanloop.prompt_token_ids" in first.attributes
    assert "spanloop.prompt_token_ids" not in second.attributes
    assert second.attributes["spanloop.redacted"] == "true"


def test_images_are_no_texts() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    assert sorted(texts_in({"content": ["a", image]})) == [
        "a", "content", "image_url", "image_url", "type", "url",
    ]  # fmt: skip


def test_a_deep_request_is_recorded(stub: Stub, receiver: Receiver) -> None:
    """As deep as the parser takes."""
    deep = b"[" * 1000 + b"]" * 1000
    body = json.dumps({"model": "m", "messages": MESSAGES})[:-1].encode() + b', "metadata": ' + deep + b"}"
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "4"},
        "token_ids": [3],
        "finish_reason": "stop",
    }
    answer = {"id": "c", "model": "m", "prompt_token_ids": [1], "choices": [choice]}
    with answering(answer) as url, gateway(stub, receiver, upstreams=[url], privacy=REDACTING) as house:
        assert send("POST", house.url + "/v1/chat/completions", body)[0] == 200
        (span,) = house.spans()
    assert span.attributes["http.response.status_code"] == 200


def test_a_long_name_makes_no_large_span(stub: Stub, receiver: Receiver) -> None:
    with gateway(stub, receiver) as house:
        house.client().chat.completions.create(model="m" * 1_000_000, messages=MESSAGES)
        (span,) = house.spans()
    assert len(span.name) <= MAX_TEXT_CHARS
    assert len(span.attributes["gen_ai.request.model"]) == MAX_TEXT_CHARS
    assert sum(map(len, receiver.bodies)) < 100_000


@pytest.mark.parametrize(
    "ids", [["a text"], [1, 2**70], [1, None], [[1]]], ids=["text", "huge", "null", "list"]
)
def test_what_are_no_token_ids_is_left_out(ids: list[Any]) -> None:
    call = Call("m", prompt_token_ids=ids, response_id="r")
    call.choice(0).token_ids = ids
    call.choice(0).logprobs = [-0.5] * len(ids)
    found = attributes_of(call)
    assert found["gen_ai.response.id"] == "r"
    assert not [key for key in found if key.endswith(("token_ids", "logprobs"))]


def test_a_choice_that_was_cut_is_not_taken_for_the_one_that_ended(receiver: Receiver, stub: Stub) -> None:
    """n = 2, and the stream ends when one of them has."""

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for choice in (
            {"index": 0, "delta": {"content": "fo"}, "finish_reason": None},
            {"index": 1, "delta": {"content": "4"}, "finish_reason": "stop"},
        ):
            chunk = {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write_eof()
        return response

    with scripted(half) as url, gateway(stub, receiver, upstreams=[url]) as house:
        list(house.client().chat.completions.create(model="m", messages=MESSAGES, stream=True, n=2))
        (span,) = house.spans()
    assert span.attributes["error.type"] == "truncated"
    assert span.attributes["gen_ai.response.finish_reasons"] == ["", "stop"]


def test_log_probabilities_that_json_cannot_say_are_left_out() -> None:
    for logprob in (float("-inf"), 10**400):
        call = Call("m", response_id="r")
        call.choice(0).token_ids, call.choice(0).logprobs = [1], [logprob]
        found = attributes_of(call)
        assert found["spanloop.completion_token_ids"] == "[[1]]"
        assert "spanloop.completion_logprobs" not in found


def test_tokens_that_make_a_span_too_large_are_left_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MAX_SPAN_BYTES", 10_000)
    collector = Collector(limit=1 << 20)
    made = sender(collector)
    call = Call("m", prompt_token_ids=[100_000] * 5000)
    CallTracer(made).end(CallTracer.start({}), call)
    assert made.flush(30)
    made.shutdown()
    ((items, size),) = collector.batches
    assert (items, size < 1000) == (1, True)


class Collector:
    """Takes the place of the target: answers as it is told, and keeps the sizes of what came."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.away = False
        self.batches: list[tuple[int, int]] = []  # spans and bytes
        self.refused = threading.Semaphore(0)

    def send(self, batch: Batch) -> Answer:
        if self.away:
            self.refused.release()
            return Answer(Outcome.LATER, "away")
        self.batches.append((batch.items or 0, len(batch.data)))
        return Answer(Outcome.DELIVERED if len(batch.data) <= self.limit else Outcome.TOO_LARGE, "")


def sender(collector: Collector) -> Sender:
    made = Sender("http://127.0.0.1:9/v1/traces", None, b"", b"")
    made._target = collector  # type: ignore[assignment]  # stands for it
    return made


def test_a_batch_of_long_spans_is_no_larger_than_a_collector_takes() -> None:
    """After an outage hundreds wait; as one request they would be refused, and all be lost."""
    collector = Collector(limit=64 << 20)
    made = sender(collector)
    for _ in range(300):
        made.put(bytes(400_000))
    assert made.flush(60)
    made.shutdown()
    assert made.lost == 0
    assert sum(spans for spans, _ in collector.batches) == 300
    assert max(size for _, size in collector.batches) <= sending.BATCH_BYTES + 500_000


def test_the_queue_is_bounded_in_bytes_and_says_once_what_it_loses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "MAX_QUEUED_BYTES", 100_000)
    monkeypatch.setattr(sending, "RETRY_PAUSE_S", 0.01)
    collector = Collector(limit=1 << 20)
    collector.away = True
    made = sender(collector)
    with caplog.at_level(logging.WARNING):
        for _ in range(500):
            made.put(bytes(1000))
        assert made.lost >= 380
        collector.away = False
        assert made.flush(60)  # what was not lost before
    made.shutdown()
    assert made.lost + sum(spans for spans, _ in collector.batches) == 500
    assert len([line for line in caplog.messages if "lost" in line]) <= 2


def test_spans_wait_as_long_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the collector is away."""
    monkeypatch.setattr(sending, "RETRY_PAUSE_S", 0.0)
    monkeypatch.setattr(sending, "PATIENCE_S", -1.0, raising=False)  # there was one
    collector = Collector(limit=1 << 20)
    collector.away = True
    made = sender(collector)
    made.put(b"span")
    for _ in range(20):
        assert collector.refused.acquire(timeout=30)
    collector.away = False
    assert made.flush(30)
    made.shutdown()
    assert (made.lost, collector.batches[0][0]) == (0, 1)


@pytest.mark.parametrize(
    ("header", "joins"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", True),
        ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes", True),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", False),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        ("00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", False),
        ("nonsense", False),
        ("", False),
    ],
    ids=["unsampled", "later", "more", "ff", "no-trace", "no-span", "capitals", "short", "nonsense", "empty"],
)  # fmt: skip
def test_a_span_joins_by_a_header_that_the_standard_allows(header: str, joins: bool) -> None:
    span = CallTracer.start({"traceparent": header, "tracestate": "a=1"})
    assert (span.parent_id == 0xB7AD6B7169203331) is joins
    assert (span.trace_id == 0x0AF7651916CD43DD8448EB211C80319C) is joins
    assert span.tracestate == ("a=1" if joins else "")
    assert span.trace_id
    assert span.span_id
