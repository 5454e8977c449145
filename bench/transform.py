"""Transform: spans in the store to a dataset on disk, against the number of spans.

One span in four is a model call, three calls are an episode; the other spans are tools and steps that carry no messages.
What counts is how the time grows: the rate must not fall as the number of spans rises.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from spanloop_store import Engine
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal
from spanloop_trainer.config import Config, RewardRule
from spanloop_trainer.transform import build

SIZES = (4_000, 16_000, 64_000)  # spans
TURNS = 3
OTHER_SPANS = 3  # beside each model call
EPISODES_A_REQUEST = 32
_START = 1_795_208_087_000_000_000
_TOOLS = json.dumps([{"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}])


def text(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": content}]}


def episode(request_spans: Any, number: int, source: random.Random) -> None:
    """A plain tool loop: every call in a trace of its own, each prompt beginning with the one before and its answer."""
    history = [
        text("system", "You are an agent with a calculator. " * 5),
        text("user", f"Add up {number}, please."),
    ]
    at = _START + number * 1_000_000
    for turn in range(TURNS):
        call = f"call_{number}_{turn}"
        if turn == TURNS - 1:
            answer = text("assistant", str(number))
        else:
            part = {"type": "tool_call", "id": call, "name": "add", "arguments": {"a": number, "b": turn}}
            answer = {"role": "assistant", "parts": [part]}
        trace_id = source.randbytes(16)
        for other in range(OTHER_SPANS + 1):
            span = request_spans.add(trace_id=trace_id, span_id=source.randbytes(8), name="step", kind=1)
            span.start_time_unix_nano = at + turn * 10_000 + other
            span.end_time_unix_nano = span.start_time_unix_nano + 5_000
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "small",
            "gen_ai.response.model": "small@1",
            "gen_ai.response.id": f"chatcmpl-{number}-{turn}",
            "gen_ai.usage.output_tokens": "20",
            "gen_ai.tool.definitions": _TOOLS,
            "gen_ai.input.messages": json.dumps(history),
            "gen_ai.output.messages": json.dumps([{**answer, "finish_reason": "stop"}]),
        }
        for key, value in attributes.items():
            span.attributes.add(key=key).value.string_value = value
        back = {"type": "tool_call_response", "id": call, "response": str(number)}
        history = [*history, answer, {"role": "tool", "parts": [back]}]


def fill(engine: Engine, spans: int) -> None:
    """Insert `spans` spans, through the collector's own insert."""
    source = random.Random(1)
    inserter = SegmentInserter(engine.client(), embedded=True, quarantine=engine.url.quarantine_path)
    episodes = spans // (TURNS * (OTHER_SPANS + 1))
    payloads = []
    for begin in range(0, episodes, EPISODES_A_REQUEST):
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "bench"
        scope = resource.scope_spans.add()
        for number in range(begin, min(begin + EPISODES_A_REQUEST, episodes)):
            episode(scope.spans, number, source)
        payloads.append(frame(request.SerializeToString()))
    segment = engine.url.log_path / f"bench-{spans}.otlp"
    segment.parent.mkdir(parents=True, exist_ok=True)
    segment.write_bytes(b"".join(payloads))
    inserter.insert(segment, Signal.TRACES)
    segment.unlink()


def main() -> None:
    config = Config(
        rewards=(RewardRule(name="done", expression="CASE WHEN steps = 3 THEN 1.0 ELSE 0.0 END"),)
    )
    print(f"{'spans':>8} {'calls':>8} {'episodes':>9} {'seconds':>8} {'spans/s':>9}  rate to the first row's")
    first = 0.0
    for spans in SIZES:
        with tempfile.TemporaryDirectory() as name, Engine(f"chdb://{name}/store") as engine:
            fill(engine, spans)
            client = engine.client()
            began = time.perf_counter()
            manifest = build(client, Path(name) / "dataset", config=config)
            seconds = time.perf_counter() - began
            rows = manifest.counts["transitions"]
            assert rows == spans // (TURNS * (OTHER_SPANS + 1)) * TURNS, f"{rows} transitions"
            rate = spans / seconds
            first = first or rate
            print(
                f"{spans:>8,} {rows:>8,} {rows // TURNS:>9,} {seconds:>8.2f} {rate:>9,.0f}  {rate / first:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
