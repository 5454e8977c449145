"""An alias that moves while streams run: no request may fail or hear two versions, and each span names the version that served.

The back end says in every chunk which version it is; the registry is a real store, and spans end in its table.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

import openai
from aiohttp import web

from bench.fuzz.served import Served, serving
from bench.gateway.process import gateway, serve
from spanloop_store import registry

NAME, ALIAS = "swapped", "production"
STREAMS = 16
_CHUNKS, _CHUNK_S = (
    20,
    0.01,
)  # an answer takes a fifth of a second: most swaps find all streams in the middle of one
_PATIENCE_S = 60.0  # until a swap is seen in an answer


@dataclass(frozen=True)
class Heard:
    """One answer as its client heard it."""

    response_id: str
    header: str  # the version that the gateway named
    said: frozenset[str]  # the versions that its chunks named
    whole: bool
    began: float  # time.monotonic(), s
    ended: float


@dataclass
class Load:
    """What the clients heard so far; written by their thread, read by the one that swaps."""

    answers: list[Heard] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)  # version → when an answer of it began, s
    changed: threading.Condition = field(default_factory=threading.Condition)
    stop: threading.Event = field(default_factory=threading.Event)

    def begun(self, version: str) -> None:
        with self.changed:
            self.first.setdefault(version, time.monotonic())
            self.changed.notify_all()


@dataclass(frozen=True)
class Result:
    """What a run found; all lists are empty where all is well."""

    swaps: int
    requests: int
    across: int  # answers that began before a swap was in force and ended after it
    slowest_swap_s: float  # from the registry's write to the first answer of the new version
    failures: list[str]
    mixed: list[str]
    wrong_spans: list[str]
    missing_spans: list[str]

    def table(self) -> str:
        """For the page."""
        head = "| swaps | streams at once | requests | across a swap | failed | mixed | wrong spans | missing spans | slowest swap |"
        counts = (self.failures, self.mixed, self.wrong_spans, self.missing_spans)
        row = " | ".join(
            [
                f"{self.swaps} | {STREAMS} | {self.requests:,} | {self.across:,}",
                *(str(len(x)) for x in counts),
            ]
        )
        return f"{head}\n|{'---|' * 9}\n| {row} | {self.slowest_swap_s:.2f} s |"

    @property
    def well(self) -> bool:
        """Whether every promise was kept."""
        return not (self.failures or self.mixed or self.wrong_spans or self.missing_spans)


def run(swaps: int, folder: Path | None = None) -> Result:
    """Point the alias `swaps` times, each at a version of its own, under STREAMS concurrent streams.

    Raises:
        TimeoutError: a swap was not seen in any answer.
    """
    with contextlib.ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served = stack.enter_context(serving(folder / "store"))
        back_end = stack.enter_context(_back_end())
        for version in range(swaps + 1):
            registry.register_model(served.client, NAME, f"/models/{version}")
        _point(served, 1)
        options = ("--store", f"chdb://{served.folder}", "--otlp", served.otlp_http)
        running = stack.enter_context(gateway(*options, "--upstream", f"{NAME}={back_end}"))
        load = Load()
        thread = threading.Thread(target=lambda: asyncio.run(_ask(running.url, load)), name="load")
        thread.start()
        taken = []
        try:
            _seen(load, 1)
            for version in range(2, swaps + 2):
                began = time.monotonic()
                _point(served, version)
                _seen(load, version)
                taken.append(load.first[f"{NAME}@{version}"] - began)
        finally:
            load.stop.set()
            thread.join()
        urlopen(Request(f"{running.url}/flush", method="POST"), timeout=60).close()
        served.flush()
        return _judged(swaps, load, taken, served)


def _point(served: Served, version: int) -> None:
    about = {"action": "point", "evaluation_id": "", "dataset_id": "", "who": "bench", "why": "swap"}
    registry.point_alias(served.client, NAME, ALIAS, version, **about)


def _seen(load: Load, version: int) -> None:
    with load.changed:
        if not load.changed.wait_for(lambda: f"{NAME}@{version}" in load.first, _PATIENCE_S):
            raise TimeoutError(f"version {version} never served; failures: {load.failures[:3]}")


async def _ask(url: str, load: Load) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=60, http_client=openai.DefaultAsyncHttpxClient(verify=False)
    ) as client:  # fmt: skip
        await asyncio.gather(*(_worker(client, load) for _ in range(STREAMS)))


async def _worker(client: openai.AsyncOpenAI, load: Load) -> None:
    while not load.stop.is_set():
        began = time.monotonic()
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=NAME, messages=[{"role": "user", "content": "who are you?"}], stream=True
            )
            header = raw.headers["x-spanloop-model-version"]
            load.begun(header)
            names, versions, finish = set(), set(), None
            async for chunk in raw.parse():
                names.add(chunk.id)
                (choice,) = chunk.choices
                versions |= {chunk.model, *(choice.delta.content or "").split()}
                finish = choice.finish_reason or finish
        except openai.OpenAIError as error:
            load.failures.append(f"{type(error).__name__}: {error}")
            continue
        load.answers.append(
            Heard(
                ",".join(sorted(names)),
                header,
                frozenset(versions),
                finish == "stop",
                began,
                time.monotonic(),
            )
        )


def _judged(swaps: int, load: Load, taken: list[float], served: Served) -> Result:
    rows = served.query(
        "SELECT SpanAttributes['gen_ai.response.id'], SpanAttributes['spanloop.model.version'],"
        " SpanAttributes['gen_ai.response.model'], SpanAttributes['gen_ai.request.model'], StatusCode"
        " FROM otel_traces WHERE ServiceName = 'spanloop-gateway'"
    )
    spans = {row[0]: row[1:] for row in rows}
    heard = {answer.response_id: answer for answer in load.answers}
    mixed = [str(answer) for answer in load.answers if answer.said != {answer.header} or not answer.whole]
    if len(heard) != len(load.answers) or len(rows) != len(spans):
        mixed.append("two answers, or two spans, have one id")
    wrong = [
        f"{name}: heard {answer.header}, span says {spans[name]}"
        for name, answer in heard.items()
        if name in spans and spans[name] != (answer.header,) * 3 + ("Unset",)
    ]
    starts = sorted(load.first.values())[1:]
    return Result(
        swaps,
        len(load.answers) + len(load.failures),
        sum(any(answer.began < start < answer.ended for start in starts) for answer in load.answers),
        max(taken),
        load.failures,
        mixed,
        wrong,
        sorted(heard.keys() - spans.keys()),
    )


@contextlib.contextmanager
def _back_end() -> Iterator[str]:
    """A server that answers as whatever model it is asked for, and says so in each chunk; gives its base URL."""
    count = iter(range(1 << 30))

    async def models(_request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": "vllm"}]}
        )

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = next(count)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for place in range(_CHUNKS):
            last = place == _CHUNKS - 1
            choice = {
                "index": 0,
                "delta": {"content": f"{body['model']} "},
                "logprobs": {"content": [{"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": []}]},
                "token_ids": [place],
                "finish_reason": "stop" if last else None,
            }
            head = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1}
            chunk = {**head, "model": body["model"], "choices": [choice]}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            await asyncio.sleep(_CHUNK_S)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    with serve(app) as url:
        yield f"{url}/v1"
