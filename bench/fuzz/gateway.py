"""Model calls that are described, and calls that are not, to a gateway that asks for its token: no 500, no span of a refused call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from urllib.request import Request, urlopen

from aiohttp import web

from bench.fuzz.described import TOKEN, Described, Sent
from bench.fuzz.served import Reply, Served
from bench.gateway.process import serve
from spanloop_collector.gateway.app import Gateway, Settings
from spanloop_collector.gateway.spans import CallTracer
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import StoreReader, Versions
from spanloop_store import registry

CALLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
_AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
_WEIGHTS = {f"POST {path}": 8 for path in CALLS}
# The gateway's own, before a call begins: no model is named, or the request is none.
_REFUSED = (400, 401, 403, 405, 408, 411, 413, 415, 422, 431)


class GatewayTarget(Described):
    """A gateway before an upstream that answers everything with 200, so that every refusal is the gateway's own."""

    def __init__(self, url: str, served: Served) -> None:
        with urlopen(Request(f"{url}/openapi.json", headers=_AUTHORIZED), timeout=60) as answer:
            super().__init__(url, json.load(answer), _WEIGHTS)
        self._served = served
        self._answered: set[str] = set()
        self._refused: set[str] = set()

    def open_statuses(self, sent: Sent) -> tuple[int, ...]:
        """Health is for whoever asks."""
        return (200,) if sent.case.path in ("/healthz", "/openapi.json") else ()

    def judge(self, sent: Sent, reply: Reply, trace_id: str, shown: str) -> None:
        """What fits is answered; a refusal has OpenAI's form and says what to do."""
        path = sent.case.path
        if sent.plain and sent.fits and sent.token and path not in ("/pause", "/resume"):
            assert reply.status == 200, f"refused what its document allows: {shown}"
        if path in ("/pause", "/resume"):
            assert reply.status in (0, 400, 401, 403, 405), f"paused without the admin token: {shown}"
        if reply.status in _REFUSED:
            self._refused.add(trace_id)
            if reply.headers.get("content-type", "").startswith("application/json"):
                assert json.loads(reply.body)["error"]["message"], shown
        elif reply.status == 200 and path in CALLS and sent.case.method == "POST":
            self._answered.add(trace_id)

    def settle(self) -> None:
        """One span for each call that was answered, none for one that was refused."""
        urlopen(Request(f"{self.url}/flush", method="POST", headers=_AUTHORIZED), timeout=60).close()
        self._served.flush()
        rows = self._served.query(
            "SELECT TraceId, count() FROM otel_traces WHERE ServiceName = 'spanloop-gateway' GROUP BY TraceId"
        )
        spans: dict[str, int] = dict(rows)
        assert not (wrong := self._refused & spans.keys()), f"spans of refused calls: {sorted(wrong)[:5]}"
        assert not (lost := self._answered - spans.keys()), f"calls without a span: {sorted(lost)[:5]}"
        doubled = [trace_id for trace_id in self._answered if spans[trace_id] != 1]
        assert not doubled, f"calls with two spans: {sorted(doubled)[:5]}"


@contextmanager
def gateway_target(served: Served) -> Iterator[GatewayTarget]:
    """A gateway whose registry and spans are those of `served`."""
    for _ in range(2):
        registry.register_model(served.client, "fuzzed", "/models/fuzzed")
    about = {"action": "point", "evaluation_id": "", "dataset_id": "", "who": "bench", "why": "fuzz"}
    registry.point_alias(served.client, "fuzzed", "production", 2, **about)
    tracer = CallTracer.to_collector(served.otlp_http, None)
    versions = Versions(StoreReader(f"chdb://{served.folder}"))
    with serve(_upstream()) as upstream:
        # In this process: as one of its own, on loopback, it would ask for no token.
        settings = Settings(Upstreams.parse([f"{upstream}/v1"]), TOKEN, "fuzz-admin")
        with serve(Gateway(settings, versions, tracer).application()) as url:
            target = GatewayTarget(url, served)
            try:
                yield target
            finally:
                target.close()
                tracer.shutdown()


def _upstream() -> web.Application:
    numbers = count(1)

    async def models(_request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}]}
        )

    async def answer(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        try:
            body: Any = json.loads(raw)
        except (ValueError, RecursionError):
            body = {}
        body = body if isinstance(body, dict) else {}
        said: dict[str, Any] = {
            "id": f"answer-{next(numbers)}",
            "object": "x",
            "created": 1,
            "model": body.get("model"),
        }
        said["choices"] = [
            {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
        ]
        if body.get("return_token_ids"):
            said["choices"][0] |= {"token_ids": [1, 2], "logprobs": {"content": [{"logprob": -1.0}] * 2}}
            said["prompt_token_ids"] = [3]
        text = json.dumps(said).encode()
        if body.get("stream") is True:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: " + text + b"\n\ndata: [DONE]\n\n")
            await response.write_eof()
            return response
        return web.Response(body=text, content_type="application/json")

    app = web.Application(client_max_size=1 << 30)
    app.router.add_get("/v1/models", models)
    app.router.add_route("*", "/v1/{path:.*}", answer)
    return app
