"""What capture costs inside an agent: CPU and latency of a model call, CPU of a start; every variant in turn, in one run.

    python -m bench agent_cost
    python bench/agent_cost.py [--rounds 40] [--calls 10] [--paced-rounds 6] [--write docs/measurements/agent_cost.md]

One agent process a variant, the plain openai client, against a server in a process of its own that answers at once and takes
the spans too. The agents work in turn, a block of calls each, in a new order each round, so that whatever else the machine
does meets all of them alike. CPU is that of all threads of an agent until the block's spans have arrived.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

LAUNCHER = Path(sys.executable).parent / "opentelemetry-instrument"
_INSTRUMENTED = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "langchain,spanloop"}
_OTLP = _INSTRUMENTED | {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_LOGS_EXPORTER": "otlp"}
_NONE = _INSTRUMENTED | {"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
# Variables for `opentelemetry-instrument`; None: started without it.
VARIANTS: dict[str, dict[str, str] | None] = {
    "plain": None,
    "instrumented, no exporter": _NONE,
    "instrumented, OTLP": _OTLP,
    "ours: spool": _INSTRUMENTED,
    "ours: spool and capture": {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "langchain"},
}
PLAIN, BASE, OTLP, SPOOL, OURS = VARIANTS
BUDGET_US = 200.0
BUDGET_IMPORT_MS = 50.0
_PACED_CALLS = 10  # of a block, one each 100 ms
_PROMPT = "The history of a conversation that has been going on for a while. " * 45  # 3 KB

_AGENT = """
import json, statistics, sys, time
import openai
from opentelemetry import trace

messages = [{"role": "system", "content": "You help."}, {"role": "user", "content": sys.argv[1]}]
client = openai.OpenAI()
flush = getattr(trace.get_tracer_provider(), "force_flush", bool)

def ask():
    before = time.perf_counter()
    client.chat.completions.create(model="m", messages=messages, temperature=0.5)
    return time.perf_counter() - before

for line in sys.stdin:
    calls, pause = json.loads(line)
    for _ in range(2):
        ask()
    flush()
    latencies = []
    cpu = time.process_time()
    for _ in range(calls):
        latencies.append(ask())
        time.sleep(pause)
    flush()
    print(json.dumps([(time.process_time() - cpu) / calls, statistics.median(latencies)]), flush=True)
"""

_SERVER = """
import json, sys
from aiohttp import web
answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "An answer of usual length. " * 20},
                 "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 700, "completion_tokens": 100, "total_tokens": 800}}
body = json.dumps(answer).encode()
async def chat(request):
    await request.read()
    return web.Response(body=body, content_type="application/json")
async def spans(request):
    await request.read()
    return web.Response(content_type="application/x-protobuf")
async def main():
    app = web.Application(client_max_size=2**28)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/{signal}", spans)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()
import asyncio
asyncio.run(main())
"""


@contextmanager
def server() -> Iterator[str]:
    """The model server and the collector, in a process of their own."""
    with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


Blocks = dict[
    str, list[tuple[float, float]]
]  # variant → (CPU a call, median latency) of each round, in seconds


@contextmanager
def agent(variant: str, url: str, spool: str) -> Iterator[subprocess.Popen[str]]:
    """An agent that does a block of calls for each line `[calls, pause in seconds]`."""
    variables = VARIANTS[variant]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SPANLOOP_"))}
    environment = kept | {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_SERVICE_NAME": "agent",
        "SPANLOOP_SPOOL": spool,
        **(variables or {}),
    }
    launcher = [] if variables is None else [str(LAUNCHER)]
    with subprocess.Popen(
        [*launcher, sys.executable, "-c", _AGENT, _PROMPT],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def block(process: subprocess.Popen[str], calls: int, pause_s: float) -> tuple[float, float]:
    """CPU a call and median latency, in seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"[{calls}, {pause_s}]\n")
    process.stdin.flush()
    cpu, latency = json.loads(process.stdout.readline())
    return cpu, latency


