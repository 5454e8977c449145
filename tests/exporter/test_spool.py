"""The spool's promises on real files: what is written stays, whoever dies; what goes is counted; nobody ships another's."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from tests.helpers.alone import alone

from spanloop_exporter.spooling import bounds
from spanloop_exporter.spooling.bounds import FULL, OLD, TORN, read_account, refused_in, report
from spanloop_exporter.spooling.processor import SpanloopSpanProcessor
from spanloop_exporter.spooling.runs import segments_in
from spanloop_exporter.spooling.spool import Spool
from spanloop_store.otlp.frames import frame, frames
from spanloop_store.otlp.signals import Signal

TRACES = Signal.TRACES


class Lost(Exception):
    """A payload that the spool could not write."""


def no_overflow(signal: Signal, payloads: Sequence[bytes], error: OSError) -> None:
    raise Lost(payloads) from error


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Spool]:
    def make(
        folder: Path = tmp_path / "spool",
        max_bytes: int = 1 << 30,
        max_age_s: float = 3600,
        overflow: Callable[[Signal, Sequence[bytes], OSError], None] = no_overflow,
    ) -> Spool:
        return Spool(folder, max_bytes=max_bytes, max_age_s=max_age_s, overflow=overflow)

    return make


def payloads_of(data: bytes) -> list[bytes]:
    return [bytes(item.payload) for item in frames(data)]


def left_by_the_dead(folder: Path, program: str) -> None:
    """Runs a program with a `spool` in a process that is killed in the end."""
    head = (
        "import os, signal; from pathlib import Path; from spanloop_exporter.spooling.spool import Spool;"
        "from spanloop_store.otlp.signals import Signal;"
        f"spool = Spool(Path({str(folder)!r}), max_bytes=1 << 30, max_age_s=3600, overflow=print);"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{head}{program};os.kill(os.getpid(), signal.SIGKILL)"], check=False
    )
    assert done.returncode == -9


def test_what_was_written_is_there_for_others_at_once(make: Callable[..., Spool]) -> None:
    spool = make()
    spool.append(TRACES, [b"one", b"two"])
    spool.append(Signal.LOGS, [b"three"])
    spool.append(TRACES, [b"four"])
    found = {file.signal: file.path.read_bytes() for file in segments_in(spool.folder)}
    assert {signal: payloads_of(data) for signal, data in found.items()} == {
        TRACES: [b"one", b"two", b"four"],
        Signal.LOGS: [b"three"],
    }
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in spool.folder.iterdir()} == {0o600}


def test_a_sealed_segment_never_changes_and_goes_when_it_arrived(make: Callable[..., Spool]) -> None:
    spool = make()
    spool.append(TRACES, [b"one"])
    spool.seal(TRACES)
    (segment,) = spool.sealed(TRACES)
    spool.append(TRACES, [b"two"])
    assert spool.read(segment) == frame(b"one")
    assert spool.pending == 2
    spool.remove(segment)
    assert spool.pending == 1
    assert [payloads_of(file.path.read_bytes()) for file in segments_in(spool.folder)] == [[b"two"]]


def test_the_living_keep_their_segments_and_the_dead_are_inherited_once(make: Callable[..., Spool]) -> None:
    first, second = make(), make()
    left_by_the_dead(
        first.folder, "spool.append(Signal.TRACES, [b'left', b'behind']); spool.append(Signal.LOGS, [b'log'])"
    )
    first.append(TRACES, [b"mine"])
    second.append(TRACES, [b"yours"])
    first.adopt()
    second.adopt()
    assert second.adopted(TRACES) == []
    (segment,) = first.adopted(TRACES)
    assert payloads_of(first.read(segment) or b"") == [b"left", b"behind"]
    first.remove(segment)
    first.close()  # with the dead process's log and its own span still there
    second.adopt()
    contents = [
        payloads_of(second.read(each) or b"") for each in second.adopted(TRACES) + second.adopted(Signal.LOGS)
    ]
    assert contents == [[b"mine"], [b"log"]]


def test_locks_of_the_dead_do_not_pile_up(make: Callable[..., Spool]) -> None:
    spool = make()
    left_by_the_dead(spool.folder, "spool.append(Signal.TRACES, [b'x']); spool.seal(Signal.TRACES)")
    for path in segments_in(spool.folder):
        path.path.unlink()
    spool.adopt()
    assert not list(spool.folder.glob("*.lock"))


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_half_a_span_of_a_killed_writer_is_cut_off_and_counted(cut: int, make: Callable[..., Spool]) -> None:
    spool = make()
    left_by_the_dead(spool.folder, "spool.append(Signal.TRACES, [b'whole', b'0123456789'])")
    (file,) = segments_in(spool.folder)
    os.truncate(file.path, file.size - cut)
    spool.adopt()
    (segment,) = spool.adopted(TRACES)
    assert payloads_of(spool.read(segment) or b"") == [b"whole"]
    assert segment.path.read_bytes() == frame(b"whole")
    assert read_account(spool.folder).dropped == {TORN: 1}


def test_the_oldest_are_dropped_when_the_spool_is_full(
    make: Callable[..., Spool], caplog: pytest.LogCaptureFixture
) -> None:
    spool = make(max_bytes=80_000)
    for number in range(200):
        spool.append(TRACES, [b"%04d" % number + b"x" * 996])
    kept = [payload for file in segments_in(spool.folder) for payload in payloads_of(file.path.read_bytes())]
    numbers = sorted(int(payload[:4]) for payload in kept)
    assert numbers == list(range(numbers[0], 200))  # the newest, without a gap
    assert 60_000 < sum(file.size for file in segments_in(spool.folder)) <= 90_000
    assert read_account(spool.folder).dropped == {FULL: numbers[0]}
    assert sum("dropped" in record.message for record in caplog.records) == 1


def test_the_bound_holds_for_what_the_dead_left_and_what_was_refused(make: Callable[..., Spool]) -> None:
    spool = make()
    for _ in range(3):
        left_by_the_dead(spool.folder, "spool.append(Signal.TRACES, [b'x' * 30_000])")
    spool.refuse("traces-1-1-00000001.otlp", frame(b"y" * 30_000), "HTTP 400")
    os.utime(refused_in(spool.folder)[0], (1, 1))
    spool.append(TRACES, [b"z" * 30_000])
    bounds.enforce(spool.folder, 70_000, 3600 * 24 * 36500, (), spool.books)
    assert len(segments_in(spool.folder)) == 2
    assert refused_in(spool.folder) == []
    assert read_account(spool.folder).dropped == {FULL: 3}


def test_what_is_too_old_is_dropped_but_not_what_others_still_write(make: Callable[..., Spool]) -> None:
    writer, spool = make(), make()
    writer.append(TRACES, [b"open"])
    left_by_the_dead(spool.folder, "spool.append(Signal.TRACES, [b'a', b'b'])")
    for file in segments_in(spool.folder):
        os.utime(file.path, (time.time() - 7200,) * 2)
    spool.enforce_bounds()
    assert [payloads_of(file.path.read_bytes()) for file in segments_in(spool.folder)] == [[b"open"]]
    assert read_account(spool.folder).dropped == {OLD: 2}


def test_an_emptied_folder_is_noticed_with_the_next_span(make: Callable[..., Spool]) -> None:
    spool = make()
    spool.append(TRACES, [b"gone"])
    for path in spool.folder.iterdir():
        path.unlink()
    spool.folder.rmdir()
    spool.append(TRACES, [b"kept"])
    (file,) = segments_in(spool.folder)
    assert payloads_of(file.path.read_bytes()) == [b"kept"]
    assert read_account(spool.folder).dropped == {bounds.DELETED: 1}
    other = make()
    other.adopt()
    assert other.adopted(TRACES) == []


def test_a_folder_that_cannot_be_made_overflows_and_recovers(
    make: Callable[..., Spool], tmp_path: Path
) -> None:
    taken: list[bytes] = []
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    spool = make(folder=blocked / "spool", overflow=lambda signal, payloads, error: taken.extend(payloads))
    spool.append(TRACES, [b"one"])
    assert taken == [b"one"]
    blocked.unlink()
    spool.append(TRACES, [b"two"])
    assert taken == [b"one"]
    assert [payloads_of(file.path.read_bytes()) for file in segments_in(spool.folder)] == [[b"two"]]


def test_a_disk_that_fills_up_leaves_no_half_span() -> None:
    program = """
