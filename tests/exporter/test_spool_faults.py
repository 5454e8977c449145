"""What others do to a spool and its process: locks held, files closed or planted, forks, disks and folders that refuse."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from tests.helpers.alone import alone
from tests.helpers.otlp_target import Target
from tests.helpers.spooling import FLUSH_MS, RESOURCE, Provide, arrived_once, end

from spanloop_exporter.spooling import bounds
from spanloop_exporter.spooling.bounds import OLD, read_account
from spanloop_exporter.spooling.pipeline import get_pipeline
from spanloop_exporter.spooling.processor import SpanloopLogProcessor
from spanloop_exporter.spooling.runs import segments_in
from spanloop_exporter.spooling.spool import Spool
from spanloop_store.otlp.frames import frames
from spanloop_store.otlp.signals import Signal

TRACES = Signal.TRACES
PATIENCE_S = 20.0


@pytest.fixture
def taken() -> list[bytes]:
    """What could not be written."""
    return []


@pytest.fixture
def spool(tmp_path: Path, taken: list[bytes]) -> Iterator[Spool]:
    def overflow(signal: Signal, payloads: object, error: OSError) -> None:
        assert isinstance(payloads, list)
        taken.extend(payloads)

    made = Spool(tmp_path / "spool", max_bytes=1 << 30, max_age_s=3600, overflow=overflow)
    yield made
    made.close()


def contents(folder: Path) -> list[list[bytes]]:
    return [[bytes(item.payload) for item in frames(file.path.read_bytes())] for file in segments_in(folder)]


def open_below(folder: Path) -> list[int]:
    """The numbers under which this process has files of the folder open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            if link.readlink().is_relative_to(folder):
                found.append(int(link.name))
        except FileNotFoundError:
            continue
    return found


