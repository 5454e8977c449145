"""Spanloop, as an agent may import it: `reward`, `annotate`, `session`, `model_call`, `tool_call`, loaded when first used.

The command line is `spanloop.main`; nothing of it is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanloop_exporter.api import annotate, model_call, reward, session, tool_call

__all__ = ["annotate", "model_call", "reward", "session", "tool_call"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    from spanloop_exporter import api

    value = globals()[name] = getattr(api, name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
