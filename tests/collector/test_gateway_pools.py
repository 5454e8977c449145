"""Several back ends under one name: who gets a call, who is left out, what is tried again, what a limit says."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from unittest.mock import Mock

import aiohttp
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from tests.collector.gateway_house import MESSAGES, House, gateway, quick_polls, receiver, scripted, send
from tests.helpers.openai_stub import Stub, openai_stub
from tests.helpers.otlp_receiver import Receiver

from spanloop_collector.gateway import backends, exchange, pools
from spanloop_collector.gateway.backends import Backend
from spanloop_collector.gateway.errors import ClientError, unreachable
from spanloop_collector.gateway.pools import Pool
from spanloop_collector.gateway.record import Call

__all__ = ["quick_polls", "receiver"]

CALL = b'{"model":"m","messages":[]}'
GONE = "http://127.0.0.1:1/v1"  # port 1 needs root to listen on: nothing does


def ask(house: House) -> tuple[int, Any]:
    status, body = send("POST", house.url + "/v1/chat/completions", CALL)
    return status, json.loads(body)


@pytest.mark.parametrize("status", [0, 502, 503, 504], ids=["gone", "502", "503", "504"])
def test_a_call_goes_to_another_back_end_before_anything_reached_the_client(
    receiver: Receiver, status: int
) -> None:
    async def broken(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "loading"}}, status=status)

    with openai_stub() as stub, ExitStack() as stack:
        other = stack.enter_context(scripted(broken)) if status else GONE
        with gateway(stub, receiver, upstreams=[f"m={stub.url}", f"m={other}"]) as house:
            answers = [ask(house) for _ in range(4)]
            health = json.loads(send("GET", house.url + "/healthz")[1])
            metrics = send("GET", house.url + "/metrics")[1].decode()
            spans = house.spans(4)
    assert [answer[0] for answer in answers] == [200] * 4
    assert [upstream["well"] for upstream in health["upstreams"]] == [True, False]
    # The first one that met it was sent again; then it was out.
    assert sorted(span.attributes.get("spanloop.retries", "0") for span in spans) == ["0", "0", "0", "1"]
    assert 'spanloop_gateway_retries_total{upstream="m"} 1' in metrics
    assert f'spanloop_gateway_backend_up{{upstream="m",backend="{other}"}} 0' in metrics
    assert 'spanloop_gateway_calls_total{upstream="m",operation="chat",status="200"} 4' in metrics
    assert 'spanloop_gateway_first_byte_seconds_count{upstream="m"} ' in metrics
    assert {span.status for span in spans} == {0}


def test_the_only_back_end_is_tried_again_when_it_breaks_off(receiver: Receiver) -> None:
    attempts: list[int] = []

    async def third_time(request: web.Request) -> web.StreamResponse:
        attempts.append(1)
        if len(attempts) == 1:
            assert request.transport is not None
            request.transport.abort()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        if len(attempts) == 2:  # the answer has begun, and still nothing of it has come
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(
            b'data: {"id":"x","choices":[{"index":0,"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        )
        return response

    with scripted(third_time) as url, gateway(Stub(), receiver, upstreams=[url]) as house:
        status, body = send("POST", house.url + "/v1/chat/completions", CALL)
        assert (status, body.count(b"[DONE]"), len(attempts)) == (200, 1, 3)
        (span,) = house.spans()
    assert (span.attributes["spanloop.retries"], span.status) == ("2", 0)


def test_an_error_of_the_only_back_end_is_passed_on_at_once(receiver: Receiver) -> None:
    with openai_stub(status=503) as stub, gateway(stub, receiver) as house:
        status, body = ask(house)
        assert (status, body["error"]["message"], len(stub.requests)) == (503, "slow down", 1)
        stub.status = 200
        assert ask(house)[0] == 200  # it is out, and there is no other


def test_a_back_end_that_said_no_gets_calls_after_a_while(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "FIRST_OUT_S", 0.01)
    with (
        openai_stub(status=503) as ill,
        openai_stub() as well,
        gateway(ill, receiver, upstreams=[f"m={ill.url}", f"m={well.url}"]) as house,
    ):
        while not ill.requests:
            assert ask(house)[0] == 200
        ill.status = 200
        while len(ill.requests) < 2:
            assert ask(house)[0] == 200


def test_a_back_end_that_was_silent_gets_calls_once_it_answers_a_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "FIRST_OUT_S", 1000.0)
    monkeypatch.setattr(pools, "PROBE_S", 0.01)

    async def go(url: str) -> None:
        pool = Pool("m", [Backend(url), Backend(GONE), Backend(url + "/")])
        silent, gone, refusing = pool.backends
        silent.failed("no answer")
        gone.failed("no answer")
        refusing.failed("it answered 503", said_so=True)
        async with aiohttp.ClientSession() as session:
            probe = asyncio.create_task(pool.look_after(session))
            while not silent.well:
                await asyncio.sleep(0.01)
            probe.cancel()
        assert [backend.well for backend in pool] == [True, False, False]
        # Nobody else is well: who was tried comes last.
        assert await pool.take([silent], 8, 8, 30) is silent

    with openai_stub() as stub:
        asyncio.run(go(stub.url))


def test_limits_of_time_are_named_and_recorded(receiver: Receiver) -> None:
    over = threading.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["model"] == "silent":
            await asyncio.to_thread(over.wait, 30)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        event = {
            "id": "x",
            "choices": [
                {
                    "index": 0,
                    "delta": {"content": "a"},
                    "token_ids": [5],
                    "logprobs": {"content": [{"logprob": -1.5}]},
                }
            ],
        }
        await response.write(f"data: {json.dumps(event)}\n\n".encode())
        if body["model"] == "endless":
            while not over.is_set():
                await response.write(f"data: {json.dumps(event)}\n\n".encode())
                await asyncio.sleep(0.01)
        await asyncio.to_thread(over.wait, 30)
        return response

    limits = {"first_byte_timeout_s": 0.3, "idle_timeout_s": 0.3, "total_timeout_s": 0.9}
    with scripted(slow) as url, gateway(Stub(), receiver, upstreams=[url], limits=limits) as house:
        client = house.client()
        try:
            with pytest.raises(openai.InternalServerError, match=r"no answer began within 0\.3 s") as caught:
                client.chat.completions.create(model="silent", messages=MESSAGES)
            assert caught.value.status_code == 504
            with pytest.raises(openai.APIError, match=r"nothing came for 0\.3 s in the middle"):
                list(client.chat.completions.create(model="stuck", messages=MESSAGES, stream=True))
            with pytest.raises(openai.APIError, match="the whole call"):
                list(client.chat.completions.create(model="endless", messages=MESSAGES, stream=True))
        finally:
            over.set()
        spans = house.spans(3)
    assert {span.attributes["error.type"] for span in spans} == {"upstream_timeout"}
    assert spans[1].json("spanloop.completion_token_ids") == [[5]]
    assert spans[1].json("spanloop.completion_logprobs") == [[-1.5]]


def test_beyond_its_limits_the_gateway_says_so_and_when_to_come_back(receiver: Receiver) -> None:
    gate = threading.Event()
    limits = {"max_in_flight": 1, "max_waiting": 1, "max_wait_s": 60}
    with openai_stub(gate=gate) as stub, gateway(stub, receiver, limits=limits) as house:
        with ThreadPoolExecutor(2) as pool:

            def stream() -> int:
                return len(
                    list(house.client().chat.completions.create(model="m", messages=MESSAGES, stream=True))
                )

            first = pool.submit(stream)
            assert stub.streaming.acquire(timeout=20)
            second = pool.submit(stream)
            while json.loads(send("GET", house.url + "/healthz")[1])["waiting"] < 1:
                pass
            with pytest.raises(openai.InternalServerError, match="at its limit") as caught:
                house.client().chat.completions.create(model="m", messages=MESSAGES)
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"] == "5"
            gate.set()
            assert (first.result(20), second.result(20)) == (6, 6)
        assert json.loads(send("GET", house.url + "/healthz")[1])["upstreams"][0]["in_flight"] == 0


def test_calls_go_to_the_least_busy_and_those_that_wait_come_in_order() -> None:
    async def go() -> None:
        pool = Pool("m", [Backend("http://a"), Backend("http://b")])

        async def take() -> Backend:
            return await pool.take((), 2, 8, 30)

        got = [await take() for _ in range(4)]
        assert sorted(backend.base for backend in got) == ["http://a", "http://a", "http://b", "http://b"]
        waiting = [asyncio.create_task(take()) for _ in range(3)]
        await asyncio.sleep(0)
        assert pool.waiting == 3
        waiting[1].cancel()
        pool.release(pool.backends[1])
        assert (await waiting[0]) is pool.backends[1]
        assert not waiting[2].done()
        pool.release(pool.backends[0])
        assert (await waiting[2]) is pool.backends[0]
        with pytest.raises(ClientError) as caught:
            await pool.take((), 2, 8, 0.01)
        assert caught.value.code == "upstream_overloaded"
        assert [backend.in_flight for backend in pool] == [2, 2]
        assert pool.waiting == 0

    asyncio.run(go())


def test_a_client_that_takes_nothing_more_keeps_no_place_when_its_stream_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stalled(web.StreamResponse):
        async def write(self, data: Any) -> None:  # as the real one
            await asyncio.Event().wait()

    async def go() -> Call:
        attempt = Mock(request=make_mocked_request("POST", "/"), call=Call("m"))
        attempt.reader.halfway = False
        await exchange._broken_off(attempt, Stalled(), unreachable("m", GONE, "it broke"))
        return attempt.call  # type: ignore[no-any-return]  # the one above

    monkeypatch.setattr(exchange, "_LAST_WORDS_S", 0.01)
    assert asyncio.run(go()).error_type == "upstream_unreachable"


def test_a_back_end_is_out_for_a_growing_while() -> None:
    backend = Backend("http://user:secret@a/v1", "m")
    assert backend.well
    assert backend.shown == "http://a/v1"
    asked = Backend("http://user:secret@a/v1/?version=1&key=k", "m")
    assert asked.shown == "http://a/v1"
    assert [str(asked.url(path)) for path in ("/models", "/files?x=%20")] == [
        "http://a/v1/models?version=1&key=k",
        "http://a/v1/files?version=1&key=k&x=%20",
    ]
    pauses = []
    for _ in range(9):
        backend.failed("no")
        pauses.append(round(backend.out_until - time.monotonic()))
    assert not backend.well
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    backend.answered()
    assert backend.well
