"""From sealed segments to rows: exactly once across crashes, and nothing lost beside what is broken."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from tests.collector.capture_process import trace_request
from tests.collector.writer_process import POINTS
from tests.helpers.stores import laid

from spanloop_collector.folders import Folders, candidates, open_logs, recovered
from spanloop_collector.statistics import Statistics
from spanloop_collector.writer import Writer
from spanloop_exporter.segments import SegmentLog
from spanloop_store import Engine, StoreUrl
from spanloop_store.errors import SegmentRefused, StoreLocked, StoreUnavailable
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal
from spanloop_store.otlp.transports import Embedded


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(laid(tmp_path / "store")) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine) -> Client:
    return engine.client()


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "log", tmp_path / "quarantine")


def inserter(client: Client, folders: Folders) -> SegmentInserter:
    return SegmentInserter(client, embedded=True, quarantine=folders.quarantine, collector="test")


def names(client: Client) -> list[str]:
    return [
        name for (name,) in client.query("SELECT SpanName FROM otel_traces ORDER BY SpanName").result_rows
    ]


def segments(client: Client) -> list[tuple[str, int]]:
    return client.query("SELECT decoder, rows FROM ingest_segments ORDER BY decoder").result_rows  # type: ignore[return-value]  # rows are tuples


def deep(name: str) -> bytes:
    request = trace_request(name)
    value = request.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="deep").value
    value.array_value.values.add().array_value.values.add().string_value = "x"
    return request.SerializeToString()


def test_a_crash_between_insert_and_unlink_repeats_nothing(client: Client, folders: Folders) -> None:
    log = SegmentLog(folders.log, Signal.TRACES)
    log.append([trace_request("a", "b").SerializeToString(), deep("c")], items=3)
    log.seal()
    (segment,) = log.sealed()
    first = inserter(client, folders).insert(segment.path, Signal.TRACES)
    assert (first.engine_rows, first.fallback_rows) == (2, 1)
    # The process dies here; the next one finds the file.
    (found,) = recovered(folders).segments[Signal.TRACES].sealed()
    assert inserter(client, folders).insert(found.path, Signal.TRACES) == first
    assert names(client) == ["a", "b", "c"]
    assert segments(client) == [("engine", 2), ("fallback", 1)]
    assert client.query("SELECT count() FROM otel_traces_trace_id_ts").result_rows == [(2,)]


def test_a_crash_half_way_through_is_completed(client: Client, folders: Folders) -> None:
    """The engine's half is in, the fallback's is not."""
    log = SegmentLog(folders.log, Signal.TRACES)
    easy = trace_request("easy").SerializeToString()
    log.append([easy, deep("deep")])
    log.seal()
    (segment,) = log.sealed()
    whole = inserter(client, folders)
    whole._transport.insert(Signal.TRACES, "Protobuf", segment.name, frame(easy))
    assert names(client) == ["easy"]
    whole.insert(segment.path, Signal.TRACES)
    assert names(client) == ["deep", "easy"]


@pytest.mark.parametrize("make", [lambda: trace_request("a", "b").SerializeToString(), lambda: deep("c")])
def test_rows_whose_token_alone_survived_a_crash_are_inserted_again(
    make: Callable[[], bytes], client: Client, folders: Folders
) -> None:
    """MergeTree notes a token before the part gets its name: killed in between, it has the token and no rows."""
    log = SegmentLog(folders.log, Signal.TRACES)
    log.append([make()], items=1)
    log.seal()
    (segment,) = log.sealed()
    done = inserter(client, folders).insert(segment.path, Signal.TRACES)
    before = names(client)
    for table in ("otel_traces", "otel_traces_trace_id_ts"):
        client.command(f"ALTER TABLE {table} DELETE WHERE 1 SETTINGS mutations_sync = 1")
    assert names(client) == []
    inserter(client, folders).insert(segment.path, Signal.TRACES)
    assert names(client) == [], "the token must be known, or this shows nothing"
    for _ in range(2):
        assert inserter(client, folders).insert(segment.path, Signal.TRACES, again=True) == done
        assert names(client) == before
        assert client.query("SELECT uniq(TraceId) FROM otel_traces_trace_id_ts").result_rows == [(1,)]
    # The view's rows alone can be lost as well.
    client.command("ALTER TABLE otel_traces_trace_id_ts DELETE WHERE 1 SETTINGS mutations_sync = 1")
    for _ in range(2):
        inserter(client, folders).insert(segment.path, Signal.TRACES, again=True)
        assert names(client) == before
        assert client.query("SELECT count() FROM otel_traces_trace_id_ts").result_rows == [(1,)]


def test_a_log_segment_whose_token_alone_survived(client: Client, folders: Folders) -> None:
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for number in range(3):  # one text, one time: only an attribute tells them apart
        record = scope.log_records.add(time_unix_nano=1_700_000_000 * 10**9)
        record.body.string_value = "same"
        record.attributes.add(key="number").value.int_value = number
    log = SegmentLog(folders.log, Signal.LOGS)
    log.append([request.SerializeToString()], items=3)
    log.seal()
    (segment,) = log.sealed()
    inserter(client, folders).insert(segment.path, Signal.LOGS)
    client.command("ALTER TABLE otel_logs DELETE WHERE 1 SETTINGS mutations_sync = 1")
    inserter(client, folders).insert(segment.path, Signal.LOGS)
    assert client.command("SELECT count() FROM otel_logs") == 0, (
        "the token must be known, or this shows nothing"
    )
    for _ in range(2):
        inserter(client, folders).insert(segment.path, Signal.LOGS, again=True)
        found = client.query("SELECT LogAttributes['number'] AS number FROM otel_logs ORDER BY number")
        assert found.result_rows == [("0",), ("1",), ("2",)]


def _log_segment(folders: Folders, pods: list[str], time_ns: int) -> Path:
    request = ExportLogsServiceRequest()
    for pod in pods:
        resource = request.resource_logs.add()
        resource.resource.attributes.add(key="k8s.pod.name").value.string_value = pod
        record = resource.scope_logs.add().log_records.add(time_unix_nano=time_ns)
        record.body.string_value = "request done"
    log = SegmentLog(folders.log, Signal.LOGS)
    log.append([request.SerializeToString()], items=len(pods))
    log.seal()
    return log.sealed()[-1].path


@pytest.mark.parametrize(
    ("pods", "time_ns"),
    [(["a"], 0), (["b"], 0), (["b"], 1_700_000_000 * 10**9), (["a", "a"], 1_700_000_000 * 10**9)],
    ids=["no time", "no time, another pod", "another pod", "twice in one request"],
)
def test_another_segments_equal_log_record_hides_none_after_a_crash(
    pods: list[str], time_ns: int, client: Client, folders: Folders
) -> None:
    """A log record has no id: one that says the same at the same time is another one all the same."""
    first = _log_segment(folders, ["a"], time_ns)
    inserter(client, folders).insert(first, Signal.LOGS)
    # The process that began this one died before the engine had any of it.
    second = _log_segment(folders, pods, time_ns)
    for _ in range(2):
        inserter(client, folders).insert(second, Signal.LOGS, again=True)
        found = client.query("SELECT ResourceAttributes['k8s.pod.name'] AS pod FROM otel_logs ORDER BY pod")
        assert [pod for (pod,) in found.result_rows] == sorted(["a", *pods])


def test_a_refusal_half_way_does_not_repeat_what_was_taken(
    client: Client, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's half is in when the fallback's rows are refused: only those may be tried another way."""
    transport = "spanloop_store.otlp.transports.Embedded.insert"
    real = Embedded.insert

    def refuse(self: Embedded, signal: Signal, fmt: str, token: str, *rest: Any) -> None:
        if fmt == "JSONCompactEachRow" and "." not in token.removeprefix(segment.name).removesuffix(
            ".fallback"
        ):
            raise SegmentRefused("Code: 27")
        real(self, signal, fmt, token, *rest)

    log = SegmentLog(folders.log, Signal.TRACES)
    log.append([trace_request("easy").SerializeToString(), deep("one"), deep("two")], items=3)
    log.seal()
    (segment,) = log.sealed()
    monkeypatch.setattr(transport, refuse)
    done = inserter(client, folders).insert(segment.path, Signal.TRACES)
    assert (done.engine_rows, done.fallback_rows, done.quarantined_rows) == (1, 2, 0)
    assert names(client) == ["easy", "one", "two"]


