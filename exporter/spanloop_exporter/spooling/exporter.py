"""Exporters for OpenTelemetry's SDK that write to the spool: `OTEL_TRACES_EXPORTER=spanloop`, `OTEL_LOGS_EXPORTER=spanloop`."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from spanloop_exporter import limits
from spanloop_exporter.spooling.encoding import SpanEncoder
from spanloop_exporter.spooling.pipeline import Pipeline, get_pipeline
from spanloop_exporter.spooling.settings import Settings, read_settings
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)


class SpanloopSpanExporter(SpanExporter):
    """Writes spans to the spool, from where a thread ships them to a collector or a ClickHouse server.

    `SpanloopSpanProcessor` around it writes every span when it ends. In a `BatchSpanProcessor` it works too, but spans then
    wait in that processor's memory for up to OTEL_BSP_SCHEDULE_DELAY, and die with the process there.

    Args:
        settings: None: as the environment says.
    """

    def __init__(self, *, settings: Settings | None = None) -> None:
        self._settings = settings or read_settings()
        self._pipeline = get_pipeline(self._settings)
        redactor = self._pipeline.redaction.redactor
        self._encoder = SpanEncoder(limits.Preparation(os.environ, redactor=redactor))
        self._endpoint = _target_of(self._settings, Signal.TRACES)  # where OTLP's exporters keep theirs

    @property
    def pipeline(self) -> Pipeline:
        """The spool and its shipper."""
        return self._pipeline

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """On return they are in the spool, after a shutdown too. FAILURE: one of them could not be encoded or kept."""
        payloads = [payload for span in spans if (payload := self._encoded(span)) is not None]
        written = _written(self._pipeline, Signal.TRACES, payloads)
        return (
            SpanExportResult.SUCCESS if written and len(payloads) == len(spans) else SpanExportResult.FAILURE
        )

    def _encoded(self, span: ReadableSpan) -> bytes | None:
        try:
            return self._encoder.encode(span)
        except Exception:  # one span that cannot be encoded must harm neither the others nor the agent
            _say_once("span %r is lost: it cannot be encoded", span.name)
            return None

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Whether the target has everything that was exported before; False: some of it is only in the spool."""
        return self._pipeline.flush(timeout_millis / 1000, Signal.TRACES)

    def shutdown(self) -> None:
        """Sends for a short while; the rest stays in the spool for the next process."""
        self._pipeline.shutdown()


class SpanloopLogExporter(LogRecordExporter):
    """The same for log records (`gen_ai.evaluation.result` events carry rewards)."""

    def __init__(self, *, settings: Settings | None = None) -> None:
        self._settings = settings or read_settings()
        self._pipeline = get_pipeline(self._settings)
        self._endpoint = _target_of(self._settings, Signal.LOGS)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """On return they are in the spool, after a shutdown too. FAILURE: one of them could not be encoded or kept."""
        payloads = [payload for record in batch if (payload := _encoded_record(record)) is not None]
        written = _written(self._pipeline, Signal.LOGS, payloads)
        whole = written and len(payloads) == len(batch)
        return LogRecordExportResult.SUCCESS if whole else LogRecordExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 10000) -> bool:
        """Whether the target has everything that was exported before."""
        return self._pipeline.flush(timeout_millis / 1000, Signal.LOGS)

    def shutdown(self) -> None:
        """Sends for a short while; the rest stays in the spool for the next process."""
        self._pipeline.shutdown()


def _encoded_record(record: ReadableLogRecord) -> bytes | None:
    # Protobuf is imported with the first record: most agents never write one.
    from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs

    try:
        try:
            return encode_logs([record]).SerializeToString()
        except Exception:  # upstream's encoder takes no lone surrogate, for one
            inner = copy.copy(record.log_record)
            inner.body = _sendable(inner.body)
            inner.attributes = _sendable(inner.attributes or {})
            return encode_logs([replace(record, log_record=inner)]).SerializeToString()
    except Exception:  # as with spans
        _say_once("a log record of %r is lost: it cannot be encoded", record.instrumentation_scope)
        return None


def _sendable(value: Any) -> Any:
    """A value in what OTLP can carry; what it cannot is written as text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | float | bytes):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, Mapping):
        return {_sendable(str(key)): _sendable(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_sendable(item) for item in value]
    return _sendable(repr(value))


def _written(pipeline: Pipeline, signal: Signal, payloads: Sequence[bytes]) -> bool:
    try:
        return not payloads or pipeline.write(signal, payloads)
    except Exception:  # what comes up here would come up in the agent
        _say_once("%d of the agent's %s are lost: they could be kept nowhere", len(payloads), signal.value)
        return False


_said: set[str] = set()


def _say_once(message: str, *arguments: object) -> None:
    """Logs the exception that is being handled, if it is the first of its kind."""
    if message not in _said:
        _said.add(message)
        log.exception(f"{message}; further ones are not logged", *arguments)


def _target_of(settings: Settings, signal: Signal) -> str:
    if settings.store:
        from spanloop_store.errors import StoreUrlError
        from spanloop_store.url import StoreUrl

        try:
            return StoreUrl.parse(settings.store).redacted()
        except StoreUrlError as error:
            # An agent runs on without its store; the spool keeps what it says until the URL is set right.
            log.warning("SPANLOOP_STORE: %s; %s", error.message, error.hint)
            return ""
    return dict(settings.endpoints)[signal].url
