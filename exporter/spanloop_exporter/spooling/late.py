"""Imports in the shipper's thread, kept apart from forks: a child that is forked in the middle of one has half a module for ever."""

from __future__ import annotations

import importlib
import os
import threading
from typing import Any, Final

# A fork that waits longer goes on: the thread that forks may itself be importing what the import waits for.
_PATIENCE_S: Final = 2.0

_lock = threading.RLock()
_forking = threading.local()


def late(module: str) -> Any:
    """Imports a module by its full name, on first use; forks wait meanwhile.

    Raises:
        ImportError: it is not there.
    """
    with _lock:
        return importlib.import_module(module)


def _before_fork() -> None:
    _forking.waited = _lock.acquire(timeout=_PATIENCE_S)


def _after_fork_in_parent() -> None:
    if _forking.waited:
        _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
