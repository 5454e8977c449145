"""The model server of the measurements: answers at once, always the same, and costs little. `python -m bench.gateway.upstream`.

Token ids are in the answer where the request asks for them, as vLLM's are. OTLP that is sent to it is taken and dropped.
"""

from __future__ import annotations

import asyncio
import json

TOKENS = 50  # of an answer; a stream sends each in an event of its own
_BEFORE_THE_SECOND_S = 0.005
MODELS = b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"%s"}]}'


def _json(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind, len(body), body)


def _chunked(events: list[bytes]) -> list[bytes]:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [head, *(b"%x\r\n%s\r\n" % (len(event), event) for event in events), b"0\r\n\r\n"]


def _answer(ids: bool) -> bytes:
    choice: dict[str, object] = {
        "index": 0,
        "message": {"role": "assistant", "content": "token " * TOKENS},
        "logprobs": None,
        "finish_reason": "stop",
    }
    answer: dict[str, object] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    if ids:
        choice |= {"token_ids": [*range(TOKENS)]}
        choice["logprobs"] = {"content": [_entry() for _ in range(TOKENS)], "refusal": None}
        answer["prompt_token_ids"] = [*range(500)]
    usage = {"prompt_tokens": 500, "completion_tokens": TOKENS, "total_tokens": 500 + TOKENS}
    return json.dumps({**answer, "choices": [choice], "usage": usage}).encode()


def _stream(ids: bool) -> list[bytes]:
    events = []
    for place in range(TOKENS + 1):
        last = place == TOKENS
        delta = {} if last else {"content": "token "}
        choice: dict[str, object] = {"index": 0, "delta": delta, "logprobs": None}
        choice["finish_reason"] = "stop" if last else None
        if ids and not last:
            choice |= {"token_ids": [place], "logprobs": {"content": [_entry()], "refusal": None}}
        chunk = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }
        events.append(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    return [*events, b"data: [DONE]\n\n"]


def _entry() -> dict[str, object]:
    return {"token": "token ", "logprob": -0.5, "bytes": None, "top_logprobs": []}


_WHOLE = {ids: _json(_answer(ids)) for ids in (False, True)}
_STREAM = {ids: _chunked(_stream(ids)) for ids in (False, True)}


class _Server(asyncio.Protocol):
    """HTTP as far as the proxies of these measurements speak it: a length, or chunks."""

    def __init__(self, owner: bytes) -> None:
        self._models = _json(MODELS % owner)
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            if b"transfer-encoding: chunked" in head:
                done = self._buffer.find(b"\r\n0\r\n\r\n", end)
                size = done + 7 if done >= 0 else -1
            else:
                _, found, rest = head.partition(b"content-length:")
                size = end + 4 + (int(rest.split(b"\r\n", 1)[0]) if found else 0)
            if size < 0 or len(self._buffer) < size:
                return
            body, self._buffer = self._buffer[end + 4 : size], self._buffer[size:]
            self._serve(head, body)

    def _serve(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        if head.startswith(b"get"):
            self._transport.write(self._models)
        elif b"/chat/completions" not in head.split(b"\r\n", 1)[0]:
            self._transport.write(_json(b"", b"application/x-protobuf"))
        else:
            asked = json.loads(body)
            ids = bool(asked.get("return_token_ids"))
            if asked.get("stream"):
                # The first token comes alone, as from a model; the others at once, so that what is measured is the proxy.
                head, first, *rest = _STREAM[ids]
                self._transport.write(head + first)
                asyncio.get_running_loop().call_later(_BEFORE_THE_SECOND_S, self._transport.writelines, rest)
            else:
                self._transport.write(_WHOLE[ids])


async def _main() -> None:
    loop = asyncio.get_running_loop()
    ports = []
    for owner in (b"openai", b"vllm"):
        server = await loop.create_server(lambda owner=owner: _Server(owner), "127.0.0.1", 0, backlog=1024)  # type: ignore[misc]  # the default binds it
        ports.append(server.sockets[0].getsockname()[1])
    print(json.dumps(ports), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
