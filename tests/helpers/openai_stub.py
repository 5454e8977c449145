"""A server that speaks the OpenAI protocol (chat, Responses), for tests: scripted answers, real streaming, vLLM's token ids."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from bench.gateway.process import serve
from tests.helpers import openai_responses

WORDS = ["two", " and", " two", " is", " four"]
PROMPT_IDS = [11, 12, 13]
END_OF_TURN = 2


@dataclass(frozen=True)
class Call:
    """One call that the server answered to the end: what it was sent and what it said, in the chat protocol's form.

    `request` has messages, tools and model whichever API was used, without what the server knew from `previous_response_id`;
    `answers` are the assistant messages, one a choice.
    """

    response_id: str
    path: str
    streamed: bool
    request: dict[str, Any]
    answers: list[dict[str, Any]]


@dataclass
class Stub:
    """What the server does and what it has seen.

    `gate`, when set, holds every stream after its first chunk until the event is set (from any thread). `respond`,
    when set, makes the assistant message from the request (of the Responses API too: as chat messages), called once a
    choice; a `web.HTTPException` that it raises is the answer. `responses` opens the Responses API, which else echoes.
    `refuses` are request fields that are answered with 400, as OpenAI does; with a `reason` that may name none. `model_version` and `fingerprint` are what the
    server says of itself, in a header and in the answer; empty: nothing.
    """

    owned_by: str = "vllm"
    status: int = 200
    tool: bool = False
    gate: threading.Event | None = None
    break_off: bool = False
    respond: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    answers_as: str = ""  # the model that answers name; empty: the one that was asked for
    responses: bool = False
    refuses: tuple[str, ...] = ()
    reason: str = "Unknown parameter: '{}'."
    model_version: str = ""
    fingerprint: str = ""
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    streaming: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    model_questions: int = 0
    _said: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # response id → its whole prompt

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/deployments/{name}/chat/completions", self._chat)  # Azure's
        if self.responses:
            app.router.add_post("/v1/responses", self._responses)
        app.router.add_route("*", "/v1/{path:.*}", self._echo)
        return app

    async def _models(self, _request: web.Request) -> web.Response:
        self.model_questions += 1
        data = [{"id": "any", "object": "model", "created": 1, "owned_by": self.owned_by}]
        return web.json_response({"object": "list", "data": data})

    async def _echo(self, request: web.Request) -> web.Response:
        body = (await request.read()).decode()
        return web.json_response({"method": request.method, "path": request.raw_path, "body": body})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        body = json.loads(self.bodies[-1])
        self.requests.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        number = len(self.requests)
        if self.status >= 400:
            error = {"message": "slow down", "type": "rate_limit", "param": None, "code": "rate_limited"}
            return web.json_response(
                {"error": error}, status=self.status, headers={"retry-after-ms": "1", "x-request-id": "req-9"}
            )
        if refusal := self._refusal(body):
            return refusal
        if body.get("stream"):
            try:
                return await self._stream(request, body, number)
            except (asyncio.CancelledError, ConnectionError):
                self.cancelled.set()
                raise
        answer = self._answer(body, number)
        self._log(request, body, answer)
        return web.json_response(answer, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        return {"x-spanloop-model-version": self.model_version} if self.model_version else {}

    def _refusal(self, body: dict[str, Any]) -> web.Response | None:
        for name in self.refuses:
            if name in body:
                error = {
                    "message": self.reason.format(name),
                    "type": "invalid_request_error",
                    "param": name if "{}" in self.reason else None,
                }
                return web.json_response({"error": error}, status=400)
        return None

    def _log(self, request: web.Request, body: dict[str, Any], answer: dict[str, Any]) -> None:
        answers = [choice["message"] for choice in answer["choices"]]
        self.calls.append(Call(answer["id"], request.path, bool(body.get("stream")), body, answers))

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        body = json.loads(self.bodies[-1])
        self.requests.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        number = len(self.requests)
        if refusal := self._refusal(body):
            return refusal
        earlier: list[dict[str, Any]] = []
        for call in self.calls:
            if call.response_id == body.get("previous_response_id"):
                earlier = [*self._said[call.response_id], call.answers[0]]
        chat = openai_responses.as_chat(body, earlier)
        message = self._message(chat, number)
        self._said[f"resp_{number}"] = chat["messages"]
        answer = openai_responses.response(body, message, number, self.answers_as or body["model"])
        if body.get("enable_response_messages"):
            answer["input_messages"] = [_raw_tokens(PROMPT_IDS)]
            answer["output_messages"] = [_raw_tokens([*range(100, 105), END_OF_TURN])]
        if "message.output_text.logprobs" in (body.get("include") or ()):
            for part in (part for item in answer["output"] for part in item.get("content", ())):
                part["logprobs"] = [_entry(word, i) for i, word in enumerate([*WORDS, "<end>"])]
        sent = openai_responses.as_chat(body, [])
        call = Call(answer["id"], request.path, bool(body.get("stream")), sent, [message])
        if not body.get("stream"):
            self.calls.append(call)
            return web.json_response(answer, headers=self._headers())
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream; charset=utf-8", **self._headers()}
        )
        await response.prepare(request)
        for event in openai_responses.events(answer, _pieces):
            await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        self.calls.append(call)
        await response.write_eof()
        return response

    def _message(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        if self.respond is not None:
            return self.respond(body)
        if self.tool and body["messages"][-1]["role"] != "tool":
            return tool_call("add", '{"a": 2, "b": 2}', call_id=f"call_{number}")
        return {"role": "assistant", "content": "".join(WORDS) + f" for {body['model']}"}

    def _answer(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        choices = []
        for index in range(body.get("n") or 1):
            message = self._message(body, number)
            choice: dict[str, Any] = {
                "index": index,
                "message": message,
                "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
                "logprobs": None,
            }
            if body.get("logprobs"):
                entries = [_entry(word, i) for i, word in enumerate([*WORDS, "<end>"])]
                choice["logprobs"] = {"content": entries, "refusal": None}
            if body.get("return_token_ids"):
                choice["token_ids"] = [*range(100 + index, 105 + index), END_OF_TURN]
            choices.append(choice)
        answer: dict[str, Any] = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": 1,
            "model": self.answers_as or body["model"],
            "choices": choices,
            "usage": {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9},
        }
        if body.get("return_token_ids"):
            answer["prompt_token_ids"] = PROMPT_IDS
        if self.fingerprint:
            answer["system_fingerprint"] = self.fingerprint
        return answer

    async def _stream(self, request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream; charset=utf-8", **self._headers()}
        )
        await response.prepare(request)
        answer = self._answer(body, number)
        for i, chunk in enumerate(_chunks(body, answer)):
            event = f"data: {json.dumps(chunk)}\n\n".encode()
            # Cut in the middle, as networks do.
            await response.write(event[: len(event) // 2])
            await response.write(event[len(event) // 2 :])
            if i == 0:
                self.streaming.release()
                if self.gate is not None:
                    await _wait(self.gate)
                if self.break_off:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
        self._log(request, body, answer)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def _chunks(body: dict[str, Any], answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of a complete answer, choice after choice within each step as servers interleave them."""
    head = {key: answer[key] for key in ("id", "created", "model", "system_fingerprint") if key in answer} | {
        "object": "chat.completion.chunk"
    }
    waiting = [
        (choice["index"], choice["finish_reason"], _deltas(choice["message"])) for choice in answer["choices"]
    ]
    first = True
    for i in range(max(len(deltas) for _, _, deltas in waiting)):
        for index, finish_reason, deltas in waiting:
            if i >= len(deltas):
                continue
            last = i == len(deltas) - 1
            choice: dict[str, Any] = {
                "index": index,
                "delta": deltas[i],
                "logprobs": None,
                "finish_reason": finish_reason if last else None,
            }
            if body.get("logprobs"):
                choice["logprobs"] = {"content": [_entry(deltas[i].get("content") or "<tool>", i)]}
            if body.get("return_token_ids"):
                choice["token_ids"] = [END_OF_TURN if last else 100 + index + i]
            chunk: dict[str, Any] = {**head, "choices": [choice]}
            if body.get("return_token_ids") and first:
                chunk["prompt_token_ids"] = PROMPT_IDS
            first = False
            yield chunk
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": answer["usage"]}


