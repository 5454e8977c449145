"""A sender's own resend: acknowledged again, stored once; across restarts, and never on the word of a lost request."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from tests.collector.capture_process import running, trace_request
from tests.collector.otlp_calls import export
from tests.collector.receivers import Receivers, receivers

from spanloop_collector.folders import Folders, Logs, recovered
from spanloop_collector.http_receiver import REPEATED_HEADER
from spanloop_collector.repeats import FILE_NAME, Repeats
from spanloop_exporter.segments import SegmentLog
from spanloop_store.otlp.signals import Signal

BODY = trace_request("a", "b").SerializeToString()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Receivers]:
    with receivers(tmp_path, min_free_bytes=0) as both:
        yield both


def test_the_same_request_again_is_acknowledged_and_not_logged(both: Receivers) -> None:
    first, second = both.post(body=BODY), both.post(body=BODY)
    assert (first.status, first.body, first.headers.get(REPEATED_HEADER)) == (200, b"", None)
    assert (second.status, second.body, second.headers.get(REPEATED_HEADER)) == (200, b"", "true")
    assert export(both.grpc, BODY) == b""  # by another way, and so packed in another way
    assert both.logged() == [BODY]
    assert both.statistics.total("spanloop_requests_repeated_total", signal="traces") == 2
    assert both.statistics.total("spanloop_items_acknowledged_total") == 2
    assert both.statistics.total("spanloop_requests_total", outcome="ok") == 3


def test_the_same_partial_success_is_told_again(both: Receivers) -> None:
    request = trace_request("good", "bad")
    request.resource_spans[0].scope_spans[0].spans[1].span_id = b""
    answers = [both.post(body=request.SerializeToString()).body for _ in range(2)]
    assert answers[0] == answers[1] != b""
    assert len(both.logged()) == 1


def test_json_again_is_one_request(both: Receivers) -> None:
    span = {"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "json"}
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
    for text in (body, body.replace(" ", "")):
        assert both.post(body=text.encode(), kind="application/json").status == 200
    assert len(both.logged()) == 1


def log_request(time_ns: int) -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=time_ns)
    record.body.string_value = "tick"
    return request


def test_log_records_without_a_time_are_events_of_their_own(both: Receivers) -> None:
    for time_ns in (5, 5, 0, 0, 0):
        assert both.post("/v1/logs", log_request(time_ns).SerializeToString()).status == 200
    assert both.logged(Signal.LOGS) == [log_request(time_ns).SerializeToString() for time_ns in (5, 0, 0, 0)]


def test_one_body_under_both_signals_is_two_requests(tmp_path: Path) -> None:
    repeats = Repeats(tmp_path)
    assert repeats.digest(Signal.TRACES, BODY) != repeats.digest(Signal.LOGS, BODY)


def test_copies_that_come_while_the_first_is_synced_share_its_fate(both: Receivers) -> None:
    async def send() -> list[bool | BaseException]:
        work = [both.intake.take(Signal.TRACES, BODY) for _ in range(5)]
        return [
            answer if isinstance(answer, BaseException) else answer.repeated
            for answer in await asyncio.gather(*work, return_exceptions=True)
        ]

    log = both.logs.segments[Signal.TRACES]
    real = os.fdatasync

    def broken(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spanloop_exporter.segments.os.fdatasync", broken)
        failed = both.run(send())
    assert os.fdatasync is real
    assert all(isinstance(answer, BaseException) for answer in failed)
    assert both.logged() == []
    # What failed is not taken for known.
    assert both.run(send()) == [False, True, True, True, True]
    assert both.logged() == [BODY]
    assert log.size > 0


def test_a_sender_that_gives_up_does_not_take_another_along(both: Receivers) -> None:
    async def send() -> bool:
        first = asyncio.create_task(both.intake.take(Signal.TRACES, BODY))
        await asyncio.sleep(0)
        second = asyncio.create_task(both.intake.take(Signal.TRACES, BODY))
        await asyncio.sleep(0)
        first.cancel()
        return (await second).repeated

    assert both.run(send()) is True
    assert both.logged() == [BODY]


# --- the window on the disk ------------------------------------------------------------------------------------------


def opened(folder: Path) -> Logs:
    (folder / "log").mkdir(exist_ok=True)
    return recovered(Folders(folder / "log", folder / "quarantine"))


def closed(logs: Logs) -> None:
    for segments in logs.segments.values():
        segments.close()
    logs.repeats.close()


def append(logs: Logs, payload: bytes) -> SegmentLog:
    log = logs.segments[Signal.TRACES]
    digest = logs.repeats.digest(Signal.TRACES, payload)
    log.append([payload], 1, lambda name: logs.repeats.logged([digest], name))
    return log


def knows(logs: Logs, payload: bytes) -> bool:
    return logs.repeats.digest(Signal.TRACES, payload) in logs.repeats


@pytest.mark.parametrize("inserted", [False, True], ids=["in the log", "removed"])
def test_a_restart_remembers(tmp_path: Path, inserted: bool) -> None:
    logs = opened(tmp_path)
    log = append(logs, BODY)
    log.seal()
    if inserted:
        log.remove(log.sealed()[0])
    # No close: the process was killed.
    again = opened(tmp_path)
    assert knows(again, BODY)
    assert not knows(again, BODY[:-1])
    assert len(again.segments[Signal.TRACES].sealed()) == (0 if inserted else 1)
    closed(again)


def test_a_torn_request_is_not_known_after_a_restart(tmp_path: Path) -> None:
    """It was never acknowledged: an acknowledgement for its resend would be one for nothing."""
    logs = opened(tmp_path)
    append(logs, BODY)
    other = trace_request("torn").SerializeToString()
    append(logs, other)
    (path,) = (tmp_path / "log").glob("traces-*.otlp")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)
    again = opened(tmp_path)
    assert (knows(again, BODY), knows(again, other)) == (True, False)
    closed(again)


def test_digests_are_on_the_disk_before_the_segment_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = opened(tmp_path)
    log = append(logs, BODY)
    log.seal()
    seen = []
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: seen.append(knows_on_disk(tmp_path)))
    log.remove(log.sealed()[0])
    assert seen == [True]


def knows_on_disk(folder: Path) -> bool:
    """By the file alone."""
    copy = folder / "copy"
    copy.mkdir()
    (copy / FILE_NAME).write_bytes((folder / "log" / FILE_NAME).read_bytes())
    repeats = Repeats(copy)
    return repeats.digest(Signal.TRACES, BODY) in repeats


def test_a_file_that_cannot_be_written_does_not_keep_the_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk the segment is what has to go."""
    logs = opened(tmp_path)
    log = append(logs, BODY)
    log.seal()

    def broken(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spanloop_collector.repeats.os.pwrite", broken)
    log.remove(log.sealed()[0])
    assert list((tmp_path / "log").glob("*.otlp")) == []
    assert "No space left on device" in caplog.text
    assert knows(logs, BODY)
    closed(logs)


@pytest.mark.parametrize("content", [b"", b"SPLREP01", b"x" * 1000], ids=["empty", "cut", "foreign"])
def test_a_broken_file_is_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    repeats = Repeats(tmp_path, capacity=8)
    assert repeats.digest(Signal.TRACES, BODY) not in repeats
    repeats.close()
    assert (tmp_path / FILE_NAME).stat().st_size == 32 + 8 * 16


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(1, 12), max_size=12), st.integers(1, 10))
def test_the_window_holds_the_newest_in_memory_and_on_the_disk(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], capacity: int
) -> None:
    folder = tmp_path_factory.mktemp("window")
    repeats = Repeats(folder, capacity)
    written: list[bytes] = []
    everything = [repeats.digest(Signal.TRACES, bytes([n])) for n in range(sum(sizes))]
    for number, size in enumerate(sizes):
        digests = everything[len(written) : len(written) + size]
        repeats.logged(digests, f"segment-{number}")
        segment = SegmentLog(folder, Signal.TRACES)
        segment.append([b"x"])
        segment.seal()
        (sealed,) = segment.sealed()
        sealed.path.rename(folder / f"segment-{number}")
        repeats.removing(type(sealed)(folder / f"segment-{number}", Signal.TRACES, 1, 1))
        written += digests
    again = Repeats(folder, capacity)
    newest = set(written[-capacity:])
    for window in (repeats, again):
        assert {digest for digest in everything if digest in window} == newest
    assert (folder / FILE_NAME).stat().st_size == 32 + 16 * capacity
    again.close()
    repeats.close()


