"""A gateway in front of a scripted back end, with a registry to turn and a real OTLP receiver for its spans."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from bench.gateway.process import serve
from tests.helpers.openai_stub import Stub, openai_stub
from tests.helpers.otlp_receiver import ReceivedSpan, Receiver, otlp_receiver
from yarl import URL

from spanloop_collector.gateway import versions
from spanloop_collector.gateway.app import Gateway, Settings
from spanloop_collector.gateway.privacy import OPEN, Privacy
from spanloop_collector.gateway.settings import GatewaySettings
from spanloop_collector.gateway.spans import CallTracer
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import Snapshot, Versions

MESSAGES: Any = [{"role": "user", "content": "2+2?"}]


@dataclass
class Registry:
    """Stands where the store's reader stands: the real one is tested against the real store."""

    snapshot: Snapshot | None = None
    error: Exception | None = None
    reads: threading.Condition = field(default_factory=threading.Condition)
    count: int = 0

    def __call__(self) -> Snapshot | None:
        with self.reads:
            self.count += 1
            self.reads.notify_all()
        if self.error is not None:
            raise self.error
        return self.snapshot

    def point(self, version: int, alias: str = "candidate") -> None:
        """Let calculator@alias mean `version`, and wait until the gateway has read it."""
        self.snapshot = Snapshot.of([("calculator", 1), ("calculator", 2)], [("calculator", alias, version)])
        with self.reads:
            seen = self.count
            # Two more reads: the first may have begun before the change.
            assert self.reads.wait_for(lambda: self.count >= seen + 3, timeout=20)


@dataclass
class House:
    url: str
    stub: Stub
    receiver: Receiver
    registry: Registry
    tracer: CallTracer

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key="sk-upstream", max_retries=0, **options)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url + "/v1", api_key="sk-upstream", max_retries=0)

    def spans(self, count: int = 1) -> list[ReceivedSpan]:
        return self.receiver.wait(lambda spans: len(spans) >= count)


@contextmanager
def gateway(
    stub: Stub,
    receiver: Receiver,
    *,
    upstreams: list[str] | None = None,
    privacy: Privacy = OPEN,
    **settings: Any,
) -> Iterator[House]:
    """A gateway in front of `stub`, or of `upstreams`; `settings` are fields of `Settings`, `limits` a table as in the file."""
    registry = Registry(Snapshot())
    tracer = CallTracer.to_collector(receiver.url, None, privacy)
    found = Upstreams.parse([stub.url] if upstreams is None else upstreams)
    limits = GatewaySettings.of(settings.pop("limits", {}))
    app = Gateway(
        Settings(found, limits=limits, privacy=privacy, **settings), Versions(registry), tracer
    ).application()
    try:
        with serve(app) as url:
            yield House(url, stub, receiver, registry, tracer)
    finally:
        tracer.shutdown()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as running:
        yield running


@pytest.fixture
def stub() -> Iterator[Stub]:
    with openai_stub() as running:
        yield running


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry is looked at often: tests turn it a dozen times."""
    monkeypatch.setattr(versions, "POLL_INTERVAL_S", 0.02)


def send(method: str, url: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request with a body of exactly these bytes."""

    async def go() -> tuple[int, bytes]:
        target = URL(url, encoded=True)
        async with aiohttp.ClientSession() as session, session.request(method, target, data=body) as answer:
            return answer.status, await answer.read()

    return asyncio.run(go())


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def scripted(handler: Handler, owner: str = "vllm") -> Iterator[str]:
    """A back end that answers every call with `handler`, and says `owner` of its model; its base URL with /v1."""

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "any", "owned_by": owner}]})

    async def answer(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    app = web.Application(client_max_size=2**28)
    app.router.add_get("/v1/models", models)
    app.router.add_route("*", "/{path:.*}", answer)
    with serve(app) as url:
        yield url + "/v1"
