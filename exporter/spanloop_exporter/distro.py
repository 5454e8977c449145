"""OpenTelemetry distro `spanloop`: sets defaults before the SDK is configured."""

from __future__ import annotations

import os
from typing import Any

# Upstream marks that module untyped as a whole, so the checker sees neither the name nor a class.
from opentelemetry.instrumentation.distro import BaseDistro  # type: ignore[attr-defined]  # see above
from opentelemetry.util._importlib_metadata import EntryPoint

from spanloop_exporter import frameworks
from spanloop_exporter.defaults import apply_sdk_defaults


class SpanloopDistro(BaseDistro):  # type: ignore[misc]  # see above
    """Loaded through the `opentelemetry_distro` entry point, first of all hooks."""

    def _configure(self, **kwargs: Any) -> None:  # noqa: ARG002  # the signature that OpenTelemetry calls
        apply_sdk_defaults(os.environ)

    def load_instrumentor(self, entry_point: EntryPoint, **kwargs: Any) -> None:
        """Set up now, or once the agent imports the library where that import alone takes seconds."""

        def load() -> None:
            super(SpanloopDistro, self).load_instrumentor(entry_point, **kwargs)

        if not frameworks.wait_for_import(entry_point.name, load):
            load()
