"""Several collectors in front of one server, each with a log of its own; a dead one's log is replayed by the next.

No ClickHouse server runs here: the embedded engine stands for it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from tests.collector.capture_process import Capture, running, trace_request
from tests.collector.stand_in import Server, server
from tests.collector.test_capture import post

from spanloop_collector.folders import candidates, open_logs
from spanloop_store import StoreUrl
from spanloop_store.errors import StoreLocked
from spanloop_store.otlp.signals import Signal

BODY = trace_request("left").SerializeToString()
URL = StoreUrl.parse("clickhouse://u:p@db.invalid:8123/d")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_each_collector_of_a_server_has_its_own_folder(home: Path) -> None:
    with open_logs(URL) as one, open_logs(URL) as two:
        assert one.folders.log != two.folders.log
        assert one.folders.quarantine != two.folders.quarantine
        assert home in two.folders.log.parents
        third = StoreUrl.parse("clickhouse://u:p@other.invalid:8123/d")
        assert not set(candidates(third)) & set(candidates(URL))
    with open_logs(URL) as again:
        assert again.folders == one.folders


def test_what_a_dead_one_left_is_taken_over_by_the_next(home: Path) -> None:
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(open_logs(URL))
        with open_logs(URL) as two:
            two.segments[Signal.TRACES].append([BODY], 1)
        # Two is gone, its log is not empty; one still runs, and the next comes.
        left = [path.name for path in two.folders.log.glob("*.otlp")]
        assert len(left) == 1
        stack.close()
        del one
        with open_logs(URL) as next_one:
            (segment,) = next_one.segments[Signal.TRACES].sealed()
            assert [segment.name] == left  # its name is the token of its insert
            assert segment.path.parent == next_one.folders.log != two.folders.log
            assert next_one.repeats.digest(Signal.TRACES, BODY) in next_one.repeats
            assert list(two.folders.log.glob("*.otlp")) == []


def test_a_running_one_is_left_alone(home: Path) -> None:
    with open_logs(URL) as one:
        one.segments[Signal.TRACES].append([BODY], 1)
        with open_logs(URL) as two:
            assert two.segments[Signal.TRACES].sealed() == []
        assert one.segments[Signal.TRACES].size


def test_a_named_folder_is_the_only_one(tmp_path: Path) -> None:
    with open_logs(URL, tmp_path / "mine") as logs:
        assert logs.folders.log == tmp_path / "mine"
        with pytest.raises(StoreLocked, match="--log FOLDER"), open_logs(URL, tmp_path / "mine"):
            pass


def collector(server: Server, *more: str) -> contextlib.AbstractContextManager[Capture]:
    return running(Path("unused"), "--store", server.url, *more)


def test_two_collectors_insert_into_one_server(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with server(tmp_path) as store:
        with collector(store) as one, collector(store) as two:
            for number in range(1, 21):
                target = (one, two)[number % 2]
                request = trace_request("x", "y", trace=number)
                if number > 18:  # a value that Python renders
                    span = request.resource_spans[0].scope_spans[0].spans[0]
                    value = span.attributes.add(key="deep").value
                    value.array_value.values.add().array_value.values.add().string_value = "z"
                assert post(f"{target.otlp_http}/v1/traces", request.SerializeToString())[0] == 200
            one.flush()
            two.kill()  # with or without a rest in its log
        with collector(store) as three:
            three.flush()
        assert store.query("SELECT uniqExact(TraceId), count() FROM otel_traces") == [(20, 40)]
        assert store.query(
            "SELECT DISTINCT SpanAttributes['deep'] AS deep FROM otel_traces ORDER BY deep"
        ) == [
            ("",),
            ('[["z"]]',),
        ]
        assert store.query("SELECT uniqExact(collector) >= 2 FROM ingest_segments") == [(True,)]
    assert list(home.glob(".spanloop/collector/**/*.otlp")) == []
