"""Which span reports which call, and the moment at which what is known of the call is written to it.

An instrumentor opens its span before the call and makes it current (openai chat, Pydantic AI, OpenInference), opens it
before the call without making it current (LangChain), or makes it afterwards with an earlier start (openai Responses).
Each has its rule here; a span that names the same response id, of a second instrumentor, gets the same facts.
What is known is written when the span ends, so that a stream that is dropped half-way counts as far as it was read.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

from spanloop_exporter.calls.messages import response_attributes
from spanloop_exporter.calls.record import Call
from spanloop_exporter.safety import quietly

SCOPE: Final = "spanloop"  # of the spans that are ours
# Of the context: span attributes that hold for everything below, a dict.
SESSION_KEY: Final = "spanloop-session"
_ATTRIBUTE: Final = "_spanloop_call"
_MODEL_OPERATIONS: Final = frozenset({"chat", "text_completion", "generate_content", "responses"})
# What Traceloop's instrumentors take for a yes, and what OpenTelemetry's take for a no as far as spans go.
_YES: Final = ("true", "1", "yes", "on")
_NO: Final = ("false", "0", "no", "off", "no_content", "event_only")
# Answers whose span is not known yet, or that a second span may name: those of the last few calls.
_MAX_ANSWERS: Final = 64

# This context's last call, for a span that is made after it; and the last client span, for a call made below it.
_last_call: ContextVar[Call | None] = ContextVar("spanloop_last_call", default=None)
_last_span: ContextVar[Span | None] = ContextVar("spanloop_last_span", default=None)
_by_response_id: OrderedDict[str, Call] = OrderedDict()


def is_model_call(attributes: Mapping[str, Any] | None) -> bool:
    """Whether a span with these attributes reports a model call, by any of the conventions in use."""
    if not attributes:
        return False
    operation = attributes.get("gen_ai.operation.name")
    if operation is not None:
        return operation in _MODEL_OPERATIONS
    return attributes.get("openinference.span.kind") == "LLM" or "llm.request.type" in attributes


def content_allowed() -> bool:
    """Whether the user lets instrumentors record what was said; ours records no more than they do."""
    said = os.environ.get("TRACELOOP_TRACE_CONTENT")
    if said is not None and said.strip().lower() not in _YES:
        return str(context.get_value("override_enable_content_tracing")).strip().lower() in _YES
    said = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT")
    return not said or said.strip().lower() not in _NO


def begin(call: Call) -> bool:
    """A call begins in this context: find the span that is open for it, and say whether there is one."""
    before = _last_call.get()
    if before is not None:
        call.after_ns = before.started_ns
        # One that failed is made again, or given up.
        call.after = before.reported if before.reported.answered_ns else before.after
    _last_call.set(call)
    current = trace.get_current_span()
    if isinstance(current, Span) and current.is_recording() and is_model_call(current.attributes):
        claim(current, call)
        return True
    candidate = _last_span.get()
    if (
        candidate is not None
        and candidate.is_recording()
        and is_model_call(candidate.attributes)
        and _parent_id(candidate) == current.get_span_context().span_id
    ):
        claim(candidate, call)
        return True
    return False


def named(call: Call) -> None:
    """The answer has begun: from now on a span may name its response id."""
    if not call.response_id:
        return
    # Without a lock: each of these is atomic, and one answer more or less in there does no harm.
    # The newest is last, also of an id that a server gives to all of its answers.
    _by_response_id.pop(call.response_id, None)
    _by_response_id[call.response_id] = call
    if len(_by_response_id) > _MAX_ANSWERS:
        _by_response_id.popitem(last=False)


def of_response(response_id: str) -> Call | None:
    """The call that gave the answer of that id, if it is one of the last."""
    return _by_response_id.get(response_id)


def last() -> Call | None:
    """The last call that began in this context."""
    return _last_call.get()


def forget() -> None:
    """In this context no call has been made yet."""
    _last_call.set(None)


def claim(span: Span, call: Call) -> None:
    """From now on `span` reports `call`."""
    setattr(span, _ATTRIBUTE, call)
    _report(span, call)


def _report(span: Span, call: Call) -> None:
    reported = call.reported
    if reported.span is None:
        reported.span, reported.parent_id = span.get_span_context(), _parent_id(span)


def _parent_id(span: Span) -> int:
    return span.parent.span_id if span.parent is not None else 0


class StartProcessor(SpanProcessor):
    """Sees every span's start: for calls whose span is not current while they run, and for what `session` says of all."""

    @quietly
    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        said = context.get_value(SESSION_KEY, parent_context) or context.get_value(SESSION_KEY)
        if isinstance(said, dict):
            span.set_attributes(said.copy())  # `annotate` may add to it meanwhile, in another thread
        if span.kind is SpanKind.CLIENT:
            _started(span)


