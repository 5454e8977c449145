"""The write-ahead log: what was appended is there after any crash, what is torn is cut off and nothing else."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanloop_exporter.segments import SegmentLog
from spanloop_store.otlp.frames import frame, frames
from spanloop_store.otlp.signals import Signal


def payloads(path: Path) -> list[bytes]:
    return [bytes(item.payload) for item in frames(path.read_bytes())]


def accept(payload: bytes) -> bool:
    return not payload.startswith(b"bad")


@given(st.lists(st.binary(min_size=1, max_size=400)))
def test_frames_round_trip(messages: list[bytes]) -> None:
    data = b"".join(frame(message) for message in messages)
    assert [bytes(item.payload) for item in frames(data)] == messages


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1), st.data())
def test_a_cut_anywhere_leaves_the_whole_frames_before_it(messages: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(frame(message) for message in messages)
    cut = data.draw(st.integers(0, len(whole)))
    found = [bytes(item.payload) for item in frames(whole[:cut])]
    assert found == messages[: len(found)]
    assert len(b"".join(frame(message) for message in messages[: len(found) + 1])) > cut or len(found) == len(
        messages
    )


@given(st.binary())
def test_frames_of_any_bytes_end(data: bytes) -> None:
    assert all(item.end <= len(data) for item in frames(data))


def test_segments_rotate_by_size_and_keep_order(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, Signal.TRACES, max_bytes=100)
    sent = [bytes([65 + index]) * 40 for index in range(10)]
    for message in sent:
        log.append([message], items=1)
    log.seal()
    segments = log.sealed()
    assert len(segments) == 4
    assert [message for segment in segments for message in payloads(segment.path)] == sent
    assert [segment.items for segment in segments] == [3, 3, 3, 1]
    assert [segment.size for segment in segments] == [segment.path.stat().st_size for segment in segments]
    for segment in segments:
        log.remove(segment)
    assert list(tmp_path.iterdir()) == []
    assert log.size == 0


def test_sealing_an_empty_log_makes_no_file(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, Signal.TRACES)
    log.seal()
    assert log.sealed() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tail", [frame(b"x" * 50)[:20], bytes(64), b"\xff" * 30, frame(b"bad one") + frame(b"later")]
)
def test_recovery_cuts_a_torn_tail_and_keeps_what_was_whole(tmp_path: Path, tail: bytes) -> None:
    log = SegmentLog(tmp_path / "log", Signal.TRACES)
    log.append([b"first", b"second"])
    log.seal()
    (segment,) = log.sealed()
    with segment.path.open("ab") as file:
        file.write(tail)
    quarantine = tmp_path / "quarantine"
    (recovered,) = SegmentLog(tmp_path / "log", Signal.TRACES).recover(accept, quarantine)
    assert payloads(recovered.path) == [b"first", b"second"]
    assert recovered.path.stat().st_size == recovered.size
    kept = quarantine / f"{segment.name}.tail"
    assert kept.read_bytes() == tail if tail.strip(b"\0") else not kept.exists()


def test_recovery_drops_a_file_with_nothing_whole_in_it(tmp_path: Path) -> None:
    (tmp_path / "traces-1.otlp").write_bytes(bytes(4096))
    log = SegmentLog(tmp_path, Signal.TRACES)
    assert log.recover(accept, tmp_path / "quarantine") == []
    assert list(tmp_path.iterdir()) == []


def test_two_signals_share_a_folder(tmp_path: Path) -> None:
    traces, logs = SegmentLog(tmp_path, Signal.TRACES), SegmentLog(tmp_path, Signal.LOGS)
    traces.append([b"t"])
    logs.append([b"l"])
    traces.seal()
    logs.seal()
    (found,) = SegmentLog(tmp_path, Signal.LOGS).recover(accept, tmp_path)
    assert payloads(found.path) == [b"l"]


def test_a_full_disk_leaves_no_half_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SegmentLog(tmp_path, Signal.TRACES)
    log.append([b"kept"])
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) > 10:
            return write(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        log.append([b"x" * 30])
    monkeypatch.undo()
    log.append([b"after"])
    log.seal()
    assert payloads(log.sealed()[0].path) == [b"kept", b"after"]


def test_a_name_that_is_not_on_the_disk_is_not_taken_for_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SegmentLog(tmp_path, Signal.TRACES)
    synced: list[bool] = []

    def broken(descriptor: int) -> None:
        synced.append(False)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            log.append([b"lost"])
    assert len(synced) == 2, "the second append must try the folder again"
    monkeypatch.undo()
    log.append([b"kept"])
    log.seal()
    assert [payloads(path) for path in tmp_path.iterdir()] == [[b"kept"]]


def test_what_is_cut_back_stays_cut_back_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its senders were told to send it again: the cut must be on the disk too."""
    log = SegmentLog(tmp_path, Signal.TRACES)
    log.append([b"kept"])
    calls: list[str] = []
    sync, truncate = os.fdatasync, os.ftruncate

    def first_fails(descriptor: int) -> None:
        calls.append("sync")
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    def cut(descriptor: int, size: int) -> None:
        calls.append("cut")
        truncate(descriptor, size)

    monkeypatch.setattr(os, "fdatasync", first_fails)
    monkeypatch.setattr(os, "ftruncate", cut)
    with pytest.raises(OSError, match="Input/output"):
        log.append([b"refused"])
    assert calls == ["sync", "cut", "sync"]


def test_importing_it_loads_no_engine() -> None:
    code = "import sys, spanloop_exporter.segments as s; print([m for m in ('chdb','torch','clickhouse_connect','aiohttp','grpc','google.protobuf') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