def test_a_log_handler_that_waits_for_the_spool_stops_nobody(
    provide: Provide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread writes a log record, inside its handler's lock; another's span meets a full disk, and that is logged."""
    spans, logs = provide(), LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    logs.add_log_record_processor(SpanloopLogProcessor())
    in_handler, on_full_disk = threading.Event(), threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "agent":
                in_handler.set()
                assert on_full_disk.wait(PATIENCE_S)
            logs.get_logger("test").emit(LogRecord(body=record.getMessage()))

    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if threading.current_thread().name == "full":
            assert in_handler.wait(PATIENCE_S)
            on_full_disk.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    handler = Handler()
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(os, "write", full)
    threads = [
        threading.Thread(target=lambda: logging.getLogger("agent").warning("busy"), daemon=True),
        threading.Thread(target=lambda: end(spans), name="full", daemon=True),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    logging.getLogger().removeHandler(handler)
    assert not any(thread.is_alive() for thread in threads)


def test_numbers_that_somebody_closed_are_not_written_to(spool: Spool, tmp_path: Path) -> None:
    spool.append(TRACES, [b"one"])
    for number in open_below(spool.folder):
        os.close(number)
    others = [(tmp_path / f"other {count}").open("wb") for count in range(3)]
    spool.append(TRACES, [b"two"])
    spool.seal(TRACES)
    assert [file.read_bytes() for file in tmp_path.glob("other *")] == [b""] * 3
    assert sorted(contents(spool.folder)) == [[b"one"], [b"two"]]
    assert len(spool.sealed(TRACES)) == 2
    spool.close()
    for file in others:
        file.close()  # they are still open


@alone
def test_a_child_forked_in_the_middle_does_not_keep_the_lock(spool: Spool) -> None:
    spool.append(TRACES, [b"x"])
    reader, writer = os.pipe()
    with bounds._locked(spool.folder) as mine:
        assert mine
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    try:
        with bounds._locked(spool.folder) as mine:
            assert mine, "as long as the child lives nobody keeps the spool in its bounds"
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(child, 0)


_UNTOLD = """
import ctypes, os, random
from spanloop_exporter.spooling.pipeline import get_pipeline
from spanloop_exporter.spooling.runs import segments_in
from spanloop_store.otlp.signals import Signal
pipeline = get_pipeline()
pipeline.shipper.wake = lambda **_: None
pipeline.write(Signal.TRACES, [b"parent 1"])
child = ctypes.PyDLL(None).fork()
if not child:
    random.seed()  # nobody told the module either, and the names of runs come from it
    pipeline.write(Signal.TRACES, [b"child"])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
pipeline.write(Signal.TRACES, [b"parent 2"])
"""


def test_a_fork_that_python_is_not_told_of_is_noticed(folder: Path) -> None:
    # Without the shipper's thread: in the child it is not there, and if it waited for the interpreter's lock at the time of
    # the fork, Python itself would wait for it.
    subprocess.run([sys.executable, "-c", _UNTOLD], check=True, timeout=PATIENCE_S)
    assert sorted(contents(folder)) == [[b"child"], [b"parent 1", b"parent 2"]]


def test_a_file_system_without_locks_is_not_littered(
    spool: Spool, taken: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for number in range(5):
        spool.append(TRACES, [b"%d" % number])
    assert taken == [b"0", b"1", b"2", b"3", b"4"]
    assert list(spool.folder.iterdir()) == []


def test_one_run_that_cannot_be_read_holds_up_no_other(
    spool: Spool, provide: Provide, target: Target, folder: Path
) -> None:
    """Somebody ran an agent as root once: its files are there for ever, and ours alone to leave."""
    folder.mkdir()
    (folder / "run-1-1.lock").mkdir()  # not even root opens this
    (folder / "traces-1-1-00000001.otlp").write_bytes(b"theirs")
    left = Spool(folder, max_bytes=1 << 30, max_age_s=3600, overflow=spool._overflow)
    provider = provide()
    ids = end(provider)
    (file,) = [file for file in segments_in(folder) if file.size > 10]
    left.append(TRACES, [file.path.read_bytes()[2:]])
    left.close()
    file.path.unlink()
    provider.shutdown()
    assert arrived_once(target, ids)


def test_a_link_that_somebody_planted_harms_no_file_elsewhere(spool: Spool, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    spool.folder.mkdir()
    (spool.folder / "traces-1-1-00000001.otlp").symlink_to(victim)
    (spool.folder / "run-2-2.lock").symlink_to(tmp_path / "made")
    spool.adopt()
    spool.enforce_bounds()
    assert victim.read_text() == "precious"
    assert not (tmp_path / "made").exists()


def test_a_signal_in_the_middle_of_a_write_leaves_the_segment_whole(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def interrupted(descriptor: int, data: memoryview) -> int:
        write(descriptor, data)
        raise KeyboardInterrupt

    spool.append(TRACES, [b"one"])
    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spool.append(TRACES, [b"not ended"])
    monkeypatch.undo()
    spool.append(TRACES, [b"two"])
    spool.seal(TRACES)
    (segment,) = spool.sealed(TRACES)
    assert contents(spool.folder) == [[b"one", b"two"]]
    assert (segment.size, segment.items) == (segment.path.stat().st_size, 2)


def test_what_arrived_and_cannot_be_deleted_is_not_sent_again(
    provide: Provide, target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = provide()
    ids = end(provider)
    unlink = os.unlink

    def refused(path: Path, **more: int) -> None:
        if str(path).endswith(".otlp"):
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path, **more)

    monkeypatch.setattr(os, "unlink", refused)
    assert provider.force_flush(FLUSH_MS)
    ids += end(provider)
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    assert len(target.requests) == 2
    assert len(segments_in(folder)) == 2


def test_what_a_target_does_not_take_grows_too_old_like_any_other(provide: Provide, folder: Path) -> None:
    provider = provide(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    end(provider)
    assert not provider.force_flush(FLUSH_MS)
    assert get_pipeline().shipper.stop(PATIENCE_S)  # it keeps the bounds too, now and then
    (file,) = segments_in(folder)
    os.utime(file.path, (1, 1))
    end(provider)  # a process's newest segment is left alone: it may be open
    spool = get_pipeline().spool
    assert spool is not None
    spool.enforce_bounds()
    assert read_account(folder).dropped == {OLD: 1}


def test_an_age_without_end_is_no_error_in_the_agent(provide: Provide, folder: Path) -> None:
    provider = provide(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",  # else all may have arrived, and be gone
        SPANLOOP_SPOOL_MAX_AGE_S="1e300",
        SPANLOOP_SPOOL_MAX_BYTES="8000",
    )
    end(provider, 20, size=900)
    assert 0 < sum(file.size for file in segments_in(folder)) <= 9000


def test_a_pipeline_that_fails_is_no_error_in_the_agent(
    provide: Provide, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider = provide()
    monkeypatch.setattr(get_pipeline(), "write", lambda signal, payloads: 1 / 0)
    end(provider, 3)
    assert sum("could be kept nowhere" in record.message for record in caplog.records) <= 1


def test_spans_that_end_after_the_shutdown_are_kept(provide: Provide, target: Target, folder: Path) -> None:
    provider = provide(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    logs = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    logs.add_log_record_processor(SpanloopLogProcessor())
    provider.shutdown()
    logs.shutdown()
    ids = end(provider, 3)
    logs.get_logger("test").emit(LogRecord(body="late"))
    provider.shutdown()
    next_one = provide(OTEL_EXPORTER_OTLP_ENDPOINT=target.url)
    ids += end(next_one)
    next_one.shutdown()
    assert arrived_once(target, ids)
    assert target.records == {"late": 1}


def test_a_target_that_hangs_is_waited_for_once(provide: Provide, target: Target) -> None:
    release = threading.Event()
    target.judge = lambda body: release.wait(PATIENCE_S) and None
    provider = provide()
    logs = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    logs.add_log_record_processor(SpanloopLogProcessor())
    end(provider)
    pipeline = get_pipeline()
    asked: list[float] = []
    flush = pipeline.shipper.flush
    pipeline.shipper.flush = lambda *a, **k: asked.append(1) or flush(0.01, **k)  # type: ignore[method-assign]
    logs.shutdown()
    provider.shutdown()
    assert len(asked) == 1
    release.set()


def test_a_thread_that_cannot_start_is_tried_again_with_the_next_span(
    provide: Provide, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = provide(OTEL_BSP_SCHEDULE_DELAY="10")

    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more)
        ids = end(provider)
    ids += end(provider)
    target.wait(lambda target: len(target.spans) == 2)
    assert arrived_once(target, ids)


def test_thread_and_queue_are_of_one_kind_whatever_is_patched_between(
    provide: Provide, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gevent's patches come after the SDK is set up; a real queue would block all of its green threads."""
    import queue

    class Patched(queue.Queue):  # type: ignore[type-arg]
        pass

    provider = provide()
    monkeypatch.setattr(queue, "SimpleQueue", Patched)
    ids = end(provider)
    assert provider.force_flush(FLUSH_MS)
    assert arrived_once(target, ids)
    assert type(get_pipeline().shipper._inbox) is Patched


def test_accounts_are_for_the_owner_alone(spool: Spool) -> None:
    spool.folder.mkdir()
    spool.books.dropped(OLD, 1, "x")
    assert stat.S_IMODE((spool.folder / "account.json").stat().st_mode) == 0o600


def test_without_flock_the_message_names_the_way_out() -> None:
    program = (
        "import sys; sys.modules['fcntl'] = None\nimport spanloop_exporter.spooling.exporter"  # as on Windows
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "OTEL_TRACES_EXPORTER=otlp" in done.stderr.splitlines()[-1]
