"""The OTEL variables that a complete LLM span needs, set where the user set none.

What an agent needs at least is its name and where the collector is:

    OTEL_SERVICE_NAME=my-agent
    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318     (this is also the SDK's own default)
    opentelemetry-instrument python agent.py

Everything in the tables below has a default here and stays what the user says. Started in another way than by
`opentelemetry-instrument` (a `sitecustomize` on PYTHONPATH, as Kubernetes' operator does it), an agent also needs
`OTEL_PYTHON_DISTRO=spanloop`: of two installed distros, OpenTelemetry takes the one that the file system lists first.
"""

from __future__ import annotations

from collections.abc import MutableMapping

# Read once by the SDK when it is configured.
SDK_DEFAULTS = {
    # Through a spool on disk, over OTLP/HTTP; `otlp` is the SDK's own exporter, and nothing of ours.
    "OTEL_TRACES_EXPORTER": "spanloop",
    # Rewards may come as `gen_ai.evaluation.result` log events.
    "OTEL_LOGS_EXPORTER": "spanloop",
    # Spans carry latency and token counts already; the store has no table for metrics.
    "OTEL_METRICS_EXPORTER": "none",
    # For whoever says `otlp`: OTLP/gRPC refuses messages over 4 MiB, and with them a whole batch of long prompts.
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    # milliseconds; of `otlp`, the SDK's own 5 s is what a killed process loses
    "OTEL_BSP_SCHEDULE_DELAY": "1000",
}
# The SDK's 128 drops the *oldest* keys of a span: the operation's name and the first messages.
ATTRIBUTE_COUNT_LIMIT = "4096"
# Spans. The two belong together: the SDK refuses to start when a batch is larger than the queue.
MAX_QUEUE_SIZE = "8192"
# LLM spans are large (a long history is 100 kB and more): small batches stay far below the exporter's 64 MiB.
MAX_EXPORT_BATCH_SIZE = "256"

# Read by the instrumentors.
INSTRUMENTOR_DEFAULTS = {
    "TRACELOOP_TRACE_CONTENT": "true",
    # OpenTelemetry's own GenAI instrumentors write `gen_ai.input.messages` only under these two.
    "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_only",
}


def apply_sdk_defaults(environ: MutableMapping[str, str]) -> None:
    """Complete `environ` for the SDK; runs before it is configured."""
    for name, value in SDK_DEFAULTS.items():
        _default(environ, name, value)
    if not environ.get("OTEL_ATTRIBUTE_COUNT_LIMIT"):
        _default(environ, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", ATTRIBUTE_COUNT_LIMIT)
    if not environ.get("OTEL_BSP_MAX_QUEUE_SIZE") and not environ.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE"):
        environ["OTEL_BSP_MAX_QUEUE_SIZE"] = MAX_QUEUE_SIZE
        environ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = MAX_EXPORT_BATCH_SIZE


def apply_instrumentor_defaults(environ: MutableMapping[str, str]) -> None:
    """Complete `environ` for the instrumentors; runs before they are loaded, under any distro."""
    for name, value in INSTRUMENTOR_DEFAULTS.items():
        _default(environ, name, value)
    if environ.get("OTEL_METRICS_EXPORTER", "").strip().lower() == "none":
        # Histograms that nobody reads would still be computed at every call.
        _default(environ, "TRACELOOP_METRICS_ENABLED", "false")


def _default(environ: MutableMapping[str, str], name: str, value: str) -> None:
    # The specification treats a variable that is set to nothing as unset.
    if not environ.get(name):
        environ[name] = value
