"""Faults on purpose: what is killed, cut off or filled up, and what `otel_traces` holds afterwards."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> None:
    """What `python -m bench faults` runs: every fault once, small; `python -m bench.faults --help` has the large run."""
    from bench.faults.run import main as run

    code = run(arguments or [])
    if code:
        sys.exit(code)
