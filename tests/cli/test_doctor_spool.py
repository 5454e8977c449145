"""What `spanloop doctor` says of the spool's folder and of the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.cli.doctor_checks import by_name, only

from spanloop.doctor import spool, store
from spanloop_exporter.segments import SegmentLog
from spanloop_exporter.spooling.bounds import FULL, Bookkeeper
from spanloop_store.otlp.signals import Signal


def test_an_empty_spool_is_well_and_is_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "spool"
    assert only(spool.check_spool({"SPANLOOP_SPOOL": str(folder)})).status == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/1").exists(), reason="needs a folder that nobody may write to"
)
def test_a_spool_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "spool", Path("/proc/1/spool")):
        check = only(spool.check_spool({"SPANLOOP_SPOOL": str(place)}))
        assert (check.status, "cannot be written" in check.detail) == ("FAIL", True)
    assert check.fix.startswith("export SPANLOOP_SPOOL=")


def test_what_a_dead_process_left_and_what_was_dropped_is_told(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, Signal.TRACES)
    log.append([b"\x0a\x00"], items=1)
    log.close()
    Bookkeeper(tmp_path).dropped(FULL, 12, "some segment")
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "traces-1-2-00000001.otlp").write_bytes(b"x")
    checks = by_name(spool.check_spool({"SPANLOOP_SPOOL": str(tmp_path)}))
    assert {name: check.status for name, check in checks.items()} == {
        "spool": "ok",
        "spool left behind": "warn",
        "spool dropped": "warn",
        "spool refused": "warn",
    }
    assert "1 segment(s) of processes that are gone" in checks["spool left behind"].detail
    assert checks["spool left behind"].fix == f"spanloop import {tmp_path}"
    assert "12 over SPANLOOP_SPOOL_MAX_BYTES" in checks["spool dropped"].detail


def test_a_spool_larger_than_its_disk(tmp_path: Path) -> None:
    environ = {"SPANLOOP_SPOOL": str(tmp_path), "SPANLOOP_SPOOL_MAX_BYTES": str(1 << 60)}
    check = only(spool.check_spool(environ))
    assert (check.status, "free on its disk" in check.detail) == ("warn", True)
    name, value = check.fix.removeprefix("export ").split("=")
    assert only(spool.check_spool(environ | {name: value})).status == "ok"


def test_stores(tmp_path: Path) -> None:
    assert store.check_store("mysql://x/y").status == "FAIL"
    assert store.check_store(f"chdb://{tmp_path}/s").fix == f"spanloop up --store chdb://{tmp_path}/s"
    # What takes the spans has a store of its own: a second `up` would be the wrong advice.
    assert store.check_store(f"chdb://{tmp_path}/s", collected=True).status == "ok"
    assert list(tmp_path.iterdir()) == []
