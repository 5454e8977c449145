"""Capture with a clock that is off: `python -m bench.faults.clock SECONDS` and capture's own options.

A program of the tests: it shifts Python's clock. The engine's own clock is the machine's.
"""

from __future__ import annotations

import importlib
import sys
import time


def main(arguments: list[str]) -> None:
    """Shifts the clock, then becomes capture."""
    seconds, *rest = arguments
    shift_ns = int(seconds) * 10**9
    real_ns = time.time_ns
    time.time_ns = lambda: real_ns() + shift_ns
    time.time = lambda: time.time_ns() / 1e9
    capture = importlib.import_module("spanloop_collector.capture")
    sys.argv = ["capture", *rest]
    capture.command()


if __name__ == "__main__":
    main(sys.argv[1:])
