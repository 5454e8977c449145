"""An upstream whose answer follows from the request alone, so that the same request, sent twice, is answered with the same bytes.

It speaks as two kinds of server do: OpenAI's (nothing to add, nothing to take out) and vLLM's (token ids where asked for, null
where not).
What a request's model is called decides how its answer goes wrong.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from bench.gateway.process import serve
from tests.helpers import openai_responses
from tests.helpers.openai_stub import tool_call, tool_calls

WORDS = ["Zwei", " und", " zwei", " sind", " “vier” \n", "🙂", "."]
PROMPT_IDS = [11, 12, 13]
REFUSAL_HEADERS = {
    "x-request-id": "req_0123456789abcdef",
    "openai-processing-ms": "7",
    "openai-organization": "org-x",
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "1s",
    "retry-after": "2",
    "retry-after-ms": "1",
}
# What clients, proxies and HTTP libraries add or leave out.
HEARD = (
    "accept",
    "accept-encoding",
    "authorization",
    "cookie",
    "user-agent",
    "x-custom",
    "openai-beta",
    "traceparent",
)
# What a status means at OpenAI: (type, param, code).
ERRORS: dict[int, tuple[str, str | None, str | None]] = {
    400: ("invalid_request_error", "messages", "context_length_exceeded"),
    401: ("invalid_request_error", None, "invalid_api_key"),
    403: ("insufficient_permissions", None, None),
    404: ("invalid_request_error", "model", "model_not_found"),
    409: ("conflict_error", None, None),
    422: ("invalid_request_error", None, "unprocessable"),
    429: ("requests", None, "rate_limit_exceeded"),
    500: ("server_error", None, None),
    503: ("server_error", None, "overloaded"),
    529: ("overloaded_error", None, None),
}

_Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


@dataclass
class Upstream:
    """What it has seen; `url` ends in /v1.

    Args:
        owner: what it says of itself in GET /models: "openai", or "vllm", which gives token ids.
        gate: when set, every stream waits for one `release` before each event after the first.
    """

    owner: str = "openai"
    gate: threading.Semaphore | None = None
    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    _refused: set[str] = field(default_factory=set)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 27)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._read_by(self._chat))
        app.router.add_post("/v1/completions", self._read_by(self._completions))
        app.router.add_post("/v1/responses", self._read_by(self._responses))
        app.router.add_post("/v1/embeddings", self._read_by(self._embeddings))
        app.router.add_route("*", "/v1/{path:.*}", self._other)
        return app

    async def _models(self, _request: web.Request) -> web.Response:
        data = [
            {"id": name, "object": "model", "created": 1, "owned_by": self.owner} for name in ("m", "other")
        ]
        return web.json_response({"object": "list", "data": data})

    async def _other(self, request: web.Request) -> web.Response:
        """Whatever else there is under /v1: method, path, body and headers as they came."""
        raw = await request.read()
        said = {
            "id": "other",
            "object": "echo",
            "method": request.method,
            "path": request.raw_path,
            "sha256": hashlib.sha256(raw).hexdigest(),
            "bytes": len(raw),
            "type": request.headers.get("content-type", "").partition(";")[0],
            "heard": {name: request.headers.get(name) for name in HEARD},
        }
        return web.json_response(said, headers={"x-request-id": "req_other"})

    def _read_by(self, answer: _Answer) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def read(request: web.Request) -> web.StreamResponse:
            raw = await request.read()
            self.bodies.append(raw)
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            body: dict[str, Any] = json.loads(raw)
            return self._refusal(body) or await answer(request, body)

        return read

    def _refusal(self, body: dict[str, Any]) -> web.Response | None:
        """`status-429` refuses always; `once-429-KEY` the first call with that key alone."""
        name = str(body["model"])
        kind, _, rest = name.partition("-")
        if kind == "once":
            if name in self._refused:
                return None
            self._refused.add(name)
        elif kind != "status":
            return None
        status = int(rest.partition("-")[0])
        type_, param, code = ERRORS[status]
        error = {"message": f"{status} from the upstream – ä", "type": type_, "param": param, "code": code}
        raw = json.dumps({"error": error}, indent=2, ensure_ascii=False).encode()
        return web.Response(body=raw, status=status, headers=REFUSAL_HEADERS, content_type="application/json")

    # --- chat ---

    async def _chat(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        answer = self._chat_answer(body)
        if body.get("stream"):
            return await self._stream(request, body, [_event(chunk) for chunk in _chunks(body, answer)])
        # As OpenAI writes it: indented, with characters as they are.
        raw = json.dumps(answer, indent=2, ensure_ascii=False).encode()
        return web.Response(body=raw, content_type="application/json", headers={"x-request-id": answer["id"]})

    def _chat_answer(self, body: dict[str, Any]) -> dict[str, Any]:
        name = "chatcmpl-" + _digest(body)
        choices = []
        for index in range(body.get("n") or 1):
            message = _message(body, index)
            choice: dict[str, Any] = {
                "index": index,
                "message": {"refusal": None, "annotations": [], **message},
                "logprobs": None,
                "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
            }
            if body.get("logprobs"):
                choice["logprobs"] = {"content": _entries(body), "refusal": None}
            if self.owner == "vllm":
                ids = [*range(100 + index, 100 + index + len(WORDS))]
                choice["token_ids"] = ids if self._gives_ids(body) else None
            choices.append(choice)
        answer: dict[str, Any] = {
            "id": name,
            "object": "chat.completion",
            "created": 1_741_569_952,
            "model": body["model"],
            "choices": choices,
            "usage": {
                "prompt_tokens": 3,
                "completion_tokens": 7,
                "total_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            },
            "service_tier": "default",
            "system_fingerprint": "fp_1",
        }
        if self.owner == "vllm":
            answer["prompt_token_ids"] = PROMPT_IDS if self._gives_ids(body) else None
        return answer

    def _gives_ids(self, body: dict[str, Any]) -> bool:
        return self.owner == "vllm" and bool(body.get("return_token_ids"))

    # --- the other endpoints ---

    async def _completions(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        head = {
            "id": "cmpl-" + _digest(body),
            "object": "text_completion",
            "created": 1,
            "model": body["model"],
        }
        asked = body.get("logprobs") is not None

        def choice(text: str, first: int, count: int, finish: str | None) -> dict[str, Any]:
            made: dict[str, Any] = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
            if asked:
                numbers = range(first, first + count)
                made["logprobs"] = {
                    "tokens": WORDS[first : first + count],
                    "token_logprobs": [-0.5 - i for i in numbers],
                    "top_logprobs": [{WORDS[i]: -0.5 - i} for i in numbers],
                    "text_offset": [*numbers],
                }
            if self.owner == "vllm":
                gives = self._gives_ids(body)
                made |= {"token_ids": [100 + i for i in range(first, first + count)] if gives else None}
                made |= {"prompt_token_ids": PROMPT_IDS if gives and first == 0 else None}
            return made

        if not body.get("stream"):
            usage = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
            whole = choice("".join(WORDS), 0, len(WORDS), "stop")
            return web.json_response({**head, "choices": [whole], "usage": usage})
        last = len(WORDS) - 1
        pieces = [
            {**head, "choices": [choice(word, i, 1, "stop" if i == last else None)]}
            for i, word in enumerate(WORDS)
        ]
        return await self._stream(request, body, [_event(piece) for piece in pieces])

    async def _responses(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        message = _message(openai_responses.as_chat(body, []), 0)
        answer = openai_responses.response(body, message, 1, body["model"])
        answer["id"] = "resp_" + _digest(body)
        if self.owner == "vllm":
            shown = bool(body.get("enable_response_messages"))
            for name, tokens in (("input_messages", PROMPT_IDS), ("output_messages", [7, 8, 9])):
                raw = {"type": "raw_message_tokens", "message": "", "tokens": tokens}
                answer[name] = [raw] if shown else None
        if not body.get("stream"):
            return web.json_response(answer, headers={"x-request-id": answer["id"]})
        events = [
            f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            for event in openai_responses.events(answer, lambda _text: WORDS)
        ]
        return await self._stream(request, body, events, done=False)

    async def _embeddings(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = []
        for index, text in enumerate(texts):
            numbers = [byte / 255 for byte in hashlib.sha256(str(text).encode()).digest()[:8]]
            packed = base64.b64encode(struct.pack("<8f", *numbers)).decode()
            vector = packed if body.get("encoding_format") == "base64" else numbers
            data.append({"object": "embedding", "index": index, "embedding": vector})
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return web.json_response({"object": "list", "data": data, "model": body["model"], "usage": usage})

    # --- streams ---

    async def _stream(
        self, request: web.Request, body: dict[str, Any], events: list[bytes], *, done: bool = True
    ) -> web.StreamResponse:
        """`breaks` cuts it in the middle of its third event, `breaks-between` before it; `error-event` says an error after the second one."""
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream; charset=utf-8", "x-request-id": "req_stream"}
        )
        response.enable_chunked_encoding()
        model = body["model"]
        if model == "commented":  # as servers keep connections open, and with the other end of line
            events = [b": ping\r\n\r\n", *(event.replace(b"\n", b"\r\n") for event in events)]
        if model == "error-event":
            error = {"message": "out of memory – ä", "type": "server_error", "param": None, "code": None}
            events = [*events[:2], _event({"error": error})]
        try:
            await response.prepare(request)
            for number, event in enumerate([*events, *([b"data: [DONE]\n\n"] if done else [])]):
                if number and self.gate is not None:
                    await _acquire(self.gate)
                if number == 2 and model in ("breaks", "breaks-between"):
                    if model == "breaks":
                        await response.write(event[: len(event) // 2])
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await response.write(event)
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled.set()
            raise
        return response


def _digest(body: dict[str, Any]) -> str:
    """Of what the client said, not of what a gateway may add."""
    said = {
        name: body[name] for name in ("model", "messages", "input", "prompt", "tools", "n") if name in body
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]


def _message(body: dict[str, Any], index: int) -> dict[str, Any]:
    """Calls of all tools while the first one has not been called, else text, or JSON where a schema asks."""
    messages, tools = body["messages"], [tool["function"]["name"] for tool in body.get("tools") or []]
    called = [call["function"]["name"] for said in messages for call in said.get("tool_calls") or []]
    if tools and tools[0] not in called and not body.get("response_format"):
        if len(tools) > 1:
            named = [(f"call_{name}", name, json.dumps({"a": i, "b": "ö"})) for i, name in enumerate(tools)]
            return tool_calls(*named)
        arguments = {} if tools[0].startswith("transfer_to") else {"a": 2, "b": 2}
        return tool_call(tools[0], json.dumps(arguments), call_id=f"call_{tools[0]}")
    if (body.get("response_format") or {}).get("type") == "json_schema":
        return {"role": "assistant", "content": '{"total": 4, "words": ["zwei", "zwei"]}'}
    return {"role": "assistant", "content": "".join(WORDS) + ("" if not index else f" ({index})")}


def _entries(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [_entry(body, word, place) for place, word in enumerate(WORDS)]


def _entry(body: dict[str, Any], word: str, place: int) -> dict[str, Any]:
    one = {"token": word, "logprob": -0.25 - place, "bytes": [*word.encode()]}
    return {**one, "top_logprobs": [one] * (body.get("top_logprobs") or 0)}


def _event(document: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


def _chunks(body: dict[str, Any], answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    head = {key: answer[key] for key in ("id", "created", "model", "service_tier", "system_fingerprint")}
    head["object"] = "chat.completion.chunk"
    first = True
    for choice in answer["choices"]:
        message, index = choice["message"], choice["index"]
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        text = message["content"] or ""
        pieces = (
            WORDS if text.startswith("".join(WORDS)) else [text[i : i + 5] for i in range(0, len(text), 5)]
        )
        deltas += [{"content": piece} for piece in pieces]
        for place, call in enumerate(message.get("tool_calls") or []):
            function = {"name": call["function"]["name"], "arguments": ""}
            deltas.append({"tool_calls": [{**call, "index": place, "function": function}]})
            arguments = call["function"]["arguments"]
            deltas += [
                {"tool_calls": [{"index": place, "function": {"arguments": arguments[i : i + 3]}}]}
                for i in range(0, len(arguments), 3)
            ]
        for place, delta in enumerate([*deltas, {}]):
            made: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            if not delta:
                made["finish_reason"] = choice["finish_reason"]
            if body.get("logprobs") and delta.get("content"):
                made["logprobs"] = {"content": [_entry(body, delta["content"], place)], "refusal": None}
            if "token_ids" in choice and (delta.get("content") or delta.get("tool_calls")):
                made["token_ids"] = choice["token_ids"] and [100 + place]
            chunk = {**head, "choices": [made]}
            if first and "prompt_token_ids" in answer:
                chunk["prompt_token_ids"] = answer["prompt_token_ids"]
            first = False
            yield chunk
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": answer["usage"]}


async def _acquire(gate: threading.Semaphore) -> None:
    # Not in an executor thread: a cancelled handler must end at once.
    while not gate.acquire(blocking=False):
        await asyncio.sleep(0.002)


@contextmanager
def upstream(owner: str = "openai") -> Iterator[Upstream]:
    """A running one."""
    made = Upstream(owner)
    with serve(made.app()) as url:
        made.url = url + "/v1"
        yield made
