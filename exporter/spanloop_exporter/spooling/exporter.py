"""Exporters for OpenTelemetry's SDK that write to the spool: `OTEL_TRACES_EXPORTER=spanloop`, `OTEL_LOGS_EXPORTER=spanloop`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from spanloop_exporter import limits
from spanloop_exporter.spooling.encoding import SpanEncoder
from spanloop_exporter.spooling.pipeline import Pipeline, get_pipeline
from spanloop_exporter.spooling.settings import Settings, read_settings
from spanloop_exporter.stamps import stamps
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
        self._encoder = SpanEncoder(_Preparation(os.environ))
        self._endpoint = _target_of(self._settings, Signal.TRACES)  # where OTLP's exporters keep theirs
        self._shut_down = False
        self._said = False

    @property
    def pipeline(self) -> Pipeline:
        """The spool and its shipper."""
        return self._pipeline

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """On return they are in the spool. FAILURE: the exporter is shut down, or one of them could not be encoded."""
        if self._shut_down:
            return SpanExportResult.FAILURE
        whole = True
        payloads = []
        for span in spans:
            try:
                payloads.append(self._encoder.encode(span))
            except Exception:  # one span that cannot be encoded must harm neither the others nor the agent
                whole = False
                if not self._said:
                    self._said = True
                    log.exception(
                        "span %r is lost: it cannot be encoded; further ones are not logged", span.name
                    )
        if payloads:
            self._pipeline.write(Signal.TRACES, payloads)
        return SpanExportResult.SUCCESS if whole else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Whether the target has everything that was exported before; False: some of it is only in the spool."""
        return self._pipeline.flush(timeout_millis / 1000, Signal.TRACES)

    def shutdown(self) -> None:
        """Sends for a short while; the rest stays in the spool for the next process."""
        if not self._shut_down:
            self._shut_down = True
            self._pipeline.shutdown()


class SpanloopLogExporter(LogRecordExporter):
    """The same for log records (`gen_ai.evaluation.result` events carry rewards)."""

    def __init__(self, *, settings: Settings | None = None) -> None:
        self._settings = settings or read_settings()
        self._pipeline = get_pipeline(self._settings)
        self._endpoint = _target_of(self._settings, Signal.LOGS)
        self._shut_down = False

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """On return they are in the spool. FAILURE: the exporter is shut down."""
        # Protobuf is imported with the first record: most agents never write one.
        from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs

        if self._shut_down:
            return LogRecordExportResult.FAILURE
        self._pipeline.write(Signal.LOGS, [encode_logs([record]).SerializeToString() for record in batch])
        return LogRecordExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 10000) -> bool:
        """Whether the target has everything that was exported before."""
        return self._pipeline.flush(timeout_millis / 1000, Signal.LOGS)

    def shutdown(self) -> None:
        """Sends for a short while; the rest stays in the spool for the next process."""
        if not self._shut_down:
            self._shut_down = True
            self._pipeline.shutdown()


def _target_of(settings: Settings, signal: Signal) -> str:
    if settings.store:
        from spanloop_store.url import StoreUrl

        return StoreUrl.parse(settings.store).redacted()
    return dict(settings.endpoints)[signal].url


class _Preparation:
    """Stamps, cuts and marks, as the environment asks for them.

    Args:
        environ: read once.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._stamps = stamps(environ)
        self._max_bytes = _positive(environ.get(limits.VARIABLE, "")) or limits.DEFAULT_MAX_BYTES
        self._sdk_length = _positive(environ.get("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "")) or _positive(
            environ.get("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "")
        )

    def __call__(self, attributes: Mapping[str, Any], dropped: int) -> Mapping[str, Any]:
        stamped = {**self._stamps, **attributes} if self._stamps else attributes
        kept, keys = limits.cut(stamped, self._max_bytes)
        return limits.mark(kept, keys, dropped=dropped, sdk_length=self._sdk_length)


def _positive(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() and int(text) else None
