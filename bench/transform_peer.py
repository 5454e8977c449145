"""Agent Lightning's adapter on spans like ours; runs in an environment of its own, beside `bench/transform.py`.

    ENV/bin/python bench/transform_peer.py SHAPE:SPANS:TRACES[:deep] …

Prints a line of JSON for each: `case`, `version`, `triplets`, and `seconds` (the fastest of three runs; of one where it takes long) or
`failed`. `deep`: with Python's recursion limit raised, since its functions call themselves once a level.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from importlib.metadata import version

logging.disable(logging.CRITICAL)

from agentlightning.adapter import TracerTraceToTriplet  # noqa: E402
from agentlightning.types import Span  # noqa: E402

_LONG_S = 3.0


def trace(shape: str, spans: int, number: int) -> list[Span]:
    """A root, then each span below the root (flat) or below the one before it (nested); every fourth is a model call.

    Its attributes are those that AgentOps writes, with the same texts as ours.
    """
    made = []
    for place in range(spans):
        above = None if place == 0 else 0 if shape == "flat" else place - 1
        call = place % 4 == 3
        attributes = {
            "gen_ai.response.id": f"{number}-{place}",
            "gen_ai.response.model": "small",
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": str(place),
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": "ok",
            "gen_ai.completion.0.finish_reason": "stop",
        }
        begin = 1_780_000_000 + place * 1e-6
        made.append(
            Span.from_attributes(
                attributes=attributes if call else {},
                rollout_id="r",
                attempt_id="a",
                sequence_id=place,
                name="openai.chat.completion" if call else "step",
                trace_id=f"{number:032x}",
                span_id=f"{place:016x}",
                parent_id=None if above is None else f"{above:016x}",
                start_time=begin,
                # A flat trace's steps are short; a nested span ends after those below it.
                end_time=begin + (1e-7 if place and shape == "flat" else (2 * spans - place) * 1e-6),
            )
        )
    return made


def measure(case: str) -> dict[str, object]:
    shape, spans, traces, *deep = case.split(":")
    sys.setrecursionlimit(1_000_000 if deep else 1000)
    groups = [trace(shape, int(spans), number) for number in range(int(traces))]
    adapter = TracerTraceToTriplet()
    found: dict[str, object] = {"case": case, "version": version("agentlightning")}
    seconds: list[float] = []
    try:
        while len(seconds) < 3 and (not seconds or seconds[-1] < _LONG_S):
            began = time.perf_counter()
            found["triplets"] = sum(len(adapter.adapt(group)) for group in groups)
            seconds.append(time.perf_counter() - began)
    except RecursionError:
        found["failed"] = "RecursionError"
    else:
        found["seconds"] = min(seconds)
    return found


def main() -> None:
    for case in sys.argv[1:]:
        print(json.dumps(measure(case)), flush=True)


if __name__ == "__main__":
    threading.stack_size(1 << 30)
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
