"""Calls that go wrong, straight to an upstream and through the gateway: the client sees the same exception, status, body and headers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from tests.gateway_clients.conftest import House, async_client, sync_client
from tests.gateway_clients.upstream import ERRORS, REFUSAL_HEADERS

MESSAGES: Any = [{"role": "user", "content": "2+2?"}]


def raised(ask: Any) -> dict[str, Any]:
    """What the client says of a refusal."""
    with pytest.raises(openai.APIStatusError) as caught:
        ask()
    error = caught.value
    return {
        "class": type(error).__name__,
        "status": error.status_code,
        "message": error.message,
        "fields": (error.type, error.param, error.code),
        "body": error.response.content,
        "reason": error.response.reason_phrase,
        "request_id": error.request_id,
        "headers": {name: error.response.headers.get(name) for name in (*REFUSAL_HEADERS, "content-type")},
    }


@pytest.mark.parametrize("endpoint", ["chat", "stream", "responses", "completions", "embeddings"])
def test_refusals(house: House, endpoint: str) -> None:
    def ask(base_url: str) -> dict[int, dict[str, Any]]:
        with sync_client(base_url) as client:
            calls: dict[str, Callable[[str], Any]] = {
                "chat": lambda name: client.chat.completions.create(model=name, messages=MESSAGES),
                "stream": lambda name: client.chat.completions.create(
                    model=name, messages=MESSAGES, stream=True
                ),
                "responses": lambda name: client.responses.create(model=name, input="x"),
                "completions": lambda name: client.completions.create(model=name, prompt="x"),
                "embeddings": lambda name: client.embeddings.create(model=name, input="x"),
            }
            return {status: raised(partial(calls[endpoint], f"status-{status}")) for status in ERRORS}

    direct, through = house.both(ask)
    assert [said["status"] for said in direct.values()] == list(ERRORS)
    for status in ERRORS:
        assert through[status] == direct[status]


@pytest.mark.parametrize("status", [429, 500])
def test_the_clients_own_retries_work_as_before(house: House, status: int) -> None:
    def ask(base_url: str) -> Any:
        with sync_client(base_url, max_retries=2) as client:
            raw = client.chat.completions.with_raw_response.create(
                model=f"once-{status}-{base_url}-{house.upstream.owner}", messages=MESSAGES
            )
            return raw.retries_taken, raw.parse().choices[0].model_dump()

    direct, through = house.both(ask)
    assert direct[0] == 1
    assert through == direct


def chunks_until_error(base_url: str, model: str) -> tuple[list[Any], Exception]:
    """Of a stream that does not end well."""
    chunks = []
    with sync_client(base_url) as client:
        stream = client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
        try:
            for chunk in stream:
                chunks.append(chunk.model_dump())
        except (openai.APIError, httpx.HTTPError) as error:
            return chunks, error
    pytest.fail("the stream ended as if it were whole")


def test_an_error_inside_a_stream(house: House) -> None:
    direct, through = house.both(lambda base_url: chunks_until_error(base_url, "error-event"))
    assert len(direct[0]) == 2
    assert through[0] == direct[0]
    assert type(through[1]) is type(direct[1])
    assert (str(through[1]), through[1].body) == (str(direct[1]), direct[1].body)
    spans = house.receiver.wait(
        lambda spans: any(span.attributes.get("spanloop.error") == "out of memory – ä" for span in spans)
    )
    assert any(span.attributes.get("error.type") == "upstream_error" for span in spans)


@pytest.mark.parametrize("model", ["breaks", "breaks-between"])
def test_a_stream_that_breaks_off_fails_at_the_same_place(house: House, model: str) -> None:
    direct, through = house.both(lambda base_url: chunks_until_error(base_url, model))
    assert len(direct[0]) == 2
    assert through[0] == direct[0]
    # Between two events there is room to say who it was; in the middle of one that was passed on, anything would be read
    # as its rest.
    told = isinstance(through[1], openai.APIError) and "upstream default" in str(through[1])
    assert told or (model == "breaks" and type(through[1]) is type(direct[1]))


@pytest.mark.parametrize("endpoint", ["responses", "completions"])
def test_other_streams_that_break_off_are_no_whole_answers(house: House, endpoint: str) -> None:
    def ask(base_url: str) -> list[Any]:
        seen = []
        with sync_client(base_url) as client:
            if endpoint == "responses":
                stream: Any = client.responses.create(model="breaks", input="x", stream=True)
            else:
                stream = client.completions.create(model="breaks", prompt="x", stream=True)
            try:
                for event in stream:
                    seen.append(event.model_dump())
            except (openai.APIError, httpx.HTTPError):
                return seen
        pytest.fail("the stream ended as if it were whole")

    direct, through = house.both(ask)
    assert len(direct) == 2
    assert through == direct


class TestHeldStreams:
    """Streams that wait after each event until the client has seen it: what is kept back anywhere would never come."""

    @pytest.fixture(autouse=True)
    def gate(self, houses: dict[str, House]) -> Any:
        for house in houses.values():
            house.upstream.gate = threading.Semaphore(0)
            house.upstream.cancelled.clear()
        yield
        for house in houses.values():
            house.upstream.gate = None

    @pytest.mark.parametrize("endpoint", ["chat", "responses", "completions"])
    def test_each_chunk_arrives_before_the_next_is_made(self, house: House, endpoint: str) -> None:
        gate = house.upstream.gate
        assert gate is not None

        def ask(base_url: str) -> list[Any]:
            seen = []
            with sync_client(base_url, timeout=20) as client:
                if endpoint == "chat":
                    stream: Any = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
                elif endpoint == "responses":
                    stream = client.responses.create(model="m", input="x", stream=True)
                else:
                    stream = client.completions.create(model="m", prompt="x", stream=True)
                for chunk in stream:
                    seen.append(chunk.model_dump())
                    gate.release()
            return seen

        direct, through = house.both(ask)
        assert len(direct) > 5
        assert through == direct

    def test_a_client_that_goes_away_ends_the_upstreams_work(self, house: House) -> None:
        messages = [*MESSAGES, {"role": "user", "content": f"cancel {house.upstream.owner}"}]
        with sync_client(house.through) as client:
            stream: Any = client.chat.completions.create(model="m", messages=messages, stream=True)
            response_id = next(iter(stream)).id
            stream.close()
        assert house.upstream.cancelled.wait(20)
        assert house.span(response_id).attributes["error.type"] == "client_disconnected"

    def test_a_task_that_is_cancelled_ends_the_upstreams_work(self, house: House) -> None:
        async def ask() -> None:
            async with async_client(house.through) as client:
                first = asyncio.Event()

                async def read() -> None:
                    stream = await client.responses.create(model="m", input="cancelled", stream=True)
                    async for _event in stream:
                        first.set()

                task = asyncio.create_task(read())
                await asyncio.wait_for(first.wait(), 20)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        asyncio.run(ask())
        assert house.upstream.cancelled.wait(20)