def _started(span: Span) -> None:
    _last_span.set(span)
    call = _last_call.get()
    # It began before the call did, and after the call before that one, and yet is made only now: it reports that call.
    if call is not None and call.after_ns < (span.start_time or 0) <= call.started_ns:
        claim(span, call)


@quietly
def ending(span: Span, end_ns: int) -> None:
    """Write what is known to a span that is about to end, if it reports a call.

    Args:
        span: still recording.
        end_ns: nanoseconds since 1970.
    """
    attributes: Mapping[str, Any] = span.attributes or {}
    call: Call | None = getattr(span, _ATTRIBUTE, None)
    identity = attributes.get("gen_ai.response.id")
    if isinstance(identity, str) and (call is None or call.response_id != identity):
        call = _by_response_id.get(identity, call)
    if call is None or not is_model_call(attributes):
        return
    _report(span, call)
    if call.reported.span == span.get_span_context():
        call.reported.ended_ns = end_ns
    content = content_allowed()
    facts = call.attributes(content=content)
    said = attributes.get("gen_ai.output.messages", "[]")
    if call.ended is not None and said == "[]" and "gen_ai.response.finish_reasons" not in attributes:
        # The agent left the stream at its last event, and the instrumentor waited for what comes after it.
        whole = response_attributes(call.ended, content=content)
        facts |= whole
        if "gen_ai.output.messages" in whole:
            span.set_attribute("gen_ai.output.messages", whole["gen_ai.output.messages"])
    call.ended = None
    if call.response_id:
        # Instrumentors leave it out of streams that were dropped; the gateway's tokens are joined by it.
        facts["gen_ai.response.id"] = call.response_id
    if missing := {key: value for key, value in facts.items() if key not in attributes}:
        span.set_attributes(missing)


_watched: list[TracerProvider] = []
_original_end: list[Callable[..., None]] = []


def watch(provider: TracerProvider) -> None:
    """Look at the start of this provider's spans; once is enough."""
    if all(known is not provider for known in _watched):
        _watched.append(provider)
        provider.add_span_processor(StartProcessor())


def watch_global() -> None:
    """The same for the global provider, if that is an SDK's."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        watch(provider)


def install(provider: TracerProvider, ended: Callable[[ReadableSpan, int], object]) -> None:
    """Look at every span when it starts, and just before it ends.

    The SDK's own hook for the end comes when the span's attributes are closed already.

    Args:
        ended: shown every span, still open, with its end in nanoseconds since 1970; must not raise.
    """
    if _original_end:
        return
    original = Span.end

    def end(self: Span, end_time: int | None = None) -> None:
        if self.is_recording():
            end_time = time.time_ns() if end_time is None else end_time
            ending(self, end_time)
            ended(self, end_time)
        original(self, end_time)

    watch(provider)
    _original_end.append(original)
    Span.end = end  # type: ignore[method-assign]  # see above


def uninstall() -> None:
    """Give the SDK's spans their own end back; the processor stays, a provider lets none go."""
    while _original_end:
        Span.end = _original_end.pop()  # type: ignore[method-assign]  # see `install`