def measure(plans: list[tuple[int, int, float]]) -> list[Blocks]:
    """Runs the agents; a plan is (rounds, calls of a block, pause between calls in seconds)."""
    results = []
    with ExitStack() as stack:
        url = stack.enter_context(server())
        spool = stack.enter_context(tempfile.TemporaryDirectory())
        agents = {name: stack.enter_context(agent(name, url, spool)) for name in VARIANTS}
        for process in agents.values():
            block(process, 20, 0.0)  # warm
        for rounds, calls, pause_s in plans:
            found: Blocks = {name: [] for name in VARIANTS}
            for number in range(rounds):
                for name in random.Random(number).sample(list(VARIANTS), len(VARIANTS)):
                    found[name].append(block(agents[name], calls, pause_s))
            results.append(found)
    return results


def import_cost_ms(rounds: int) -> tuple[float, float]:
    """CPU of importing what OpenTelemetry's launcher imports, and of ours on top; the best of the rounds."""
    program = """
import time
a = time.process_time()
import opentelemetry.sdk._configuration, opentelemetry.instrumentation.distro
b = time.process_time()
import spanloop_exporter.launch, spanloop_exporter.hooks, spanloop_exporter.distro, spanloop_exporter.spooling.processor
c = time.process_time()
print((b - a) * 1e3, (c - b) * 1e3)
"""
    found = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(rounds)
    ]
    return min(float(sdk) for sdk, _ in found), min(float(ours) for _, ours in found)


def table(busy: Blocks, calm: Blocks) -> list[str]:
    """The best block of each variant: what else runs on the machine only ever adds to it."""

    def best(blocks: Blocks, name: str, at: int) -> float:
        return min(one[at] for one in blocks[name]) * 1e6

    lines = [
        "| agent | CPU a call, back to back | CPU a call, 10 calls a second | latency, back to back |",
        "|---|---|---|---|",
    ]
    columns = ((busy, 0), (calm, 0), (busy, 1))
    for name in VARIANTS:
        cells = [f"{best(blocks, name, at):,.0f} µs" for blocks, at in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Differences:", ""]
    lines += ["| | CPU, back to back | CPU, 10 calls a second | latency |", "|---|---|---|---|"]
    for name, base in ((BASE, PLAIN), (OTLP, BASE), (SPOOL, BASE), (OURS, BASE), (OURS, OTLP)):
        cells = [f"{best(blocks, name, at) - best(blocks, base, at):+,.0f} µs" for blocks, at in columns]
        lines.append(f"| {name}, beyond {base} | {' | '.join(cells)} |")
    return lines


def run(rounds: int, calls: int, paced_rounds: int) -> str:
    """Measures everything; the page's text."""
    busy, calm = measure([(rounds, calls, 0.0), (paced_rounds, _PACED_CALLS, 0.1)])
    sdk_ms, ours_ms = import_cost_ms(rounds)
    return "\n".join(
        [
            *table(busy, calm),
            "",
            f"Import: the SDK and its launcher {sdk_ms:.0f} ms of CPU, ours on top {ours_ms:.0f} ms (budget"
            f" {BUDGET_IMPORT_MS:.0f} ms). Budget of a call: {BUDGET_US:.0f} µs of CPU beyond the instrumentation.",
            "",
            f"The best of {rounds} rounds of {calls} calls a variant, {paced_rounds} of {_PACED_CALLS} at 10 a second; prompts of"
            f" 3 KB; Python {platform.python_version()}, {os.cpu_count()} cores.",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=10, help="of a block")
    parser.add_argument("--paced-rounds", type=int, default=6)
    parser.add_argument("--write", type=Path, help="a page to write the tables to")
    options = parser.parse_args(arguments or [])
    text = run(options.rounds, options.calls, options.paced_rounds)
    print(text)
    if options.write:
        options.write.write_text(
            "# What capture costs inside an agent\n\nWritten by `python bench/agent_cost.py --write PAGE`.\n\n"
            f"{text}\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
