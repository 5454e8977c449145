"""Runs the short benchmarks one after the other: `make bench`, or `python -m bench NAME …` for some of them.

The long ones are not in this list: `python bench/demo_seeds.py` takes half an hour.
"""

from __future__ import annotations

import importlib
import itertools
import sys

SHORT = {
    "agent_cost": "CPU and latency of a model call: plain, instrumented, with ours; and of the import",
    "faults": "what is killed, cut off or filled up, and what `otel_traces` holds afterwards",
    "fuzz": "mutated requests to the receivers, the ClickHouse endpoint, the gateway and the feedback API",
    "gateway": "what the gateway adds to a call, beside none and (--peers DIR) LiteLLM's proxy; or --swaps N",
    "ingest": "spans a second until they are queryable, beside the engine's own insert and two other receivers",
    "redaction": "MB/s in the collector, µs in the agent, misses among planted secrets, false alarms",
    "transform": "spans in the store to a dataset on disk, against the number of spans",
}


def main(arguments: list[str]) -> int:
    """Options may follow one name: they are that benchmark's."""
    names = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = arguments[len(names) :]
    unknown = [name for name in names if name not in SHORT]
    if unknown or (options and len(names) != 1):
        wrong = ", ".join(unknown) or f"options without a name of theirs: {' '.join(options)}"
        print(f"no such benchmark: {wrong}; there are: {', '.join(SHORT)}", file=sys.stderr)
        return 2
    for name in names or SHORT:
        print(f"\n== {name}: {SHORT[name]}", flush=True)
        benchmark = importlib.import_module(f"bench.{name}").main
        benchmark(options) if options else benchmark()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
