"""The way into the log: every sender gets an answer, whatever else the process waits for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.collector.capture_process import trace_request
from tests.collector.receivers import receivers

from spanloop_collector.errors import Busy
from spanloop_collector.intake import Intake
from spanloop_collector.repeats import Repeats
from spanloop_collector.space import Space
from spanloop_collector.statistics import Statistics
from spanloop_collector.writer import Writer
from spanloop_exporter.segments import SegmentLog
from spanloop_store.errors import StoreUnavailable
from spanloop_store.otlp.check import check_json
from spanloop_store.otlp.frames import frames
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal

BODY = trace_request("a").SerializeToString()
OTHERS = [trace_request("a", trace=trace).SerializeToString() for trace in (2, 3, 4)]
PATIENCE_S = 30


def no_store() -> SegmentInserter:
    raise StoreUnavailable("there is none here", "")


def intake(log: SegmentLog, max_log_bytes: int = 1 << 30) -> Intake:
    logs = {Signal.TRACES: log}
    space = Space([], max_log_bytes=max_log_bytes)
    return Intake(logs, Writer(logs, no_store, Statistics()), Statistics(), Repeats(log._folder), space)


def logged(folder: Path) -> int:
    return sum(1 for path in folder.glob("*.otlp") for _ in frames(path.read_bytes()))


def test_waiting_flushes_do_not_keep_requests_out(tmp_path: Path) -> None:
    """A flush blocks a thread of the loop until the store is back, and there are few of those."""
    log = SegmentLog(tmp_path, Signal.TRACES)
    back = threading.Event()

    async def scenario() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        flush = asyncio.create_task(asyncio.to_thread(back.wait))
        try:
            await asyncio.wait_for(intake(log).take(Signal.TRACES, BODY), PATIENCE_S)
        finally:
            back.set()
            await flush

    asyncio.run(scenario())
    assert logged(tmp_path) == 1


class Failing(SegmentLog):
    """Holds the first append until more senders wait, then fails it as it is told."""

    error: Exception | None = None
    started = threading.Event()
    proceed = threading.Event()

    def append(
        self, payloads: Sequence[bytes], items: int = 0, then: Callable[[str], None] | None = None
    ) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            self.started.set()
            self.proceed.wait()
            raise error
        super().append(payloads, items, then)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("a bug")], ids=["disk", "bug"]
)
def test_a_failed_append_is_told_to_its_senders_and_to_no_other(tmp_path: Path, error: Exception) -> None:
    log = Failing(tmp_path, Signal.TRACES)
    log.error, log.started, log.proceed = error, threading.Event(), threading.Event()
    way_in = intake(log)

    async def scenario() -> list[BaseException | object]:
        first = asyncio.create_task(way_in.take(Signal.TRACES, BODY))
        await asyncio.to_thread(log.started.wait)
        later = [asyncio.create_task(way_in.take(Signal.TRACES, other)) for other in OTHERS]
        await asyncio.sleep(0)  # each of them is in line for the next sync
        log.proceed.set()
        return await asyncio.wait_for(asyncio.gather(first, *later, return_exceptions=True), PATIENCE_S)

    first, *later = asyncio.run(scenario())
    assert isinstance(first, Busy)
    assert str(error.args[-1]) in first.message
    assert [isinstance(answer, BaseException) for answer in later] == [False] * 3
    assert logged(tmp_path) == 3
    assert way_in.statistics.total("spanloop_items_acknowledged_total") == 3


def test_a_backlog_that_grows_too_large_pushes_back(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, Signal.TRACES)
    way_in = intake(log, max_log_bytes=10)
    asyncio.run(way_in.take(Signal.TRACES, BODY))
    with pytest.raises(Busy, match="wait for the store"):
        asyncio.run(way_in.take(Signal.TRACES, OTHERS[0]))
    assert logged(tmp_path) == 1


@contextlib.contextmanager
def held(
    monkeypatch: pytest.MonkeyPatch, target: str, real: Callable[..., object]
) -> Iterator[threading.Event]:
    """Lets calls of `target` begin (the event says so) and not go on before the end."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(*args: object, **settings: object) -> object:
        begun.set()
        go_on.wait(4 * PATIENCE_S)  # longer than anybody's patience
        return real(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(target, hold)
        try:
            yield begun
        finally:
            go_on.set()


@pytest.mark.parametrize(
    ("target", "real", "kind"),
    [
        ("spanloop_exporter.segments.os.fdatasync", os.fdatasync, "application/x-protobuf"),
        ("spanloop_collector.intake.check_json", check_json, "application/json"),
    ],
    ids=["the disk", "a document"],
)
def test_nobody_else_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, real: Callable[..., object], kind: str
) -> None:
    """The loop serves everything: queries of the store, health, senders whose requests are known."""
    with receivers(tmp_path, min_free_bytes=0) as both, ThreadPoolExecutor(1) as senders:
        assert both.post(body=OTHERS[0]).status == 200
        body = BODY if kind.endswith("protobuf") else b'{"resourceSpans": []}'
        with held(monkeypatch, target, real) as begun:
            slow = senders.submit(both.post, body=body, kind=kind)
            assert begun.wait(PATIENCE_S)
            assert both.post("/healthz", method="GET").status == 200
            assert both.post(body=OTHERS[0]).status == 200
            assert not slow.done()
        assert slow.result(PATIENCE_S).status == 200


def test_hashes_that_are_being_written_down_keep_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receivers(tmp_path, min_free_bytes=0) as both, ThreadPoolExecutor(1) as writers:
        assert both.post(body=BODY).status == 200
        log = both.logs.segments[Signal.TRACES]
        log.seal()
        with held(monkeypatch, "spanloop_collector.repeats.os.fsync", os.fsync) as begun:
            removed = writers.submit(log.remove, log.sealed()[0])
            assert begun.wait(PATIENCE_S)
            assert both.post(body=BODY).status == 200
            assert not removed.done()
        removed.result(PATIENCE_S)


def test_flushes_that_wait_leave_the_threads_of_the_loop_alone(tmp_path: Path) -> None:
    """The endpoint's queries and the graceful stop need those; a store that is away may keep flushes for an hour."""
    with receivers(tmp_path, min_free_bytes=0) as both, ThreadPoolExecutor(2) as clients:
        both.loop.call_soon_threadsafe(both.loop.set_default_executor, ThreadPoolExecutor(1))
        both.intake.writer.start()
        assert both.post(body=BODY).status == 200
        flushes = [clients.submit(both.post, "/flush?timeout_s=3600") for _ in range(2)]
        while not both.logs.segments[Signal.TRACES].sealed():  # the first one seals it and waits
            assert not flushes[0].done(), flushes[0].result()
        both.run(asyncio.to_thread(both.intake.writer.stop, 0))
        assert {flush.result(PATIENCE_S).status for flush in flushes} == {504}
