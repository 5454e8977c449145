"""Runs the short benchmarks one after the other: `make bench`, or `python -m bench NAME …` for some of them.

The long ones are not in this list: `python bench/demo_seeds.py` takes half an hour.
"""

from __future__ import annotations

import importlib
import sys

SHORT = {
    "agent_cost": "CPU and latency of a model call: plain, instrumented, with ours; and of the import",
    "faults": "what is killed, cut off or filled up, and what `otel_traces` holds afterwards",
    "fuzz": "mutated requests to the receivers and to the ClickHouse endpoint",
    "ingest": "spans a second until they are queryable, beside the engine's own insert and two other receivers",
    "transform": "spans in the store to a dataset on disk, against the number of spans",
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in SHORT]
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(SHORT)}", file=sys.stderr)
        return 2
    for name in names or SHORT:
        print(f"\n== {name}: {SHORT[name]}", flush=True)
        importlib.import_module(f"bench.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
