"""`spanloop import FOLDER`: what dead agents left in a spool is stored, once, and gone from there."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.helpers.otlp_target import Said, otlp_target
from tests.helpers.spooling import Agents, away

from spanloop.main import cli
from spanloop_exporter.spooling.bounds import refused_in
from spanloop_exporter.spooling.runs import segments_in, with_arrived
from spanloop_store import connect
from spanloop_store.otlp.frames import frames


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    return Agents(tmp_path)


def take(*arguments: str, store: str) -> Result:
    return CliRunner().invoke(cli, ["import", *arguments, "--store", store])


def stored(store: str) -> Counter[str]:
    with contextlib.closing(connect(store)) as client:
        return Counter(row[0] for row in client.query("SELECT SpanId FROM otel_traces").result_rows)


def test_what_the_dead_left_and_targets_refused_is_stored_once(agents: Agents, tmp_path: Path) -> None:
    store = f"chdb://{tmp_path}/store"
    assert agents.run("SIGKILL", away())[0] == -9
    with otlp_target() as target:
        target.judge = lambda body: Said(400)
        assert agents.run("end", target.url)[0] == 0
    with agents.start("wait", away()) as living:
        assert living.stdout is not None
        living.stdout.readline()
        done = take("--json", str(agents.spool), store=store)
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        living.kill()
    assert (told["spans"], told["living"], told["dropped"], told["repeated"]) == (100, 1, 0, 0)
    assert refused_in(agents.spool) == []
    assert stored(store) == dict.fromkeys(agents.made[:100], 1)
    done = take(str(agents.spool), store=store)
    assert (done.exit_code, done.output) == (
        0,
        "imported 50 spans and 0 log records from 1 requests in 1 files\n",
    )
    assert stored(store) == dict.fromkeys(agents.made, 1)
    assert segments_in(agents.spool) == []


def test_what_is_stored_already_is_known_again(agents: Agents, tmp_path: Path) -> None:
    store = f"chdb://{tmp_path}/store"
    assert agents.run("SIGKILL", away())[0] == -9
    (file,) = segments_in(agents.spool)
    copy = file.path.read_bytes()
    assert take(str(agents.spool), store=store).exit_code == 0
    file.path.write_bytes(copy)  # as if we had been killed before it was deleted
    done = take(str(agents.spool), store=store)
    assert "left out 50 spans and log records that were stored before" in done.output
    assert stored(store) == dict.fromkeys(agents.made, 1)


def test_of_a_segment_that_went_in_pieces_only_the_rest_is_stored(agents: Agents, tmp_path: Path) -> None:
    store = f"chdb://{tmp_path}/store"
    assert agents.run("SIGKILL", away())[0] == -9
    (file,) = segments_in(agents.spool)
    first = next(frames(file.path.read_bytes()))
    file.path.rename(with_arrived(file.path, first.end))
    assert take(str(agents.spool), store=store).exit_code == 0
    assert stored(store) == dict.fromkeys(agents.made[1:], 1)
    assert segments_in(agents.spool) == []


def test_a_folder_that_is_no_spool_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not ours")
    done = take(str(tmp_path), store=f"chdb://{tmp_path}/store")
    assert done.exit_code == 1
    assert "is a folder, and no spool" in str(done.exception)
    assert "SPANLOOP_SPOOL" in str(done.exception)
    assert (tmp_path / "notes.txt").exists()
