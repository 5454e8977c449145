"""Tests that fork: each in a process of its own, since a fork of one that has the engine's threads may hang in its child."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_HERE = "SPANLOOP_TEST_ALONE"
_ROOT = Path(__file__).parents[2]
_PATIENCE_S = 120


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test in a fresh pytest."""
    node = f"{inspect.getsourcefile(test)}::{test.__name__}"

    @functools.wraps(test)
    def run(*arguments: object, **named: object) -> None:
        if os.environ.get(_HERE):
            test(*arguments, **named)
            return
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", node],
            env={**os.environ, _HERE: "1"},
            cwd=_ROOT,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run
