"""A collector beyond loopback asks everybody for its token, the commands on its own machine included."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.test_bad_input import FIXTURES, one_message, run
from tests.collector.test_up import up

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
            without = run(*command)
            said = one_message(without.returncode, without.stderr.replace(_PROGRESS, ""))
            assert "401" in said
            assert "SPANLOOP_TOKEN" in said.splitlines()[-1]
            done = run(*command, SPANLOOP_TOKEN=TOKEN)
            assert done.returncode == 0, done.stderr
    assert (tmp_path / "dataset" / "manifest.json").exists()
    assert (tmp_path / "today.tar").exists()


_PROGRESS = "waiting until everything acknowledged is in the store\n"
