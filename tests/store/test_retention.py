"""Rows go after their days, by whole partitions; what says nothing of its age, and the registry, stays."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.stores import laid
from tests.store.raw_store import fill

from spanloop_store import Engine, audit
from spanloop_store.errors import StoreSettingError
from spanloop_store.retention import DEFAULT_DAYS, MOST_DAYS, configured_days, read_retention, set_retention
from spanloop_store.tables import REGISTRY, TIME_COLUMNS, read_tables


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    with Engine(laid(tmp_path / "s")) as engine:
        yield engine.client()


def insert(client: Any, days_ago: int, name: str) -> None:
    client.command(
        f"INSERT INTO otel_traces (Timestamp, TraceId) VALUES (now64(9) - toIntervalDay({days_ago}), '{name}')"
    )
    client.command(
        f"INSERT INTO otel_logs (Timestamp, Body) VALUES (now64(9) - toIntervalDay({days_ago}), '{name}')"
    )
    client.command(f"INSERT INTO rewards (id, time) VALUES ('{name}', now64(9) - toIntervalDay({days_ago}))")


def names(client: Any) -> list[set[str]]:
    """What is left, once the engine has done what it does in the background by itself."""
    for table in TIME_COLUMNS:
        client.command(f"OPTIMIZE TABLE {table} FINAL")
    return [
        {row[0] for row in client.query(f"SELECT {column} FROM {table}").result_rows}
        for table, column in (
            ("otel_traces", "TraceId"),
            ("otel_logs", "Body"),
            ("rewards", "id"),
            ("otel_traces_trace_id_ts", "TraceId"),
        )
    ]


def test_old_partitions_go_and_young_ones_stay(client: Any) -> None:
    set_retention(client, 30)
    for days, name in ((40, "old"), (20, "young"), (0, "new")):
        insert(client, days, name)
    assert names(client) == [{"young", "new"}] * 4
    set_retention(client, 10)
    for table in TIME_COLUMNS:
        client.command(f"ALTER TABLE {table} MATERIALIZE TTL SETTINGS mutations_sync = 1")
    assert names(client) == [{"new"}] * 4


def test_each_change_is_in_the_audit_trail(client: Any) -> None:
    set_retention(client, 30)
    set_retention(client, None)
    latest, first = audit.entries(client)
    assert [(entry.action, entry.subject) for entry in (first, latest)] == [
        ("retention", "30 days"),
        ("retention", "for ever"),
    ]
    assert latest.details["before"] == dict.fromkeys(TIME_COLUMNS, 30)


def test_off_keeps_everything(client: Any) -> None:
    set_retention(client, 30)
    set_retention(client, None)
    set_retention(client, None)
    insert(client, 4000, "ancient")
    assert names(client) == [{"ancient"}] * 4
    assert {kept.days for kept in read_retention(client)} == {None}


def test_a_clock_that_was_never_set_loses_nothing(client: Any) -> None:
    set_retention(client, 30)
    client.command("INSERT INTO otel_traces (Timestamp, TraceId) VALUES (100, 'clock of 1970')")
    assert names(client)[0] == {"clock of 1970"}


@pytest.mark.parametrize("days", [1, 365, MOST_DAYS])
def test_a_clock_of_the_next_century_loses_nothing(client: Any, days: int) -> None:
    """The type Date ends in 2149: a day more is one of 1970."""
    set_retention(client, days)
    years = ["2099", "2148", "2149", "2150", "2200", "2261"]
    for year in years:
        client.command(
            f"INSERT INTO otel_traces (Timestamp, TraceId) VALUES ('{year}-07-01 00:00:00', '{year}')"
        )
        client.command(f"INSERT INTO otel_logs (Timestamp, Body) VALUES ('{year}-07-01 00:00:00', '{year}')")
    spans, records, _, _ = names(client)
    assert spans == records == set(years)


def test_another_number_of_days_does_not_write_the_rows_again(client: Any) -> None:
    """A store may be larger than what its disk has left."""
    set_retention(client, 300)
    # As of a large table: a small one keeps all columns in one file, which a mutation writes anew.
    client.command("ALTER TABLE otel_traces MODIFY SETTING min_bytes_for_wide_part = 0")
    insert(client, 200, "kept")
    insert(client, 0, "new")

    def files() -> set[int]:
        paths = client.query(
            "SELECT path FROM system.parts WHERE table = 'otel_traces' AND active"
        ).result_rows
        return {file.stat().st_ino for (path,) in paths for file in Path(path).glob("*.bin")}

    before = files()
    set_retention(client, 250)
    client.command("ALTER TABLE otel_traces MATERIALIZE TTL SETTINGS mutations_sync = 1")
    assert before
    assert files() == before
    set_retention(client, 100)
    client.command("ALTER TABLE otel_traces MATERIALIZE TTL SETTINGS mutations_sync = 1")
    assert names(client)[0] == {"new"}


def test_only_whole_partitions(client: Any) -> None:
    set_retention(client, 30)
    tables = read_tables(client)
    for name in TIME_COLUMNS:
        assert "ttl_only_drop_parts = 1" in tables[name].definition
    for name in (*REGISTRY, "ingest_segments"):
        assert not tables[name].has_ttl, name


def test_a_new_store_keeps_a_year(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPANLOOP_RETENTION_DAYS")
    with Engine(f"chdb://{tmp_path}/s") as engine:
        assert {kept.days for kept in read_retention(engine.client())} == {DEFAULT_DAYS}
        set_retention(engine.client(), None)
    with Engine(f"chdb://{tmp_path}/s") as engine:  # a decision is not undone by the next start
        assert {kept.days for kept in read_retention(engine.client())} == {None}


def test_an_upgrade_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPANLOOP_RETENTION_DAYS", "1")
    fill(tmp_path / "s", "version_2")
    with (
        caplog.at_level(logging.WARNING, "spanloop_store.retention"),
        Engine(f"chdb://{tmp_path}/s") as engine,
    ):
        client = engine.client()
        assert {kept.days for kept in read_retention(client)} == {None}
        assert client.command("SELECT count() FROM otel_traces") == 2
    assert "spanloop store retention" in caplog.text


@pytest.mark.parametrize(
    ("text", "days"), [("", DEFAULT_DAYS), ("0", None), ("7", 7), (" 30 ", 30)], ids=repr
)
def test_days_from_the_environment(text: str, days: int | None) -> None:
    assert configured_days({"SPANLOOP_RETENTION_DAYS": text}) == days


@pytest.mark.parametrize("text", ["-1", "x", "1.5", "36501"])
def test_no_number_of_days(text: str) -> None:
    with pytest.raises(StoreSettingError, match="SPANLOOP_RETENTION_DAYS"):
        configured_days({"SPANLOOP_RETENTION_DAYS": text})


@pytest.mark.parametrize("days", [0, -1, 36_501])
def test_days_that_cannot_be_kept(client: Any, days: int) -> None:
    with pytest.raises(StoreSettingError, match="cannot be kept"):
        set_retention(client, days)