import resource, signal, sys, tempfile
from pathlib import Path
from spanloop_exporter.spooling.runs import segments_in
from spanloop_exporter.spooling.spool import Spool
from spanloop_store.otlp.frames import frames
from spanloop_store.otlp.signals import Signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
over = []
with tempfile.TemporaryDirectory() as folder:
    spool = Spool(Path(folder), max_bytes=1 << 30, max_age_s=60, overflow=lambda s, p, e: over.extend(p))
    for number in range(9):
        spool.append(Signal.TRACES, [bytes([65 + number]) * 999])
    (file,) = segments_in(Path(folder))
    data = file.path.read_bytes()
    kept = [bytes(item.payload) for item in frames(data)]
    assert sum(len(payload) + 2 for payload in kept) == len(data), len(data)
    print(len(kept), len(over), sorted(kept + over) == [bytes([65 + n]) * 999 for n in range(9)])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("4 5 True\n", "")


def test_a_span_that_a_finalizer_ends_is_written_whatever_line_it_interrupts(
    make: Callable[..., Spool],
) -> None:
    spool = make(max_bytes=1000)  # so that nearly every write seals, and tidies up
    inner: list[bytes] = []
    interrupted: Counter[tuple[str, int]] = Counter()
    inside = False

    def on_line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal inside
        if Path(frame.f_code.co_filename).name not in ("spool.py", "bounds.py", "runs.py"):
            return None
        place = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not inside and interrupted[place] < 3:
            interrupted[place] += 1
            inside = True
            inner.append(b"inner %04d" % len(inner))
            spool.append(TRACES, [inner[-1]])
            inside = False
        return on_line

    outer = [b"outer %04d" % number + b"x" * 100 for number in range(8)]
    sys.settrace(on_line)
    try:
        for payload in outer:
            spool.append(TRACES, [payload])
        spool.seal(TRACES)
    finally:
        sys.settrace(None)
    kept = {payload for file in segments_in(spool.folder) for payload in payloads_of(file.path.read_bytes())}
    dropped = read_account(spool.folder).dropped.get(FULL, 0)
    assert len(inner) > 100
    assert len(kept) + dropped == len(inner) + len(outer)
    assert kept <= {*inner, *outer}


