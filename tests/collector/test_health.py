"""What an operator sees: /healthz, /metrics in Prometheus' own words, and `spanloop status`."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from tests.collector.capture_process import running, trace_request
from tests.collector.otlp_calls import export
from tests.collector.receivers import receivers
from tests.collector.test_capture import post

from spanloop.main import cli
from spanloop_collector.statistics import Gauge, Statistics


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of an exposition, which Prometheus' own parser reads; each series is there once."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge"), family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def test_metrics_are_read_by_prometheus_and_count(tmp_path: Path) -> None:
    quarantine = tmp_path / "quarantine"
    quarantine.mkdir()
    (quarantine / "traces-1.otlp.0.otlp").write_bytes(b"12345")
    (quarantine / "traces-1.otlp.0.otlp.reason.txt").write_bytes(b"not counted")
    with receivers(tmp_path, min_free_bytes=1) as both:
        before = samples(both.post("/metrics", method="GET").body.decode())
        body = trace_request("a", "b").SerializeToString()
        for _ in range(2):
            both.post(body=body)
        both.post(body=b"\xff")
        both.post(body=b"")
        export(both.grpc, trace_request("c").SerializeToString())
        answer = both.post("/metrics", method="GET")
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        after = samples(answer.body.decode())
        log_bytes = both.intake.log_bytes

    def value(name: str, **labels: str) -> float:
        return after[name, frozenset(labels.items())]

    # Series of known labels are there from the start: a rate over one that appears with its first event misses that event.
    assert before.keys() == after.keys()
    assert not any(count for (name, _), count in before.items() if name.endswith("_total"))
    http = {"signal": "traces", "protocol": "http"}
    assert value("spanloop_requests_total", **http, outcome="ok") == 2
    assert value("spanloop_requests_total", **http, outcome="refused") == 1
    assert value("spanloop_requests_total", **http, outcome="empty") == 1
    assert value("spanloop_requests_total", signal="traces", protocol="grpc", outcome="ok") == 1
    assert value("spanloop_requests_repeated_total", signal="traces") == 1
    assert value("spanloop_received_bytes_total", **http) == 2 * len(body) + 1
    assert value("spanloop_items_acknowledged_total", signal="traces") == 3
    assert value("spanloop_items_inserted_total", signal="traces", decoder="engine") == 0
    assert value("spanloop_log_bytes") == log_bytes > 0
    assert value("spanloop_quarantine_files") == 1
    assert value("spanloop_quarantine_bytes") == 5
    assert value("spanloop_accepting") == 1
    assert value("spanloop_disk_free_bytes") > 2**53 / 10**9  # whole, not rounded to six digits
    assert value("spanloop_disk_free_bytes") % 1024 == 0


def test_labels_are_escaped() -> None:
    text = Statistics().prometheus([Gauge("spanloop_log_bytes", 1, (("odd", 'a"b\\c\nd'),))])
    assert samples(text)["spanloop_log_bytes", frozenset({("odd", 'a"b\\c\nd')})] == 1


def test_the_lag_is_the_age_of_the_oldest_request(tmp_path: Path) -> None:
    with receivers(tmp_path, min_free_bytes=0) as both:

        def lag() -> float:
            return float(json.loads(both.post("/healthz", method="GET").body)["lag_s"])

        assert lag() == 0
        both.post(body=trace_request("a").SerializeToString())
        (path,) = (tmp_path / "log").glob("*.otlp")
    os.utime(path, (0, 1_000_000_000))  # an earlier run left it
    with receivers(tmp_path, min_free_bytes=0) as both:
        both.post(body=trace_request("b").SerializeToString())
        assert lag() > 10**8
        log = next(iter(both.logs.segments.values()))
        log.remove(log.sealed()[0])
        assert lag() < 10**8


def test_status_shows_collector_and_quarantine(tmp_path: Path) -> None:
    store = f"chdb://{tmp_path}/store"
    quarantine = tmp_path / "store" / "quarantine"

    def status(*more: str) -> str:
        result = CliRunner().invoke(cli, ["status", "--store", store, *more])
        assert result.exit_code == 0, result.output
        return result.output

    with running(tmp_path / "store") as capture:
        body = trace_request("twice").SerializeToString()
        assert post(f"{capture.otlp_http}/v1/traces", body)[0] == 200
        capture.flush()
        assert json.loads(status("--json"))["collector"]["status"] == "ok"
        assert "collector  ok, 0 bytes wait for the store" in status()
        quarantine.mkdir(exist_ok=True)
        (quarantine / "traces-x.otlp.3.otlp").write_bytes(b"12345")
        shown = status()
        assert f"quarantine 1 requests that nothing could decode, 5 bytes in {quarantine}" in shown
        assert "collector  warning" in shown
        with urllib.request.urlopen(f"{capture.otlp_http}/healthz") as answer:
            assert json.load(answer)["quarantine"] == {"folder": str(quarantine), "files": 1, "bytes": 5}
        # Spans that are there twice are counted once.
        capture.query("INSERT INTO otel_traces SELECT * FROM otel_traces")
        assert "spans      1 in 1 traces" in status()
        assert capture.stop() == 0
    found = json.loads(status("--json"))
    assert (found["collector"], found["quarantine"]["files"]) == (None, 1)


@pytest.mark.parametrize("text", ["500MB", "2 GiB", "1024", "0", "1.5kib"])
def test_sizes_have_units(text: str) -> None:
    from spanloop.options import SIZE

    expected = {"500MB": 500_000_000, "2 GiB": 2 << 30, "1024": 1024, "0": 0, "1.5kib": 1536}
    assert SIZE.convert(text, None, None) == expected[text]


@pytest.mark.parametrize("text", ["", "-1", "many", "5 apples", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    result = CliRunner().invoke(cli, ["up", "--min-free", text])
    assert result.exit_code == 2
    assert "is no size; write 500MB" in result.output