# --- the whole process -----------------------------------------------------------------------------------------------


def test_a_resend_after_kill_9_and_after_a_stop_is_one_row(tmp_path: Path) -> None:
    from tests.collector.test_capture import post

    def send(address: str) -> None:
        assert post(f"{address}/v1/traces", BODY)[0] == 200

    with running(tmp_path) as capture:
        send(capture.otlp_http)
        capture.kill()  # before or after the insert
    with running(tmp_path) as capture:
        send(capture.otlp_http)
        capture.flush()
        assert capture.stop() == 0
    with running(tmp_path) as capture:
        send(capture.otlp_http)
        capture.flush()
        assert capture.query("SELECT SpanName, count() FROM otel_traces GROUP BY 1 ORDER BY 1") == [
            ("a", 1),
            ("b", 1),
        ]


def test_the_json_form_of_a_known_request_is_known(both: Receivers) -> None:
    """The hash is of the protobuf, whatever it was sent as."""
    request = trace_request("form")
    body = json.loads(json_format.MessageToJson(request))
    span = body["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    found = request.resource_spans[0].scope_spans[0].spans[0]
    span |= {"traceId": found.trace_id.hex(), "spanId": found.span_id.hex()}
    assert both.post(body=request.SerializeToString()).status == 200
    assert both.post(body=json.dumps(body).encode(), kind="application/json").status == 200
    assert len(both.logged()) == 1
