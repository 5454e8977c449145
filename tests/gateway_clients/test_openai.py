"""The openai client, sync and async, straight to an upstream and through the gateway: answers and chunks are equal, field by field."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from tests.gateway_clients.conftest import House, async_client, sync_client
from tests.gateway_clients.upstream import PROMPT_IDS, WORDS

MESSAGES: Any = [{"role": "system", "content": "You count – in German."}, {"role": "user", "content": "2+2?"}]


class Sum(BaseModel):
    """What structured output is asked for."""

    total: int
    words: list[str]


def tool(name: str) -> Any:
    parameters = {"type": "object", "properties": {"a": {"type": "number"}}, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "strict": True, "parameters": parameters}}


def plain(value: Any) -> Any:
    """A client's objects as values, unknown fields included."""
    if isinstance(value, BaseModel):
        return value.model_dump(warnings=False)
    return [plain(item) for item in value] if isinstance(value, list) else value


# --- sync ---


def _parse(client: openai.OpenAI) -> Any:
    answer = client.chat.completions.parse(model="m", messages=MESSAGES, response_format=Sum)
    assert answer.choices[0].message.parsed == Sum(total=4, words=["zwei", "zwei"])
    return answer


def _events(client: openai.OpenAI, **options: Any) -> list[Any]:
    with client.chat.completions.stream(model="m", messages=MESSAGES, **options) as stream:
        events = list(stream)
        return [*events, stream.get_final_completion()]


def _raw(client: openai.OpenAI) -> Any:
    raw = client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
    return [
        raw.status_code,
        raw.request_id,
        raw.headers["content-type"],
        raw.http_response.json(),
        raw.parse(),
    ]


def _raw_lines(client: openai.OpenAI) -> Any:
    streaming = client.chat.completions.with_streaming_response
    with streaming.create(model="commented", messages=MESSAGES, stream=True) as raw:
        return [raw.headers["content-type"], raw.headers["x-request-id"], *raw.iter_lines()]


def _responses_events(client: openai.OpenAI) -> Any:
    with client.responses.stream(model="m", input="2+2?", tools=[RESPONSES_TOOL]) as stream:
        return [*stream, stream.get_final_response()]


RESPONSES_TOOL: Any = {"type": "function", "name": "add", "strict": True, "parameters": {"type": "object"}}
USAGE: Any = {"include_usage": True}

SCENARIOS: dict[str, Callable[[openai.OpenAI], Any]] = {
    "chat": lambda c: c.chat.completions.create(model="m", messages=MESSAGES, temperature=0.5, seed=1),
    "chat-stream": lambda c: list(c.chat.completions.create(model="m", messages=MESSAGES, stream=True)),
    "chat-stream-usage": lambda c: list(
        c.chat.completions.create(model="m", messages=MESSAGES, stream=True, stream_options=USAGE)
    ),
    "chat-stream-comments": lambda c: list(
        c.chat.completions.create(model="commented", messages=MESSAGES, stream=True)
    ),
    "chat-stream-helper": _events,
    "chat-stream-helper-tools": lambda c: _events(c, tools=[tool("add"), tool("sub")]),
    "chat-parse": _parse,
    "chat-parse-stream": lambda c: _events(c, response_format=Sum),
    "chat-tool": lambda c: c.chat.completions.create(model="m", messages=MESSAGES, tools=[tool("add")]),
    "chat-parallel-tools": lambda c: c.chat.completions.create(
        model="m", messages=MESSAGES, tools=[tool("add"), tool("sub"), tool("mul")], parallel_tool_calls=True
    ),
    "chat-parallel-tools-stream": lambda c: list(
        c.chat.completions.create(
            model="m", messages=MESSAGES, tools=[tool("add"), tool("sub")], stream=True, stream_options=USAGE
        )
    ),
    "chat-n2": lambda c: c.chat.completions.create(model="m", messages=MESSAGES, n=2),
    "chat-n2-stream": lambda c: list(
        c.chat.completions.create(model="m", messages=MESSAGES, n=2, stream=True)
    ),
    "chat-logprobs": lambda c: c.chat.completions.create(
        model="m", messages=MESSAGES, logprobs=True, top_logprobs=2
    ),
    "chat-logprobs-stream": lambda c: list(
        c.chat.completions.create(model="m", messages=MESSAGES, logprobs=True, top_logprobs=2, stream=True)
    ),
    "chat-token-ids": lambda c: c.chat.completions.create(
        model="m", messages=MESSAGES, extra_body={"return_token_ids": True}
    ),
    "chat-token-ids-stream": lambda c: list(
        c.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, extra_body={"return_token_ids": True}
        )
    ),
    "chat-raw": _raw,
    "chat-raw-lines": _raw_lines,
    "responses": lambda c: c.responses.create(model="m", input="2+2?", instructions="You count."),
    "responses-stream": lambda c: list(c.responses.create(model="m", input="2+2?", stream=True)),
    "responses-tools": lambda c: c.responses.create(model="m", input="2+2?", tools=[RESPONSES_TOOL]),
    "responses-events": _responses_events,
    "completions": lambda c: c.completions.create(model="m", prompt="2+2=", max_tokens=7),
    "completions-logprobs": lambda c: c.completions.create(model="m", prompt="2+2=", logprobs=1),
    "completions-stream": lambda c: list(c.completions.create(model="m", prompt="2+2=", stream=True)),
    "embeddings": lambda c: c.embeddings.create(model="m", input=["eins", "zwei"], dimensions=8),
    "embeddings-floats": lambda c: c.embeddings.create(model="m", input="drei", encoding_format="float"),
    "upload": lambda c: c.files.create(file=io.BytesIO(b"\x00\xffdata" * 5000), purpose="batch"),
    "binary": lambda c: c.files.content("file-1").text,
    "delete": lambda c: c.files.delete("file-1"),
    "retrieve": lambda c: c.responses.retrieve("resp_1", include=["message.output_text.logprobs"]),
    "page": lambda c: c.models.with_raw_response.retrieve("org/model").http_response.json(),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_sync_client(house: House, name: str) -> None:
    def ask(base_url: str) -> Any:
        with sync_client(base_url) as client:
            return plain(SCENARIOS[name](client))

    direct, through = house.both(ask)
    if name == "upload":  # the boundary of the multipart body is drawn anew for each request
        direct["sha256"] = through["sha256"]
    assert direct
    assert through == direct


