"""A server that speaks the OpenAI chat protocol, for tests: scripted answers, real streaming, vLLM's token ids."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

WORDS = ["two", " and", " two", " is", " four"]
PROMPT_IDS = [11, 12, 13]
END_OF_TURN = 2


@dataclass
class Stub:
    """What the server does and what it has seen.

    `gate`, when set, holds every stream after its first chunk until the event is set (from any thread). `respond`,
    when set, makes the assistant message from the request; a `web.HTTPException` that it raises is the answer.
    """

    owned_by: str = "vllm"
    status: int = 200
    tool: bool = False
    gate: threading.Event | None = None
    break_off: bool = False
    respond: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    answers_as: str = ""  # the model that answers name; empty: the one that was asked for
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    streaming: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    model_questions: int = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
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
        if body.get("stream"):
            try:
                return await self._stream(request, body, number)
            except (asyncio.CancelledError, ConnectionError):
                self.cancelled.set()
                raise
        return web.json_response(self._answer(body, number))

    def _answer(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        asked_tool = self.tool and body["messages"][-1]["role"] != "tool"
        choices = []
        for index in range(body.get("n") or 1):
            if self.respond is not None:
                message = self.respond(body)
            elif asked_tool:
                message = tool_call("add", '{"a": 2, "b": 2}', call_id=f"call_{number}")
            else:
                message = {"role": "assistant", "content": "".join(WORDS) + f" for {body['model']}"}
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
        return answer

    async def _stream(self, request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        pieces = [*WORDS, f" for {body['model']}"]
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            choice: dict[str, Any] = {
                "index": 0,
                "delta": {"content": piece, **({"role": "assistant"} if i == 0 else {})},
                "logprobs": None,
                "finish_reason": "stop" if last else None,
            }
            if body.get("logprobs"):
                choice["logprobs"] = {"content": [_entry(piece, i)]}
            if body.get("return_token_ids"):
                choice["token_ids"] = [END_OF_TURN if last else 100 + i]
            chunk: dict[str, Any] = {
                "id": f"chatcmpl-{number}",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": self.answers_as or body["model"],
                "choices": [choice],
            }
            if body.get("return_token_ids") and i == 0:
                chunk["prompt_token_ids"] = PROMPT_IDS
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
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def tool_call(name: str, arguments: str, *, call_id: str = "call_1") -> dict[str, Any]:
    """An assistant message that calls one tool."""
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _entry(token: str, position: int) -> dict[str, Any]:
    return {"token": token, "logprob": -0.5 - position, "bytes": None, "top_logprobs": []}


async def _wait(event: threading.Event) -> None:
    # Not in an executor thread: a cancelled handler must end at once.
    while not event.is_set():
        await asyncio.sleep(0.005)


@contextmanager
def serve_app(app: web.Application, **runner_options: Any) -> Iterator[str]:
    """Run an aiohttp application on a free loopback port in a thread; gives its base URL."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, **runner_options)

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def openai_stub(**options: Any) -> Iterator[Stub]:
    """A running stub; `stub.url` is its base URL, /v1 included."""
    stub = Stub(**options)
    with serve_app(stub.app(), handler_cancellation=True) as url:
        stub.url = url + "/v1"
        yield stub