def _deltas(message: dict[str, Any]) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"content": piece} for piece in _pieces(message.get("content") or "")]
    for index, call in enumerate(message.get("tool_calls") or []):
        function = call["function"]
        named = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        deltas.append({"tool_calls": [named]})
        for piece in _pieces(function["arguments"]):
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    deltas = deltas or [{"content": ""}]
    deltas[0]["role"] = "assistant"
    return deltas


def _pieces(text: str) -> list[str]:
    opening = "".join(WORDS)
    if text.startswith(opening):
        return [*WORDS, text.removeprefix(opening)]
    return re.findall(r"\s*\S+\s*$|\s*\S+", text)


def tool_call(name: str, arguments: str, *, call_id: str = "call_1") -> dict[str, Any]:
    """An assistant message that calls one tool."""
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def tool_calls(*calls: tuple[str, str, str]) -> dict[str, Any]:
    """An assistant message that calls several tools at once; each of (id, name, arguments as JSON text)."""
    made = [
        tool_call(name, arguments, call_id=call_id)["tool_calls"][0] for call_id, name, arguments in calls
    ]
    return {"role": "assistant", "content": None, "tool_calls": made}


def _raw_tokens(tokens: list[int]) -> dict[str, Any]:
    """vLLM's way to give token ids in the Responses API."""
    return {"type": "raw_message_tokens", "message": "", "tokens": tokens}


def _entry(token: str, position: int) -> dict[str, Any]:
    return {"token": token, "logprob": -0.5 - position, "bytes": None, "top_logprobs": []}


async def _wait(event: threading.Event) -> None:
    # Not in an executor thread: a cancelled handler must end at once.
    while not event.is_set():
        await asyncio.sleep(0.005)


@contextmanager
def openai_stub(**options: Any) -> Iterator[Stub]:
    """A running stub; `stub.url` is its base URL, /v1 included."""
    stub = Stub(**options)
    with serve(stub.app()) as url:
        stub.url = url + "/v1"
        yield stub
