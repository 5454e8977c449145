"""For every client: an upstream and a gateway in front of it, so that the same call can be made to either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from bench.gateway.process import gateway
from tests.gateway_clients.upstream import Upstream, upstream
from tests.helpers.otlp_receiver import ReceivedSpan, Receiver, otlp_receiver

OPTIONS: dict[str, Any] = {"api_key": "sk-upstream", "max_retries": 0, "timeout": 60}


@dataclass
class House:
    """One upstream, the gateway before it, and where the gateway's spans go. Both URLs end in /v1."""

    upstream: Upstream
    through: str
    receiver: Receiver

    @property
    def direct(self) -> str:
        return self.upstream.url

    def both(self, ask: Callable[[str], Any]) -> tuple[Any, Any]:
        """What `ask` makes of either base URL: direct, through."""
        return ask(self.direct), ask(self.through)

    def span(self, response_id: str) -> ReceivedSpan:
        """The gateway's span of the last call that was answered with this id."""

        def of_it(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
            return [span for span in spans if span.attributes.get("gen_ai.response.id") == response_id]

        return of_it(self.receiver.wait(lambda spans: bool(of_it(spans))))[-1]


@pytest.fixture(scope="module")
def houses() -> Iterator[dict[str, House]]:
    """One for an upstream that gives no token ids, one for one that does."""
    with ExitStack() as stack:
        receiver = stack.enter_context(otlp_receiver())
        found = {}
        for owner in ("openai", "vllm"):
            server = stack.enter_context(upstream(owner))
            options = ("--upstream", server.url, "--otlp", receiver.url)
            running = stack.enter_context(gateway(*options, SPANLOOP_STORE="chdb:///nowhere/store"))
            found[owner] = House(server, running.url + "/v1", receiver)
        yield found


@pytest.fixture(params=["openai", "vllm"])
def house(request: pytest.FixtureRequest, houses: dict[str, House]) -> House:
    return houses[request.param]


def sync_client(base_url: str, **options: Any) -> openai.OpenAI:
    # Reading the certificates would take most of the time of a test; over http none is looked at.
    http = openai.DefaultHttpxClient(verify=False)
    return openai.OpenAI(base_url=base_url, **{**OPTIONS, **options}, http_client=http)


def async_client(base_url: str, **options: Any) -> openai.AsyncOpenAI:
    http = openai.DefaultAsyncHttpxClient(verify=False)
    return openai.AsyncOpenAI(base_url=base_url, **{**OPTIONS, **options}, http_client=http)