# --- async ---


async def _all(stream: Any) -> list[Any]:
    return [chunk async for chunk in await stream]


async def _async_parse_stream(client: openai.AsyncOpenAI) -> Any:
    async with client.chat.completions.stream(model="m", messages=MESSAGES, response_format=Sum) as stream:
        return [*[event async for event in stream], await stream.get_final_completion()]


ASYNC_SCENARIOS: dict[str, Callable[[openai.AsyncOpenAI], Any]] = {
    "chat": lambda c: c.chat.completions.create(model="m", messages=MESSAGES),
    "chat-stream": lambda c: _all(c.chat.completions.create(model="m", messages=MESSAGES, stream=True)),
    "chat-parse-stream": _async_parse_stream,
    "chat-tools-stream": lambda c: _all(
        c.chat.completions.create(model="m", messages=MESSAGES, tools=[tool("a"), tool("b")], stream=True)
    ),
    "responses-stream": lambda c: _all(c.responses.create(model="m", input="2+2?", stream=True)),
    "completions-stream": lambda c: _all(c.completions.create(model="m", prompt="2+2=", stream=True)),
    "embeddings": lambda c: c.embeddings.create(model="m", input=["eins"]),
}


def test_the_async_client_with_all_calls_at_once(house: House) -> None:
    async def ask(base_url: str) -> Any:
        async with async_client(base_url) as client:
            answers = await asyncio.gather(*(scenario(client) for scenario in ASYNC_SCENARIOS.values()))
        return dict(zip(ASYNC_SCENARIOS, map(plain, answers), strict=True))

    direct, through = house.both(lambda base_url: asyncio.run(ask(base_url)))
    for name in ASYNC_SCENARIOS:
        assert through[name] == direct[name], name


# --- what is there beside the answer ---


def test_models_have_the_upstreams_names(house: House) -> None:
    """All fields but the owner: who calls the gateway's own list must not take the gateway for a server that gives token ids."""

    def ask(base_url: str) -> Any:
        with sync_client(base_url) as client:
            return [{**plain(model), "owned_by": ""} for model in client.models.list()]

    direct, through = house.both(ask)
    assert through == direct


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_left_the_answer_is_on_the_span(houses: dict[str, House], stream: bool) -> None:
    messages = [*MESSAGES, {"role": "user", "content": f"span {stream}"}]
    with sync_client(houses["vllm"].through) as client:
        answer: Any = client.chat.completions.create(model="m", messages=messages, stream=stream)
        response_id = next(iter(list(answer))).id if stream else answer.id
    span = houses["vllm"].span(response_id)
    assert span.json("spanloop.prompt_token_ids") == PROMPT_IDS
    (ids,), (logprobs,) = (span.json(f"spanloop.completion_{what}") for what in ("token_ids", "logprobs"))
    assert len(ids) == len(logprobs) == len(WORDS)
    assert span.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert span.status == 0


def test_every_kind_of_call_leaves_a_span(houses: dict[str, House]) -> None:
    with sync_client(houses["openai"].through) as client:
        found = {
            "chat": client.chat.completions.create(model="spans", messages=MESSAGES).id,
            "responses": client.responses.create(model="spans", input="x").id,
            "text_completion": client.completions.create(model="spans", prompt="x").id,
        }
        client.embeddings.create(model="spans", input="x")
    for name, response_id in found.items():
        span = houses["openai"].span(response_id)
        assert span.attributes["gen_ai.operation.name"] == name.replace("responses", "chat")
        assert span.attributes["gen_ai.usage.output_tokens"] in (6, 7)
    houses["openai"].receiver.wait(lambda spans: any(span.name == "embeddings spans" for span in spans))
