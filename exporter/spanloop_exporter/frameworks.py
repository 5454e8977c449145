"""Frameworks whose telemetry no variable switches on: what has to be done once each is imported, and never before.

An agent that imports none of them pays for none: a hook waits for the import, nothing here starts one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Final

_log = logging.getLogger(__name__)

# instrumentor's entry point → the library that it imports only to register with it, which takes seconds. Wrapped client
# libraries are not listed: for them the order of wrappers matters, and OpenTelemetry's own is kept.
WAITING_INSTRUMENTORS: Final = {"openai_agents": "agents"}


def wait_for_import(instrumentor: str, load: Callable[[], None]) -> bool:
    """Whether `load` was put off until the agent imports the library that `instrumentor` is for.

    Args:
        instrumentor: name of an entry point in the group `opentelemetry_instrumentor`.
        load: sets the instrumentor up. What it raises then is logged, not raised into the agent's import.
    """
    library = WAITING_INSTRUMENTORS.get(instrumentor)
    if library is None:
        return False
    _when_imported(library, lambda _module: load())
    return True


def switch_on(environ: Mapping[str, str] = os.environ) -> None:
    """Arrange that each framework's own switch is set right after its import, where the agent's code may still change it."""
    disabled = {name.strip() for name in environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}
    for name, (library, switch) in _SWITCHES.items():
        if not disabled & {name, "*"}:
            _when_imported(library, switch)


def _pydantic_ai(module: ModuleType) -> None:
    """Spans of agents, model calls and tools; content under the same variable as everywhere."""
    from spanloop_exporter.calls.claims import content_allowed

    module.Agent.instrument_all(module.InstrumentationSettings(include_content=content_allowed()))


def _llama_index(_module: ModuleType) -> None:
    """OpenTelemetry passes these instrumentors over: their metadata asks for packages of older LlamaIndex releases."""
    from opentelemetry.util._importlib_metadata import entry_points

    for name in ("llama_index", "llama-index"):  # OpenInference's, Traceloop's
        for entry_point in entry_points(group="opentelemetry_instrumentor", name=name):
            instrumentor = entry_point.load()()
            if not instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.instrument(skip_dep_check=True)


# name, as `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS` takes it → library, what to do with it
_SWITCHES: Final[dict[str, tuple[str, Callable[[ModuleType], None]]]] = {
    "pydantic_ai": ("pydantic_ai", _pydantic_ai),
    "llama_index": ("llama_index.core", _llama_index),
}


def _when_imported(library: str, act: Callable[[ModuleType], None]) -> None:
    # Comes with OpenTelemetry's instrumentation package.
    import wrapt

    def guarded(module: ModuleType) -> None:
        try:
            act(module)
        except Exception as error:  # an agent must not fail at its import over telemetry
            _log.warning("%s: no spans of its own from here on: %s: %s", library, type(error).__name__, error)

    wrapt.register_post_import_hook(guarded, library)
