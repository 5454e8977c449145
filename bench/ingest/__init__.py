"""Ingest: spans a second, from the first byte sent to queryable, beside the engine's own insert, rotel and Agent Lightning.

    python -m bench.ingest [--spans 60000] [--bytes 3000] [--rounds 3] [--minutes 10] [--install-peers]

`python -m bench ingest` runs it with its defaults. All numbers are ratios of one run, in turns, since machines differ and are
shared; CPU is shown beside the clock for the same reason.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PEERS = Path.home() / ".cache" / "spanloop" / "bench-peers"  # the virtual environment of --install-peers


def main(arguments: Sequence[str] = ()) -> None:
    """Measures and prints. Imports late, so that --help needs nothing."""
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__)
    parser.add_argument("--spans", type=int, default=60_000, help="sent in one turn")
    parser.add_argument("--bytes", type=int, default=3000, help="of one span")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--repeats", type=int, default=7, help="turns of the engine's insert alone")
    parser.add_argument("--segment-spans", type=int, default=20_000, help="in one insert: 64 MiB at 3 KB")
    parser.add_argument("--minutes", type=float, default=1.0, help="of sustained load; 0: none")
    parser.add_argument("--rate", type=float, default=4000, help="spans a second of the sustained load")
    parser.add_argument(
        "--install-peers", action="store_true", help="make the environment of Agent Lightning"
    )
    parser.add_argument("--peers", type=Path, default=PEERS, help="that environment's folder")
    options = parser.parse_args(arguments)
    if options.install_peers:
        _install(options.peers)
        return

    from bench.ingest import end_to_end, engine, sustained
    from bench.ingest.spans import make_requests

    with tempfile.TemporaryDirectory(prefix="spanloop-bench-") as name:
        requests, _ = make_requests(options.segment_spans, options.bytes)
        size = sum(map(len, requests))
        print(f"{options.segment_spans:,} spans, {size / 1e6:.1f} MB, {options.repeats} turns\n", flush=True)
        costs = engine.measure(requests, options.segment_spans, options.repeats, Path(name))
        print(engine.show(costs, options.segment_spans), flush=True)
        load = end_to_end.Load(
            options.spans,
            options.bytes,
            *make_requests(options.spans, options.bytes),
            Path(name) / "rows.native",
            options.segment_spans,
        )
        if options.rounds:
            print(f"\n{options.spans:,} spans, {options.rounds} turns\n", flush=True)
            print(
                end_to_end.show(*end_to_end.measure(load, options.rounds, options.peers / "bin" / "python"))
            )
        if options.minutes:
            print(f"\n{options.minutes:g} minutes at {options.rate:,.0f} spans a second\n", flush=True)
            print(sustained.show(sustained.measure(load, options.minutes, options.rate)), flush=True)


def _install(folder: Path) -> None:
    from bench.ingest.processes import LIGHTNING_VERSION

    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install"]
    subprocess.run([*pip, f"agentlightning=={LIGHTNING_VERSION}"], check=True)