@alone
def test_a_fork_child_writes_files_of_its_own(make: Callable[..., Spool], tmp_path: Path) -> None:
    spool = make()
    spool.append(TRACES, [b"parent 1"])
    child = os.fork()
    if not child:
        spool.after_fork_in_child()
        spool.append(TRACES, [b"child"])
        spool.adopt()  # must not take the parent's
        os._exit(len(spool.adopted(TRACES)))
    assert os.waitpid(child, 0)[1] == 0
    spool.append(TRACES, [b"parent 2"])
    contents = [payloads_of(file.path.read_bytes()) for file in segments_in(spool.folder)]
    assert sorted(contents) == [[b"child"], [b"parent 1", b"parent 2"]]
    spool.adopt()
    assert [payloads_of(spool.read(each) or b"") for each in spool.adopted(TRACES)] == [[b"child"]]


def test_the_report_tells_the_living_from_the_dead(make: Callable[..., Spool]) -> None:
    spool = make()
    assert report(spool.folder).segments == 0
    left_by_the_dead(spool.folder, "spool.append(Signal.TRACES, [b'a'])")
    spool.append(TRACES, [b"b"])
    spool.refuse("traces-1-1-00000001.otlp", frame(b"y"), "HTTP 400 no")
    told = report(spool.folder)
    assert (told.segments, told.live_segments, told.refused_segments, told.account.refused) == (2, 1, 1, 1)
    assert "HTTP 400 no" in json.loads((spool.folder / "account.json").read_text())["last"]


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_another_users_spool_is_neither_read_nor_harmed(tmp_path: Path) -> None:
    mine = tmp_path / "spool"
    spool = Spool(mine, max_bytes=1 << 20, max_age_s=60, overflow=no_overflow)
    spool.append(TRACES, [b"secret"])
    program = (
        "import os, sys; from pathlib import Path;"
        "from spanloop_exporter.spooling.spool import Spool; from spanloop_store.otlp.signals import Signal;"
        "os.setgid(65534); os.setuid(65534);"
        "s = Spool(Path(sys.argv[1]), max_bytes=1 << 20, max_age_s=60, overflow=lambda *a: print(type(a[2]).__name__));"
        "s.append(Signal.TRACES, [b'x'])\ntry: s.adopt()\nexcept PermissionError: print('no adoption')"
    )
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.name.startswith("pytest"):
            folder.chmod(0o755)
    before = sorted(path.name for path in mine.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", program, str(mine)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "PermissionError\nno adoption\n", done.stderr
    assert sorted(path.name for path in mine.iterdir()) == before


def test_an_agent_never_hears_of_a_span_that_cannot_be_encoded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    processor = SpanloopSpanProcessor()
    provider.add_span_processor(processor)
    monkeypatch.setattr(processor.span_exporter._encoder, "encode", lambda span: 1 / 0)
    for _ in range(3):
        provider.get_tracer("t").start_span("broken").end()
    assert sum("cannot be encoded" in record.message for record in caplog.records) == 1
    assert provider.force_flush(1000)
