"""OpenTelemetry distro `spanloop`: sets defaults before the SDK is configured."""

from __future__ import annotations

import os
from typing import Any

# Upstream marks that module untyped as a whole, so the checker sees neither the name nor a class.
from opentelemetry.instrumentation.distro import BaseDistro  # type: ignore[attr-defined]  # see above

from spanloop_exporter.defaults import apply_sdk_defaults


class SpanloopDistro(BaseDistro):  # type: ignore[misc]  # see above
    """Loaded through the `opentelemetry_distro` entry point, first of all hooks."""

    def _configure(self, **kwargs: Any) -> None:  # noqa: ARG002  # the signature that OpenTelemetry calls
        apply_sdk_defaults(os.environ)
