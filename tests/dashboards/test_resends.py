"""Spans that a sender sent twice are in `otel_traces` twice, and no panel shows it."""

from __future__ import annotations

from typing import Any

from tests.dashboards.conftest import Recorded
from tests.dashboards.test_queries import panels, query, rows


def everything(recorded: Recorded) -> dict[str, list[dict[str, Any]]]:
    shown = {}
    for parameter in panels():
        dashboard, panel = parameter.values
        judged = {"trace_id": recorded.stamped_trace} if dashboard == "traces" else {}
        title = f"{dashboard}: {panel['title']} ({panel['type']})"
        shown[title] = sorted(rows(query(recorded, dashboard, panel, **judged)), key=repr)
    return shown


def test_no_panel_changes_when_every_span_is_there_twice(recorded: Recorded) -> None:
    once = everything(recorded)
    recorded.client.command("INSERT INTO otel_traces SELECT * FROM otel_traces")
    ((total, distinct),) = recorded.client.query(
        "SELECT count(), uniqExact(TraceId, SpanId) FROM otel_traces"
    ).result_rows
    assert total == 2 * distinct == 2 * recorded.spans
    twice = everything(recorded)
    for title, before in once.items():
        assert twice[title] == before, title
