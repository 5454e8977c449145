"""Mutated requests against the collector's receivers and its ClickHouse endpoint: `python -m bench.fuzz --help`."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> None:
    """What `python -m bench fuzz` runs: a few thousand requests; `python -m bench.fuzz --n 100000` is the large run."""
    from bench.fuzz.run import main as run

    code = run(arguments or [])
    if code:
        sys.exit(code)
