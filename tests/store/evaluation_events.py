"""Evaluation events as a stock collector inserts them, and the rewards that they make."""

from __future__ import annotations

from typing import Any

from spanloop_store import evaluations

T0 = 1_795_000_000_000_000_000  # November 2026
NAME = "gen_ai.evaluation.name"
SCORE = "gen_ai.evaluation.score.value"
LABEL = "gen_ai.evaluation.score.label"


def log_event(client: Any, attributes: dict[str, str], **columns: Any) -> None:
    """As a stock collector inserts one."""
    row = {"Timestamp": T0, "EventName": evaluations.EVENT, "LogAttributes": attributes, **columns}
    client.insert("otel_logs", [list(row.values())], column_names=list(row))


def span_event(client: Any, *events: dict[str, str], names: list[str] | None = None, **columns: Any) -> None:
    row = {
        "Timestamp": T0,
        "TraceId": "t",
        "SpanId": "s",
        "Events.Timestamp": [T0 + place for place in range(len(events))],
        "Events.Name": names or [evaluations.EVENT] * len(events),
        "Events.Attributes": list(events),
        **columns,
    }
    client.insert("otel_traces", [list(row.values())], column_names=list(row))


def rewards(client: Any, columns: str = "name, value") -> list[tuple[Any, ...]]:
    return [
        tuple(row) for row in client.query(f"SELECT {columns} FROM rewards ORDER BY time, name").result_rows
    ]
