"""The two signals that are stored, and the protobuf message of each."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Any


class Signal(StrEnum):
    """What a segment holds. The value is used in file names, `ingest_segments` and the SQL file names."""

    TRACES = "traces"
    LOGS = "logs"

    @property
    def table(self) -> str:
        """The table that its rows go to."""
        return f"otel_{self.value}"


@cache
def message_type(signal: Signal) -> Any:
    """The export request's class (opentelemetry-proto, collector/*/v1), imported on first use."""
    if signal is Signal.TRACES:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return ExportTraceServiceRequest
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    return ExportLogsServiceRequest
