"""Pause with drain, tokens, counters, the description, and requests that are none."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import aiohttp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.collector.gateway_house import MESSAGES, House, gateway, quick_polls, receiver, send, stub
from tests.helpers.openai_stub import Stub
from tests.helpers.otlp_receiver import Receiver
from yarl import URL

from spanloop_collector.diagnostics import log_to_stderr
from spanloop_collector.gateway import bodies
from spanloop_collector.gateway.calls import APIS
from spanloop_collector.gateway.openapi import document
from spanloop_collector.gateway.privacy import Privacy
from spanloop_exporter.redaction.redactor import Redactor

__all__ = ["quick_polls", "receiver", "stub"]

PATHS = [f"/v1{api.path}" for api in APIS]


def state(house: House) -> dict[str, Any]:
    return dict(json.loads(send("GET", house.url + "/healthz")[1]))


def post(house: House, path: str, **headers: str) -> tuple[int, dict[str, Any]]:
    async def go() -> tuple[int, dict[str, Any]]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(house.url + path, headers=headers) as answer,
        ):
            return answer.status, await answer.json()

    return asyncio.run(go())


def ask(house: House, *, stream: bool = False) -> str:
    answer: Any = house.client().chat.completions.create(model="m", messages=MESSAGES, stream=stream)
    return "streamed" * len(list(answer)) if stream else str(answer.model)


def test_a_pause_lets_calls_end_and_new_ones_wait(stub: Stub, receiver: Receiver) -> None:
    stub.gate = Event()
    with gateway(stub, receiver) as house, ThreadPoolExecutor(3) as pool:
        running = pool.submit(ask, house, stream=True)
        assert stub.streaming.acquire(timeout=20)
        pausing = pool.submit(post, house, "/pause")
        while state(house)["state"] != "pausing":
            pass
        waiting = pool.submit(ask, house)
        while state(house)["waiting"] != 1:
            pass
        assert not pausing.done()
        stub.gate.set()
        assert running.result(20)
        assert pausing.result(20) == (200, {"state": "paused", "in_flight": 0, "waiting": 1})
        assert len(stub.requests) == 1
        assert "spanloop_gateway_paused 1" in send("GET", house.url + "/metrics")[1].decode()
        assert post(house, "/resume")[1]["state"] == "running"
        assert waiting.result(20) == "m"
        assert state(house) | {"registry": 0, "upstreams": 0} == {
            "status": "ok", "state": "running", "in_flight": 0, "waiting": 0, "registry": 0, "upstreams": 0
        }  # fmt: skip


def test_a_call_does_not_wait_for_ever_for_the_end_of_a_pause(stub: Stub, receiver: Receiver) -> None:
    with gateway(stub, receiver, limits={"max_wait_s": 0.05}) as house:
        post(house, "/pause")
        with pytest.raises(openai.InternalServerError, match="paused") as caught:
            ask(house)
        assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "10")
        assert send("GET", house.url + "/v1/files")[0] == 503  # what passes through waits, too
        (span,) = house.spans()
        assert span.attributes["error.type"] == "gateway_paused"
        post(house, "/resume")
        assert ask(house) == "m"


@pytest.mark.parametrize(
    ("settings", "given", "status"),
    [
        ({}, {}, 200),
        ({}, {"origin": "http://evil.example"}, 403),
        ({"token": "call"}, {}, 401),
        ({"token": "call"}, {"authorization": "Bearer call"}, 401),
        ({"admin_token": "root"}, {}, 401),
        ({"token": "call", "admin_token": "root"}, {"authorization": "Bearer call"}, 401),
        ({"token": "call", "admin_token": "root"}, {"authorization": "Bearer root"}, 200),
    ],
    ids=["loopback", "a page", "none", "the call token", "admin on loopback", "not enough", "admin"],
)
def test_who_may_pause(
    stub: Stub, receiver: Receiver, settings: dict[str, Any], given: dict[str, str], status: int
) -> None:
    used: list[tuple[str, str]] = []
    with gateway(stub, receiver, audit=lambda action, who: used.append((action, who)), **settings) as house:
        assert [post(house, path, **given)[0] for path in ("/pause", "/resume")] == [status, status]
        assert state(house)["state"] == "running"
    shown = status == 200 and bool(settings)
    assert used == (
        [("pause", "administrator@127.0.0.1"), ("resume", "administrator@127.0.0.1")] if shown else []
    )


def test_what_cannot_be_recorded_is_not_done(stub: Stub, receiver: Receiver) -> None:
    def away(_action: str, _who: str) -> None:
        raise OSError("the store is away")

    with gateway(stub, receiver, admin_token="root", audit=away) as house:
        assert post(house, "/pause", authorization="Bearer root")[0] == 503
        assert state(house)["state"] == "running"


def test_tokens_open_what_they_are_for(stub: Stub, receiver: Receiver) -> None:
    with gateway(stub, receiver, token="call", admin_token="root", read_token="look") as house:

        def status(path: str, token: str) -> int:
            async def go() -> int:
                headers = {"authorization": f"Bearer {token}"}
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(house.url + path, headers=headers) as answer,
                ):
                    return answer.status

            return asyncio.run(go())

        assert [status("/v1/models", token) for token in ("call", "root", "look", "\udcff")] == [
            200,
            401,
            401,
            401,
        ]
        assert [status("/metrics", token) for token in ("call", "root", "look")] == [401, 401, 200]
        assert [status("/openapi.json", token) for token in ("call", "x")] == [200, 401]


def test_a_body_that_nobody_unpacks_fills_no_log(
    stub: Stub, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    log_to_stderr(logging.INFO)
    with gateway(stub, receiver, token="call") as house:
        call = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ncontent-length: 7\r\n\r\nno gzip"
        for request, status in ((call, b"401"), (b"GET /\xff HTTP/1.1\r\n\r\n", b"400")):
            url = URL(house.url)
            with (
                socket.create_connection((url.host, url.port)) as connection,
                connection.makefile("rb") as answer,
            ):
                connection.sendall(request)
                assert answer.read().split()[1] == status  # to its end: the connection is closed
    assert [record for record in caplog.records if record.exc_info] == []


def test_metrics_are_what_prometheus_reads(stub: Stub, receiver: Receiver) -> None:
    with gateway(stub, receiver) as house:
        ask(house)
        ask(house, stream=True)
        stub.status = 429
        with pytest.raises(openai.RateLimitError):
            ask(house)
        families = {
            family.name: family
            for family in text_string_to_metric_families(send("GET", house.url + "/metrics")[1].decode())
        }
    calls = {
        tuple(sample.labels.values()): sample.value for sample in families["spanloop_gateway_calls"].samples
    }
    assert calls == {("default", "chat", "200"): 2, ("default", "chat", "429"): 1}
    assert [s.value for s in families["spanloop_gateway_errors"].samples] == [1]
    assert families["spanloop_gateway_first_byte_seconds"].type == "histogram"
    (count,) = (
        s.value for s in families["spanloop_gateway_first_byte_seconds"].samples if s.name.endswith("_count")
    )
    assert count == 3


@pytest.mark.parametrize("path", PATHS)
def test_every_malformed_request_is_refused_in_openais_form(
    stub: Stub, receiver: Receiver, path: str
) -> None:
    bad = [
        b"", b"not json", b"[]", b"null", b"{}", b'{"model": ""}', b'{"model": 7}', b'{"model": null}', b"\xff\xfe",
        b'{"model": "m", "stream": "yes"}', b'{"model": "\\ud800"}', b'"' * 3, b"[" * 100_000, b'{"model":"m"' + b" " * 99,
    ]  # fmt: skip
    with gateway(stub, receiver, limits={"max_body_bytes": 200_000}) as house:
        for body in bad:
            status, answer = send("POST", house.url + path, body)
            assert status == 400, body[:40]
            error = json.loads(answer)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
        status, answer = send("POST", house.url + path, b" " * 200_001)
        assert (status, json.loads(answer)["error"]["code"]) == (413, "request_too_large")
        assert house.tracer.flush()
    assert stub.requests == []
    assert receiver.spans == []  # nothing of a refused request is stored


def test_other_methods_and_paths_are_refused_in_the_same_form(stub: Stub, receiver: Receiver) -> None:
    with gateway(stub, receiver) as house:

        async def go() -> None:
            async with aiohttp.ClientSession() as session:
                async with session.get(house.url + "/pause") as answer:
                    assert (answer.status, answer.headers["allow"]) == (405, "POST")
                    assert (await answer.json())["error"]["type"] == "invalid_request_error"
                async with session.get(house.url + "/nothing") as answer:
                    assert answer.status == 404

        asyncio.run(go())


def test_a_small_packet_that_unpacks_to_a_large_body_is_refused(stub: Stub, receiver: Receiver) -> None:
    with gateway(stub, receiver, limits={"max_body_bytes": 100_000}) as house:

        async def go() -> int:
            headers = {"content-encoding": "gzip"}
            data = gzip.compress(b" " * 10_000_000)
            async with (
                aiohttp.ClientSession() as session,
                session.post(house.url + "/v1/chat/completions", data=data, headers=headers) as answer,
            ):
                return answer.status

        assert asyncio.run(go()) == 413
        assert ask(house) == "m"


def test_slow_and_large_bodies_keep_nobody_out(
    stub: Stub, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.3)
    with gateway(stub, receiver, limits={"max_body_bytes": 1000}) as house:

        async def go() -> None:
            host, port = house.url.removeprefix("http://").split(":")
            opened = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
            for _, writer in opened:
                writer.write(
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
                    + b" " * 999
                )
            answers = [await reader.readuntil(b"\r\n") for reader, _ in opened]
            # There is room for what sixteen of them sent; they are told to come back, or that they were too slow.
            assert sorted(set(answers)) == [
                b"HTTP/1.1 408 Request Timeout\r\n",
                b"HTTP/1.1 503 Service Unavailable\r\n",
            ]
            for _, writer in opened:
                writer.close()

        asyncio.run(go())
        assert ask(house) == "m"


def test_the_description_holds_together() -> None:
    found = document(secured=True)
    schemas = found["components"]
    for reference in re.findall(r'"#/components/(\w+)/(\w+)"', json.dumps(found)):
        assert reference[1] in schemas[reference[0]]
    assert {path for path in found["paths"] if path.startswith("/v1/")} == {*PATHS, "/v1/models"}


def test_token_ids_of_texts_with_secrets_are_not_recorded(stub: Stub, receiver: Receiver) -> None:
    secret = "AKIA" + "IOSFODNN7" + "QWERTYU"
    privacy = Privacy(Redactor(b"0123456789abcdef"))
    with gateway(stub, receiver, privacy=privacy) as house:
        client = house.client()
        client.chat.completions.create(model="clean", messages=MESSAGES)
        client.chat.completions.create(model="asked", messages=[{"role": "user", "content": f"key {secret}"}])
        stub.respond = lambda _body: {"role": "assistant", "content": f"it is {secret} now"}
        client.chat.completions.create(model="said", messages=MESSAGES)
        list(client.chat.completions.create(model="streamed", messages=MESSAGES, stream=True))
        house.registry.point(2)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=f"calculator@{secret}", messages=MESSAGES)
        spans = {span.attributes["gen_ai.request.model"]: span for span in house.spans(5)}
    assert "spanloop.completion_token_ids" in spans["clean"].attributes
    assert "spanloop.redacted" not in spans["clean"].attributes
    for name in ("asked", "said", "streamed"):
        kept = spans[name].attributes
        assert kept["spanloop.redacted"] == "true"
        assert not [key for key in kept if key.endswith(("token_ids", "logprobs"))], name
        assert kept["gen_ai.usage.output_tokens"] >= 4
    assert secret.encode() not in b"".join(receiver.bodies)
