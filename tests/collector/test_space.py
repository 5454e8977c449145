"""No room: refused with a retryable answer, a warning before, and taken again by itself once there is room."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.collector.capture_process import running, trace_request
from tests.collector.receivers import Receivers, receivers
from tests.collector.test_capture import post

from spanloop_collector.errors import Throttled
from spanloop_collector.space import Space


def health(both: Receivers) -> tuple[int, dict[str, Any]]:
    answer = both.post("/healthz", method="GET")
    return answer.status, json.loads(answer.body)


class Disk:
    """What statvfs says."""

    free = 0

    def statvfs(self, folder: Path) -> os.statvfs_result:
        return os.statvfs_result((4096, 1, 0, 0, self.free, 0, 0, 0, 0, 255))


def test_the_floor_warns_then_refuses_then_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    monkeypatch.setattr("spanloop_collector.space.os.statvfs", disk.statvfs)
    disk.free = 300
    with receivers(tmp_path, min_free_bytes=100) as both:

        def send(name: str) -> int:
            return both.post(body=trace_request(name).SerializeToString()).status

        assert (send("plenty"), health(both)[1]["status"]) == (200, "ok")
        disk.free = 150
        assert send("little") == 200
        status, said = health(both)
        assert (status, said["status"]) == (200, "warning")
        assert "150 bytes are free" in said["disk"]
        disk.free = 99
        assert (send("none"), health(both)[0], health(both)[1]["status"]) == (503, 503, "refusing")
        assert b"spanloop_accepting 0" in both.post("/metrics", method="GET").body
        disk.free = 300
        assert (send("none"), health(both)[1]["status"]) == (200, "ok")
        assert len(both.logged()) == 3
    said = [record.getMessage() for record in caplog.records if record.name == "spanloop_collector.space"]
    assert [line.split(":")[0] for line in said] == [
        f"150 bytes are free at {tmp_path}; below 100 bytes requests are refused",
        "requests are refused until there is room",
        "there is room again",
    ]


def test_a_long_log_warns_then_refuses(tmp_path: Path) -> None:
    body = trace_request("a").SerializeToString()
    size = len(body) + 1  # and its length
    with receivers(tmp_path, max_log_bytes=int(2.2 * size), min_free_bytes=0) as both:
        states = []
        for number in range(4):
            status = both.post(body=trace_request("a", trace=number + 1).SerializeToString()).status
            states.append((status, health(both)[1]["status"]))
        assert states == [(200, "ok"), (200, "warning"), (200, "refusing"), (503, "refusing")]
        assert health(both)[1]["log_bytes"] == 3 * size


def test_memory_is_given_back_whatever_happens(tmp_path: Path) -> None:
    space = Space([tmp_path], max_in_flight_bytes=100)
    with space.in_flight() as request:
        request.grow(60)
        with pytest.raises(Throttled), space.in_flight() as other:
            other.grow(41)
        assert space.in_flight_bytes == 60
        request.grow(500)  # alone
    assert space.in_flight_bytes == 0


def test_a_write_that_the_system_refuses_is_retryable_and_passes(tmp_path: Path) -> None:
    """A limit on the size of a file stands for the full disk: it needs no rights, and the process cannot see it coming."""
    small, large = trace_request("small"), trace_request("large", text="x" * 200_000)
    with running(tmp_path) as capture:
        address = f"{capture.otlp_http}/v1/traces"
        assert post(address, small.SerializeToString())[0] == 200
        capture.flush()
        pid, limit = capture.process.pid, resource.RLIMIT_FSIZE
        before = resource.prlimit(pid, limit)
        resource.prlimit(pid, limit, (100_000, before[1]))
        try:
            status, headers, answer = post(address, large.SerializeToString())
        finally:
            resource.prlimit(pid, limit, before)
        assert (status, headers["Retry-After"]) == (503, "10")
        assert b"disk refuses" in answer
        assert post(address, large.SerializeToString())[0] == 200
        capture.flush()
        assert capture.query("SELECT SpanName FROM otel_traces ORDER BY 1") == [("large",), ("small",)]
        assert list((tmp_path / "log").glob("*.otlp")) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True) if os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip(f"a small tmpfs needs root: {done.stderr.strip() if done else 'this user is not'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_under_the_log(tmp_path: Path, small_disk: Path) -> None:
    """The log fills its own file system: refused, nothing torn; room again: taken, and every acknowledged span is a row."""
    acknowledged = []
    with running(tmp_path / "store", "--log", str(small_disk / "log"), "--min-free", "0") as capture:

        def send(number: int) -> int:
            body = trace_request("full", trace=number, text="x" * 100_000).SerializeToString()
            status, headers, _ = post(f"{capture.otlp_http}/v1/traces", body)
            assert status == 200 or (status == 503 and int(headers["Retry-After"]) > 0)
            if status == 200:
                acknowledged.append(number)
            return status

        assert send(1) == 200
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        number = 2
        while send(number) != 503:  # until what the writer has freed is used up too
            with contextlib.suppress(OSError), filler.open("ab") as file:
                file.write(bytes(8 << 20))
            number += 1
        filler.unlink()
        assert send(number) == 200
        capture.flush()
        rows = capture.query("SELECT TraceId, count() FROM otel_traces GROUP BY TraceId")
        assert {int(trace, 16): count for trace, count in rows} == dict.fromkeys(acknowledged, 1)
        assert capture.stop() == 0
    assert list((small_disk / "log").glob("*.otlp")) == []


def test_the_floor_of_the_process_is_an_option(tmp_path: Path) -> None:
    with running(tmp_path, "--min-free", str(1 << 60)) as capture:
        status, headers, answer = post(
            f"{capture.otlp_http}/v1/traces", trace_request("a").SerializeToString()
        )
        assert (status, int(headers["Retry-After"]) > 0) == (503, True)
        assert b"to stay free" in answer
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{capture.otlp_http}/healthz", timeout=30)
        assert json.load(caught.value)["status"] == "refusing"
