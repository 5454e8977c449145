"""`TRACEPARENT` and `TRACESTATE` of the environment: root spans of this process join the trace that they name.

Specification: W3C Trace Context, as OpenTelemetry's "environment variables as context propagation carriers" reads it. A CI
job, a rollout runner or another agent that starts this one as a subprocess puts them there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextvars import ContextVar

from spanloop_exporter.safety import quietly

_log = logging.getLogger(__name__)


@quietly
def attach_from_environment(environ: Mapping[str, str] = os.environ) -> bool:
    """Make the trace of `TRACEPARENT` the parent of whatever has no other; call it before any thread is started.

    Covered: the main thread, event loops, and every thread and executor, since what is changed is the value that a context
    has before anybody sets one. Not covered: code that asks for a new root itself (an empty `Context`), and requests that
    a server framework's instrumentation takes from their own headers, which win.

    Returns:
        Whether there is a trace to join now. False: none is named, what is there is not valid, or a span is current.
    """
    if not environ.get("TRACEPARENT"):
        return False
    from opentelemetry import context, trace
    from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if trace.get_current_span().get_span_context().is_valid:
        return False
    carrier = {"traceparent": environ["TRACEPARENT"].strip(), "tracestate": environ.get("TRACESTATE", "")}
    joined = TraceContextTextMapPropagator().extract(carrier, context=context.get_current())
    if not trace.get_current_span(joined).get_span_context().is_valid:
        _log.warning("TRACEPARENT is not a W3C trace parent and is not used: %.60r", environ["TRACEPARENT"])
        return False
    runtime = context._RUNTIME_CONTEXT
    # A new thread begins with an empty context, which only the variable's own default reaches. The default of a context
    # variable is fixed when it is made, so it is made anew; nothing can hold a token of the old one this early.
    if type(runtime) is ContextVarsRuntimeContext and isinstance(
        getattr(runtime, "_current_context", None), ContextVar
    ):
        runtime._current_context = ContextVar(runtime._CONTEXT_KEY, default=joined)
    else:  # a runtime context of somebody else's: threads begin traces of their own
        context.attach(joined)
    return True
