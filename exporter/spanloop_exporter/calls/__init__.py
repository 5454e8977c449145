"""What is recorded of model calls beside the instrumentor's attributes, and the tool steps that nobody else records.

`hooks` calls `after_instrumentors` when all instrumentors are loaded; the client is wrapped below the methods that they wrap.
`OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=spanloop` (or `*`) leaves all of it out, as it does with any instrumentation.
"""

from __future__ import annotations

import os

from spanloop_exporter.safety import quietly


@quietly
def after_instrumentors() -> None:
    """Install, unless there is no SDK to record anything, or the user switched it off."""
    disabled = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").replace(" ", "").split(",")
    if "spanloop" not in disabled and "*" not in disabled:
        install()


def install() -> None:
    """Wrap the openai client, now or when it is imported, and watch the spans of the global tracer provider."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        return
    from wrapt import register_post_import_hook

    from spanloop_exporter.calls import claims, tools

    claims.install(provider, tools.STEPS.ended)
    # By name: it is loaded with the client, and not in an agent that never imports that.
    register_post_import_hook("spanloop_exporter.calls.client:install", "openai")


def uninstall() -> None:
    """Put everything back as it was; for tests and measurements."""
    from spanloop_exporter.calls import claims, client

    client.uninstall()
    claims.uninstall()
