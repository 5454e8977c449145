"""Nothing of ours raises into the agent: what fails here is logged, once a place, and the call goes on without it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")

_said: set[str] = set()


def quietly(function: Callable[_P, _T]) -> Callable[_P, _T | None]:
    """Make a function give None instead of raising; the first failure of each is logged with its traceback."""

    @functools.wraps(function)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return function(*args, **kwargs)
        except Exception:
            if function.__qualname__ not in _said:
                _said.add(function.__qualname__)
                _log.warning(
                    "%s failed; the agent goes on, its spans lack what this adds (further failures are not logged)",
                    function.__qualname__,
                    exc_info=True,
                )
            return None

    return guarded