def test_days_of_history_in_one_segment(client: Client, folders: Folders) -> None:
    """Each day is a partition; unasked, the engine takes no more than 100 in one insert."""
    request = trace_request(*(f"{day:03}" for day in range(150)))
    for day, span in enumerate(request.resource_spans[0].scope_spans[0].spans):
        span.start_time_unix_nano = (1_700_000_000 + day * 86_400) * 10**9
        span.end_time_unix_nano = span.start_time_unix_nano
    log = SegmentLog(folders.log, Signal.TRACES)
    log.append([request.SerializeToString()])
    log.seal()
    for _ in range(2):
        inserter(client, folders).insert(log.sealed()[0].path, Signal.TRACES)
    assert len(names(client)) == 150


def test_what_the_engine_refuses_is_quarantined_alone(client: Client, folders: Folders) -> None:
    """A message that is no OTLP, with intact frames around it: bit rot, since the receiver takes none such."""
    folders.log.mkdir()
    path = folders.log / "traces-broken.otlp"
    garbage = b"\x0a\xff\xff\xff\xff\x0fgarbage"
    parts = [
        trace_request("first").SerializeToString(),
        garbage,
        deep("deep"),
        trace_request("last").SerializeToString(),
    ]
    path.write_bytes(b"".join(frame(part) for part in parts))
    for _ in range(2):
        done = inserter(client, folders).insert(path, Signal.TRACES)
        assert (done.engine_rows, done.fallback_rows, done.quarantined_requests) == (2, 1, 1)
    assert names(client) == ["deep", "first", "last"]
    assert (folders.quarantine / f"{path.name}.1.otlp").read_bytes() == garbage
    assert (folders.quarantine / f"{path.name}.1.otlp.reason.txt").read_text().strip()
    assert segments(client) == [("engine", 2), ("fallback", 1), ("quarantine", 0)]
    assert not list(folders.quarantine.glob("*.part"))


