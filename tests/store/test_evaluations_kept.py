"""Evaluation events in stores that are upgraded or restored: each reward once."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from tests.store.evaluation_events import NAME, SCORE, T0, log_event, rewards, span_event

import spanloop_store.engine as engine_module
from spanloop_store import Engine, evaluations
from spanloop_store.backup import backup
from spanloop_store.migrate import migrate, migrations, schema_version
from spanloop_store.restore import restore


@pytest.fixture(autouse=True)
def kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """T0 will be more than a year ago one day."""
    monkeypatch.setenv("SPANLOOP_RETENTION_DAYS", "0")


def test_an_upgrade_makes_the_rewards_of_events_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [step for step in migrations() if step.version < evaluations.VERSION]
    monkeypatch.setattr(engine_module, "migrate", lambda client: migrate(client, before))
    with Engine(f"chdb://{tmp_path}/s") as engine:
        client = engine.client()
        log_event(client, {NAME: "log", SCORE: "1"})
        log_event(client, {NAME: "log", SCORE: "no"})
        span_event(client, {NAME: "span", SCORE: "0.5"}, {NAME: "span too", SCORE: "0"})
        client.insert("rewards", [["own", T0, "thumb", 1.0]], column_names=["id", "time", "name", "value"])
        assert rewards(client) == [("thumb", 1.0)]
        # Killed between its statements and its record, and begun again.
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr("spanloop_store.migrate.remember_inserts", _killed)
            migrate(client)
        assert schema_version(client) < evaluations.VERSION
        log_event(client, {NAME: "new", SCORE: "1"}, Timestamp=T0 + 5)
        assert migrate(client) == migrations()[-1].version
        expected = [("log", 1.0), ("span", 0.5), ("thumb", 1.0), ("span too", 0.0), ("new", 1.0)]
        assert rewards(client) == expected


def _killed(_client: Any) -> None:
    raise KeyboardInterrupt


def test_a_backup_brings_each_reward_once_and_none_that_was_erased(tmp_path: Path) -> None:
    with Engine(f"chdb://{tmp_path}/s") as engine:
        client = engine.client()
        log_event(client, {NAME: "kept", SCORE: "1"})
        log_event(client, {NAME: "erased", SCORE: "1"})
        client.command("DELETE FROM rewards WHERE name = 'erased'")
    backup(f"chdb://{tmp_path}/s", str(tmp_path / "b.tar"))
    restore(f"chdb://{tmp_path}/again", str(tmp_path / "b.tar"))
    with Engine(f"chdb://{tmp_path}/again") as engine:
        client = engine.client()
        assert client.command("SELECT count() FROM otel_logs") == 2
        assert rewards(client) == [("kept", 1.0)]
