"""Nothing of ours raises into the agent: what fails here is logged, once a place, and the call goes on without it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextvars import Token
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from opentelemetry.context import Context

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


def detach(token: Token[Context]) -> None:
    """Leave an OpenTelemetry context, without its error report where there is nothing to leave.

    A generator that is dropped half-way is closed in another context than it ran in: what it attached ended with that.
    """
    from opentelemetry import context

    try:
        # The public function logs an error with a traceback.
        context._RUNTIME_CONTEXT.detach(token)
    except ValueError:
        _log.debug("left in another context than it was entered in")
