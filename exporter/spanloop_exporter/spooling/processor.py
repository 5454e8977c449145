"""Span and log processors that write what has ended at once, and their place in a provider that the SDK set up."""

from __future__ import annotations

from typing import TypeVar

from opentelemetry import trace
from opentelemetry._logs import get_logger_provider
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from spanloop_exporter.spooling.exporter import SpanloopLogExporter, SpanloopSpanExporter


class SpanloopSpanProcessor(SpanProcessor):
    """Exports each sampled span when it ends, in the thread that ends it: into the spool, which takes microseconds.

    Args:
        span_exporter: None: a new one, as the environment says.
    """

    def __init__(self, span_exporter: SpanloopSpanExporter | None = None) -> None:
        self.span_exporter = span_exporter or SpanloopSpanExporter()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing is written of a span that has not ended."""

    def on_end(self, span: ReadableSpan) -> None:
        """Writes the span to the spool."""
        if span.context is not None and span.context.trace_flags.sampled:
            self.span_exporter.export((span,))

    def shutdown(self) -> None:
        """Shuts the exporter down."""
        self.span_exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Whether the target has every span that ended before the call."""
        return self.span_exporter.force_flush(timeout_millis)


class SpanloopLogProcessor(SimpleLogRecordProcessor):
    """Exports each log record when it is emitted; the SDK's simple processor, with a `force_flush` that flushes.

    Args:
        exporter: None: a new one, as the environment says.
    """

    def __init__(self, exporter: SpanloopLogExporter | None = None) -> None:
        self.exporter = exporter or SpanloopLogExporter()
        super().__init__(self.exporter)

    def shutdown(self) -> None:
        """Shuts the exporter down, and still takes what is emitted later: the spool keeps it."""
        self.exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Whether the target has every record that was emitted before the call."""
        return self.exporter.force_flush(timeout_millis)


def write_through() -> None:
    """Puts our processors where the SDK's configurator put batching ones around our exporters.

    The configurator knows no other way, and what waits in a batching processor dies with the process. What is queued there
    already is written on the way.
    """
    tracer_provider, logger_provider = trace.get_tracer_provider(), get_logger_provider()
    if isinstance(tracer_provider, TracerProvider):
        # There is no public way to take a processor off; a contract test guards these names.
        spans = tracer_provider._active_span_processor
        for batching in _around(spans._span_processors, BatchSpanProcessor, SpanloopSpanExporter):
            ours = SpanloopSpanProcessor()
            with spans._lock:
                spans._span_processors = _with(spans._span_processors, batching, ours)
            batching.shutdown()  # type: ignore[no-untyped-call]  # upstream's
            ours.span_exporter.pipeline.send_leftovers()
    if isinstance(logger_provider, LoggerProvider):
        records = logger_provider._multi_log_record_processor
        for waiting in _around(records._log_record_processors, BatchLogRecordProcessor, SpanloopLogExporter):
            with records._lock:
                records._log_record_processors = _with(
                    records._log_record_processors, waiting, SpanloopLogProcessor()
                )
            waiting.shutdown()  # type: ignore[no-untyped-call]  # upstream's


_Batching = TypeVar("_Batching", BatchSpanProcessor, BatchLogRecordProcessor)
_Processor = TypeVar("_Processor", SpanProcessor, LogRecordProcessor)


def _around(
    processors: tuple[_Processor, ...], kind: type[_Batching], exporter: type[object]
) -> list[_Batching]:
    """The SDK's own batching processors around an exporter of ours."""
    return [
        processor
        for processor in processors
        if type(processor) is kind and isinstance(processor._batch_processor._exporter, exporter)
    ]


def _with(processors: tuple[_Processor, ...], old: object, new: _Processor) -> tuple[_Processor, ...]:
    return tuple(new if processor is old else processor for processor in processors)