def test_a_store_that_is_away_keeps_the_log_and_then_takes_it(client: Client, folders: Folders) -> None:
    logs = {signal: SegmentLog(folders.log, signal) for signal in Signal}
    away = True

    def open_inserter() -> SegmentInserter:
        if away:
            raise StoreUnavailable("the server does not answer", "start it")
        return inserter(client, folders)

    statistics = Statistics()
    writer = Writer(logs, open_inserter, statistics, latency_s=0)
    writer.start()
    logs[Signal.TRACES].append([trace_request("kept").SerializeToString()], items=1)
    writer.notify()
    assert not writer.flush(0.5)
    assert writer.last_error == "the server does not answer"
    assert statistics.total("spanloop_insert_failures_total") >= 1
    assert len(list(folders.log.glob("*.otlp"))) == 1
    away = False
    assert writer.flush(60)
    assert names(client) == ["kept"]
    assert writer.stop(30)
    assert list(folders.log.glob("*.otlp")) == []
    assert statistics.total("spanloop_items_inserted_total") == 1


def filled(folders: Folders, *segments: list[bytes]) -> dict[Signal, SegmentLog]:
    """Logs with sealed segments of spans."""
    logs = {signal: SegmentLog(folders.log, signal) for signal in Signal}
    for payloads in segments:
        logs[Signal.TRACES].append(payloads, items=len(payloads))
        logs[Signal.TRACES].seal()
    return logs


