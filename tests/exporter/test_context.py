"""`TRACEPARENT` of the environment: whose root spans join the trace, and that a bad one harms nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers.agents import run_agent, succeeded
from tests.helpers.openai_stub import openai_stub
from tests.helpers.otlp_receiver import otlp_receiver

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
# Prints, for a span from each kind of place: trace, parent and trace state.
PROGRAM = """
import asyncio, contextvars, json, sys, threading
from concurrent.futures import ThreadPoolExecutor
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from spanloop_exporter.context import attach_from_environment

tracer = TracerProvider().get_tracer("t")
if "inside" in sys.argv:
    context.attach(trace.set_span_in_context(tracer.start_span("already here")))
attached = attach_from_environment()
found = {}

def note(place):
    with tracer.start_as_current_span(place) as span:
        parent = span.parent
        found[place] = [f"{span.context.trace_id:032x}", f"{parent.span_id:016x}" if parent else "",
                        span.context.trace_state.to_header()]

async def task():
    await asyncio.gather(asyncio.to_thread(note, "to_thread"), asyncio.create_task(asyncio.sleep(0)))
    note("task")

note("main")
with tracer.start_as_current_span("outer") as outer:
    pass
note("after a span")
thread = threading.Thread(target=note, args=("thread",)); thread.start(); thread.join()
thread = threading.Thread(target=lambda: asyncio.run(task())); thread.start(); thread.join()
with ThreadPoolExecutor(1) as pool:
    pool.submit(note, "executor").result()
contextvars.Context().run(note, "empty context")
with tracer.start_as_current_span("new root", context=context.Context()) as own:
    found["asked for"] = [f"{own.context.trace_id:032x}", "", ""]
print(json.dumps([attached, found]))
"""


def places(*arguments: str, **environ: str) -> tuple[bool | None, dict[str, list[str]], str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    attached, found = json.loads(ended.stdout)
    return attached, found, ended.stderr


def test_every_root_joins_the_trace_wherever_it_begins() -> None:
    attached, found, errors = places(TRACEPARENT=PARENT, TRACESTATE="vendor=x")
    assert (attached, errors) == (True, "")
    assert found.pop("asked for")[0] != TRACE
    assert len(found) == 7
    assert set(map(tuple, found.values())) == {(TRACE, SPAN, "vendor=x")}


@pytest.mark.parametrize(
    "parent", ["", "rubbish", f"00-{'0' * 32}-{SPAN}-01"], ids=["empty", "rubbish", "zeros"]
)
def test_what_names_no_trace_is_not_joined(parent: str) -> None:
    attached, found, errors = places(TRACEPARENT=parent)
    assert attached is False
    assert all(span == "" for _, span, _ in found.values())
    assert ("not a W3C trace parent" in errors) == bool(parent)


def test_a_span_that_is_current_already_goes_first() -> None:
    attached, found, _ = places("inside", TRACEPARENT=PARENT)
    assert attached is False
    assert TRACE not in {trace for trace, _, _ in found.values()}


def test_an_agents_calls_join_the_trace_of_whoever_started_it() -> None:
    with otlp_receiver() as receiver, openai_stub() as stub:
        agent = Path(__file__).parent / "agents" / "openai_tools.py"
        succeeded(run_agent(agent, "--threads", stub=stub, receiver=receiver, TRACEPARENT=PARENT,
                            OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="langchain"))  # fmt: skip
    assert len(receiver.spans) == 8
    assert {(span.trace_id, span.parent_id) for span in receiver.spans} == {(TRACE, SPAN)}
