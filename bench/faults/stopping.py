"""Capture that kills itself between two of its steps: `python -m bench.faults.stopping POINT` and capture's own options.

A program of the tests, and no feature: it wraps functions of the shipped process from outside before it starts it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn


@dataclass(frozen=True)
class Point:
    """Where to die.

    Args:
        module: of the function.
        function: its name, or `Class.method`.
        after: once it has returned; else before it begins.
        nth: at which call, from 1.
    """

    module: str
    function: str
    after: bool
    nth: int = 1


_SEGMENTS = "spanloop_exporter.segments"
_INSERT = "spanloop_store.otlp.insert"
_TRANSPORTS = "spanloop_store.otlp.transports"
_HALF = "half of a request is written"
_MIDDLE = "the engine is in the middle of an insert"

# In the order in which a request meets them.
POINTS = {
    "the log has a new file": Point(_SEGMENTS, "SegmentLog._open", True, 2),
    _HALF: Point(_SEGMENTS, "write_all", False, 9),
    "a request is written and not synced": Point(_SEGMENTS, "write_all", True, 9),
    "a request is synced and not acknowledged": Point(_SEGMENTS, "SegmentLog.append", True, 9),
    "a segment is sealed and not inserted": Point(_INSERT, "SegmentInserter.insert", False, 2),
    _MIDDLE: Point(_TRANSPORTS, "Embedded.insert", False, 2),
    "one decoder's rows are inserted and the other's not": Point(_TRANSPORTS, "Embedded.insert", True, 3),
    "a segment is inserted and not recorded": Point(_INSERT, "SegmentInserter._record", False, 2),
    "a segment is inserted and recorded": Point(_INSERT, "SegmentInserter._record", True, 2),
    "a segment is inserted and not removed": Point(_SEGMENTS, "SegmentLog.remove", False, 2),
    "a segment is removed": Point(_SEGMENTS, "SegmentLog.remove", True, 2),
    "a left segment is found and not inserted": Point(_SEGMENTS, "SegmentLog.recover", True, 1),
}
_MIDDLE_S = 0.03  # into an insert that takes about 0.1 s


def main(arguments: list[str]) -> None:
    """Wraps the point's function, then becomes capture."""
    name, *rest = arguments
    _arm(name, POINTS[name])
    capture = importlib.import_module("spanloop_collector.capture")
    sys.argv = ["capture", *rest]
    capture.command()


def _arm(name: str, point: Point) -> None:
    holder: Any = importlib.import_module(point.module)
    *owners, attribute = point.function.split(".")
    for owner in owners:
        holder = getattr(holder, owner)
    function: Callable[..., Any] = getattr(holder, attribute)
    lock = threading.Lock()
    calls = 0

    @wraps(function)
    def stopping(*args: Any, **options: Any) -> Any:
        nonlocal calls
        with lock:
            calls += 1
            due = calls == point.nth
        if due and name == _HALF:
            descriptor, data = args
            os.write(descriptor, data[: len(data) // 2])
            die()
        if due and name == _MIDDLE:
            threading.Timer(_MIDDLE_S, die).start()
        elif due and not point.after:
            die()
        result = function(*args, **options)
        if due and point.after:
            die()
        return result

    setattr(holder, attribute, stopping)


def die() -> NoReturn:
    """As `kill -9` does it: no clean-up, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    main(sys.argv[1:])