def test_two_segments_are_inserted_at_once(engine: Engine, client: Client, folders: Folders) -> None:
    logs = filled(folders, *([trace_request(name, trace=ord(name)).SerializeToString()] for name in "abcd"))
    together = threading.Barrier(2)

    def open_inserter() -> SegmentInserter:
        opened = inserter(engine.client(), folders)
        real = opened.insert

        def insert(*args: Any, **settings: Any) -> Any:
            together.wait(60)  # passes only when both threads are here
            return real(*args, **settings)

        opened.insert = insert  # type: ignore[method-assign]  # a real inserter that waits for the other
        return opened

    statistics = Statistics()
    writer = Writer(logs, open_inserter, statistics, latency_s=0)
    writer.start()
    assert writer.flush(60)
    assert writer.stop(30)
    assert names(client) == list("abcd")
    assert segments(client) == [("engine", 1)] * 4
    assert statistics.total("spanloop_segments_total") == 4


@pytest.mark.parametrize("threads", [1, 2])
def test_a_segment_that_the_store_does_not_take_holds_up_no_other(
    threads: int, engine: Engine, client: Client, folders: Folders
) -> None:
    logs = filled(folders, *([trace_request(name, trace=ord(name)).SerializeToString()] for name in "abc"))
    (stuck, *_) = logs[Signal.TRACES].sealed()
    well = threading.Event()

    def open_inserter() -> SegmentInserter:
        opened = inserter(engine.client(), folders)
        real = opened.insert

        def insert(path: Path, *args: Any, **settings: Any) -> Any:
            if path == stuck.path and not well.is_set():
                raise StoreUnavailable("it does not fit into memory", "give it more")
            return real(path, *args, **settings)

        opened.insert = insert  # type: ignore[method-assign]  # a real inserter that refuses one segment
        return opened

    writer = Writer(logs, open_inserter, Statistics(), latency_s=0, threads=threads)
    writer.start()
    deadline = time.monotonic() + 60
    while len(logs[Signal.TRACES].sealed()) > 1 and time.monotonic() < deadline:
        assert not writer.flush(0.1)
    assert names(client) == ["b", "c"]
    assert writer.last_error == "it does not fit into memory"
    well.set()
    assert writer.flush(60)
    assert names(client) == ["a", "b", "c"]
    assert writer.last_error == ""
    assert writer.stop(30)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_while_two_segments_are_inserted(point: str, tmp_path: Path) -> None:
    laid(tmp_path)
    died = subprocess.run([sys.executable, "-m", "tests.collector.writer_process", str(tmp_path), point])
    assert died.returncode == -signal.SIGKILL
    url = StoreUrl.parse(f"chdb://{tmp_path}")
    with Engine(url) as engine:
        folders = candidates(url)[0]
        logs = recovered(folders).segments
        assert len(logs[Signal.TRACES].sealed()) >= 3, "at most one of the two was done"
        writer = Writer(logs, lambda: inserter(engine.client(), folders), Statistics(), latency_s=0)
        writer.start()
        assert writer.stop(120)
        client = engine.client()
        assert names(client) == list("abcdef")
        assert client.query("SELECT uniqExact(TraceId) FROM otel_traces_trace_id_ts").result_rows == [(4,)]
        assert client.query("SELECT sum(rows), uniqExact(segment) FROM ingest_segments").result_rows == [
            (6, 4)
        ]
        assert logs[Signal.TRACES].sealed() == []


def test_two_collectors_do_not_share_a_log(tmp_path: Path) -> None:
    url = StoreUrl.parse(f"chdb://{tmp_path}/store")
    with open_logs(url), pytest.raises(StoreLocked, match="--log FOLDER"), contextlib.ExitStack() as stack:
        stack.enter_context(open_logs(url))


def test_inserting_leaves_nothing_in_the_working_directory(
    client: Client, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine caches a schema that comes as a string in ./__cache__."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    log = SegmentLog(folders.log, Signal.TRACES)
    log.append([trace_request("a").SerializeToString(), deep("b")])
    log.seal()
    inserter(client, folders).insert(log.sealed()[0].path, Signal.TRACES)
    assert names(client) == ["a", "b"]
    assert list(elsewhere.iterdir()) == []
