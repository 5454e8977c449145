"""Rewards from evaluation events that no view has seen: rows of before the views, rows whose rewards a crash took; and which events make none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from spanloop_store.otlp.signals import Signal

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

EVENT: Final = "gen_ai.evaluation.result"
VERSION: Final = 5  # of the schema, with which the views came
# They are made from what a view selects, so that there is one definition of a reward.
_FILE: Final = "0005_evaluations.sql"
_VIEW: Final = re.compile(
    r"^CREATE MATERIALIZED VIEW IF NOT EXISTS (\w+)\nTO \w+\nAS (.*?);$", re.DOTALL | re.MULTILINE
)
_CARRIERS: Final = {
    Signal.TRACES: "otel_traces_evaluation_events_mv",
    Signal.LOGS: "otel_logs_evaluation_events_mv",
}
_REWARDS: Final = "evaluation_events_rewards_mv"
_COLUMNS: Final = (
    "id, time, trace_id, span_id, response_id, session_id, name, value, label, explanation, source, evaluator,"
    " evaluator_version, attributes"
)
# Each event once, and none that is there: what is repeated changes nothing.
_FILL: Final = """
INSERT INTO {rewards} ({columns})
SELECT {columns} FROM ({made})
WHERE (id, time) GLOBAL NOT IN
    (SELECT id, time FROM {rewards} WHERE id GLOBAL IN (SELECT id FROM ({made})))
LIMIT 1 BY id, time
SETTINGS insert_deduplicate = 0, max_partitions_per_insert_block = 0
"""
# An evaluation that failed has an `error.type` and no score: that is no mistake of whoever sent it.
_UNUSABLE: Final = """
SELECT uniqExact(id) AS events, argMax(tuple(name, score, service), time) AS last FROM
(
    SELECT id, time, name, score, ServiceName AS service FROM ({made})
    WHERE NOT (name != '' AND score = '' AND label = '' AND event['error.type'] != '')
)
"""


def _as_it_is(table: str) -> str:
    return table


def fill_statement(signal: Signal, within: str = "1", named: Callable[[str], str] = _as_it_is) -> str:
    """INSERT of the rewards that are missing for the events in `otel_traces` or `otel_logs`; it can run twice.

    Args:
        signal: whose table is looked at.
        within: which of its rows, as a condition over `Timestamp`.
        named: how a table is written, where its name alone is not enough.
    """
    made = _made(signal, within, named)
    return _FILL.format(rewards=named("rewards"), columns=_COLUMNS, made=made).strip()


def fill(client: Client) -> None:
    """Makes the rewards of all events that are in the store already."""
    for signal in Signal:
        client.command(fill_statement(signal))


@dataclass(frozen=True)
class Unusable:
    """Evaluation events that made no reward: without a name, or without a finite number and without a label.

    Args:
        events: how many, each counted once.
        name, score, service: of the latest, as they were sent; empty where there is none.
    """

    events: int
    name: str = ""
    score: str = ""
    service: str = ""


def unusable(client: Client, signal: Signal, days: int) -> Unusable:
    """What of the last days made no reward; the rows themselves are in `otel_traces` and `otel_logs`.

    Args:
        client: of the store.
        signal: log records, or events on spans.
        days: how far back, by the row's own time.
    """
    within = f"Timestamp >= now64(9) - toIntervalDay({int(days)})"
    made, count = re.subn(r"\nWHERE (name != .*)\Z", r"\nWHERE NOT (\1)", _made(signal, within, _as_it_is))
    assert count == 1, "the last line of the view says what makes a reward"
    # What the view's own columns do not show.
    made = made.replace("SELECT", "SELECT score, event, ServiceName,", 1)
    events, last = _only_row(client, _UNUSABLE.format(made=made))
    return Unusable(int(events), *map(str, last)) if events else Unusable(0)


def _only_row(client: Client, sql: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] = tuple(client.query(sql).result_rows[0])
    return row


def _made(signal: Signal, within: str, named: Callable[[str], str]) -> str:
    """SELECT of the rewards that events in a signal's table make."""
    views = _views()
    carrier, count = re.subn(
        rf"FROM {signal.table}\nWHERE (.*)",
        lambda match: f"FROM {named(signal.table)}\nWHERE ({match[1]}) AND ({within})",
        views[_CARRIERS[signal]],
        flags=re.DOTALL,
    )
    assert count == 1, signal
    return views[_REWARDS].replace("FROM evaluation_events", f"FROM\n({carrier}\n)", 1)


@cache
def _views() -> dict[str, str]:
    text = resources.files("spanloop_store").joinpath("migrations", _FILE).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("--")]
    return dict(_VIEW.findall("\n".join(lines)))
