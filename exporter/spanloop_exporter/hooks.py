"""What runs in the agent's process before and after its libraries are instrumented.

Imported at every start of every agent: nothing heavier than the standard library at the top.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

from spanloop_exporter import calls, context, frameworks
from spanloop_exporter.defaults import apply_instrumentor_defaults
from spanloop_exporter.safety import quietly

_log = logging.getLogger(__name__)

# How long SIGTERM waits for the last spans, in seconds: well inside the 10 s that container runtimes grant, and long
# enough for one export to a collector that answers.
FLUSH_AT_SIGTERM_S = 5.0


def pre_instrument() -> None:
    """Entry point `opentelemetry_pre_instrument`: the SDK is configured, the instrumentors are not loaded yet."""
    apply_instrumentor_defaults(os.environ)


def post_instrument() -> None:
    """Entry point `opentelemetry_post_instrument`: spans into the spool when they end, and a flush when SIGTERM comes.

    The SDK flushes at a normal exit only. An agent that handles SIGTERM itself, now or later, exits normally and is
    left alone.
    """
    _write_through()
    context.attach_from_environment()
    calls.after_instrumentors()
    frameworks.switch_on()
    if threading.current_thread() is not threading.main_thread():
        _log.debug("not in the main thread: no flush at SIGTERM")
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _flush_and_terminate)


@quietly
def _write_through() -> None:
    # Only where the spool is what the user wants: plain `otlp` is to run without anything of ours.
    names = f"{os.environ.get('OTEL_TRACES_EXPORTER', '')},{os.environ.get('OTEL_LOGS_EXPORTER', '')}"
    if "spanloop" in names:
        from spanloop_exporter.spooling.processor import write_through

        write_through()


def _flush_and_terminate(number: int, _frame: FrameType | None) -> None:
    """Flush, then die of the signal as if nobody had handled it (the parent sees the same exit status)."""
    try:
        # In a thread of its own: the main thread may have been interrupted while it held the queue's lock.
        flusher = threading.Thread(target=_flush, name="spanloop-flush", daemon=True)
        flusher.start()
        flusher.join(FLUSH_AT_SIGTERM_S)
        if flusher.is_alive():
            _log.warning("SIGTERM: the collector took too long; what is not in the spool is lost")
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _flush() -> None:
    from opentelemetry import trace
    from opentelemetry._logs import get_logger_provider
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk.trace import TracerProvider

    timeout_ms = int(FLUSH_AT_SIGTERM_S * 1000)
    tracer_provider, logger_provider = trace.get_tracer_provider(), get_logger_provider()
    if isinstance(tracer_provider, TracerProvider):
        tracer_provider.force_flush(timeout_ms)
    if isinstance(logger_provider, LoggerProvider):
        logger_provider.force_flush(timeout_ms)
