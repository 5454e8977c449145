"""`spanloop import`: every format there is, with a collector running and without."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.collector.capture_process import running, trace_request

from spanloop.main import cli
from spanloop_collector.errors import ImportFailed
from spanloop_collector.files import read_requests
from spanloop_collector.importing import import_files
from spanloop_store import connect
from spanloop_store.otlp.frames import frame
from spanloop_store.retention import set_retention

FIXTURES = Path(__file__).parents[1] / "fixtures"
TRACES = FIXTURES / "otlp" / "a_sync_basic.json"
LOGS = FIXTURES / "frameworks" / "oainode_otel_tools.logs.json"


def write(folder: Path, kind: str) -> Path:
    one, two = trace_request("one", trace=1), trace_request("two", trace=2)
    compact = [json.dumps(json.loads(TRACES.read_text())), json.dumps(json.loads(LOGS.read_text()))]
    contents = {
        "json": TRACES.read_bytes(),
        "jsonl": "\n".join([compact[0], "", compact[1]]).encode() + b"\n",
        "protobuf": one.SerializeToString(),
        "delimited": frame(one.SerializeToString()) + frame(two.SerializeToString()),
    }
    path = folder / f"input.{kind}"
    path.write_bytes(contents[kind.removesuffix(".gz")])
    if kind.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


SPANS_IN_TRACES = sum(
    len(scope["spans"])
    for resource in json.loads(TRACES.read_text())["resourceSpans"]
    for scope in resource["scopeSpans"]
)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("kind", "requests", "spans"),
    [("json", 1, SPANS_IN_TRACES), ("jsonl", 2, SPANS_IN_TRACES), ("protobuf", 1, 1), ("delimited", 2, 2)],
)
def test_every_format_is_recognised(
    tmp_path: Path, kind: str, packed: str, requests: int, spans: int
) -> None:
    found = list(read_requests(write(tmp_path, kind + packed)))
    assert len(found) == requests
    assert sum(item.checked.items for item in found if item.signal == "traces") == spans


def test_a_byte_order_mark_is_no_part_of_the_json(tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    path.write_bytes(b"\xef\xbb\xbf" + TRACES.read_bytes())
    assert [found.checked.items for found in read_requests(path)] == [SPANS_IN_TRACES]


def test_what_a_collector_leaves_out_is_not_taken_for_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns of a retention that was just changed a minute later; a spool would be deleted by then."""
    old = write(tmp_path, "delimited")
    with running(tmp_path / "store", SPANLOOP_RETENTION_DAYS="30") as capture:
        with contextlib.closing(connect(capture.url)) as client:
            set_retention(client, None)
        with pytest.raises(ImportFailed, match="left out 1 items: 1 with a time before"):
            import_files(capture.url, [old], lambda _: None)


def test_import_without_a_collector_opens_the_store_itself(tmp_path: Path) -> None:
    store = f"chdb://{tmp_path}/store"
    files = [write(tmp_path, "jsonl"), write(tmp_path, "delimited")]
    result = CliRunner().invoke(cli, ["import", "--store", store, "--json", *map(str, files)])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["requests"], summary["spans"]) == (4, SPANS_IN_TRACES + 2)
    client = connect(store)
    assert client.query("SELECT count() FROM otel_traces").result_rows == [(SPANS_IN_TRACES + 2,)]
    assert client.query("SELECT count() FROM otel_logs").result_rows == [(summary["log_records"],)]
    client.close()
    assert list((tmp_path / "store" / "log").glob("*.otlp")) == []


def test_import_goes_through_the_collector_that_runs(tmp_path: Path) -> None:
    with running(tmp_path / "store") as capture:
        summary = import_files(capture.url, [write(tmp_path, "delimited")], lambda _: None)
        assert summary.spans == 2
        assert capture.query("SELECT SpanName FROM otel_traces ORDER BY 1") == [("one",), ("two",)]
        (row,) = capture.query("SELECT DISTINCT startsWith(collector, 'spanloop-') FROM ingest_segments")
        assert row == (True,)


@pytest.mark.parametrize("collector", [False, True], ids=["without a collector", "through one"])
def test_a_file_imported_twice_is_stored_once(tmp_path: Path, collector: bool) -> None:
    store = f"chdb://{tmp_path}/store"
    files = [write(tmp_path, "jsonl"), write(tmp_path, "delimited")]
    with running(tmp_path / "store") if collector else contextlib.nullcontext():
        first = import_files(store, files, lambda _: None)
        again = import_files(store, files, lambda _: None)
    assert (first.spans, first.repeated) == (SPANS_IN_TRACES + 2, 0)
    assert (again.requests, again.spans, again.log_records) == (4, 0, 0)
    assert again.repeated == first.spans + first.log_records
    result = CliRunner().invoke(cli, ["import", "--store", store, str(files[1])])
    assert "imported 0 spans" in result.stdout
    assert "left out 2 spans and log records that were stored before" in result.stdout
    with contextlib.closing(connect(store)) as client:
        assert client.query("SELECT count() FROM otel_traces").result_rows == [(first.spans,)]
        assert client.query("SELECT count() FROM otel_logs").result_rows == [(first.log_records,)]


def test_a_bad_line_is_named_and_nothing_is_stored(tmp_path: Path) -> None:
    good = write(tmp_path, "jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(good.read_bytes() + b"{broken\n")
    store = f"chdb://{tmp_path}/store"
    with pytest.raises(ImportFailed, match=r"bad\.jsonl, line 4"):
        import_files(store, [good, bad], lambda _: None)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x00\x01\x02", b'{"a": 1}', b"[1, 2]", gzip.compress(b"x" * 99, mtime=0)[:20]],
    ids=["empty", "text", "bytes", "object", "list", "gzip that is cut"],
)
def test_files_that_are_no_otlp_say_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ImportFailed, match="file"):
        list(read_requests(path))


@settings(deadline=None)  # a busy machine is no failure
@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(content)
    with contextlib.suppress(ImportFailed):
        list(read_requests(path))


def test_ids_that_are_none_are_counted(tmp_path: Path) -> None:
    request = trace_request("good", "bad")
    request.resource_spans[0].scope_spans[0].spans[1].span_id = b""
    path = tmp_path / "ids.pb"
    path.write_bytes(request.SerializeToString())
    summary = import_files(f"chdb://{tmp_path}/store", [path], lambda _: None)
    assert (summary.spans, summary.rejected) == (1, 1)
    assert "a span id of 0 bytes" in summary.reasons[0]


def test_what_the_store_would_expire_at_once_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPANLOOP_RETENTION_DAYS", "30")
    store = f"chdb://{tmp_path}/store"
    old = write(tmp_path, "delimited")
    with pytest.raises(ImportFailed, match="the store keeps 30 days; nothing was stored"):
        import_files(store, [old], lambda _: None)
    with contextlib.closing(connect(store)) as client:
        assert client.query("SELECT count() FROM otel_traces").result_rows == [(0,)]
        set_retention(client, None)
    assert import_files(store, [old], lambda _: None).spans == 2
