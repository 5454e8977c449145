"""A collector beyond loopback asks everybody for its token, the commands on its own machine included."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.test_bad_input import FIXTURES
from tests.collector.test_up import up
from tests.helpers.commands import spanloop

from spanloop_store.errors import SpanloopError

TOKEN = "s3cret"


def test_commands_work_beside_a_collector_that_needs_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ("--store", f"chdb://{tmp_path / 's'}")
    monkeypatch.setenv("SPANLOOP_TOKEN", TOKEN)
    commands = (
        ("import", FIXTURES / "a_sync_basic.json", *store),
        ("build", "--out", tmp_path / "dataset", *store),
        ("store", "backup", "--to", tmp_path / "today.tar", *store),
    )
    with up(tmp_path / "s", "--host", "0.0.0.0"):
        for command in commands:
            without = spanloop(*command, SPANLOOP_TOKEN=None)
            assert isinstance(without.exception, SpanloopError)
            assert "401" in without.exception.message
            assert "SPANLOOP_TOKEN" in without.exception.hint
            done = spanloop(*command, SPANLOOP_TOKEN=TOKEN)
            assert done.exit_code == 0, done.exception
    assert (tmp_path / "dataset" / "manifest.json").exists()
    assert (tmp_path / "today.tar").exists()
