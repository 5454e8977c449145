"""Waits for what another thread or process brings about."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_PATIENCE_S = 60


def until(condition: Callable[[], T], otherwise: Callable[[], str] = lambda: "it did not come to that") -> T:
    """The first answer of `condition` that is true; fails after a minute with what `otherwise` says then."""
    limit = threading.Event()
    timer = threading.Timer(_PATIENCE_S, limit.set)
    timer.start()
    try:
        while not (found := condition()):
            assert not limit.wait(0.02), otherwise()
        return found
    finally:
        timer.cancel()
