"""What leaves the client on its way to a ClickHouse server: the insert with its query in the body, not in the URL."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import clickhouse_connect
import pytest
from tests.collector.capture_process import running, trace_request

from spanloop_store import StoreUrl, read_owner
from spanloop_store.errors import StoreUnavailable
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal

_TEN_BYTES = b"\n\x08\x12\x06\x12\x04\x2a\x02xx"
_SMALLEST_PROXY_BYTES = 4096  # of a request line; nginx takes 8 KiB


@dataclass
class Recorder:
    """A proxy in front of the embedded endpoint that answers segment inserts itself: the endpoint has no input()."""

    port: int = 0
    user: str = ""
    password: str = ""
    inserts: list[tuple[str, bytes]] = field(default_factory=list)  # request line's target, body
    errors: list[bytes] = field(default_factory=list)  # answered to the next inserts, one each


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    folder = tmp_path_factory.mktemp("store")
    with running(folder) as capture:
        found = Recorder()
        behind = capture.clickhouse.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if body.startswith(b"INSERT INTO otel_traces"):
                    found.inserts.append((self.path, body))
                    if found.errors:
                        self._answer(500, found.errors.pop(0), {})
                    else:
                        self._answer(200, b"", {})
                    return
                with contextlib.closing(http.client.HTTPConnection(behind, timeout=60)) as connection:
                    headers = {name: text for name, text in self.headers.items() if name.lower() != "host"}
                    connection.request(self.command, self.path, body, headers)
                    answer = connection.getresponse()
                    kept = {
                        name: text
                        for name, text in answer.headers.items()
                        if name.lower() not in ("content-length", "transfer-encoding", "connection")
                    }
                    self._answer(answer.status, answer.read(), kept)

            do_GET = do_POST

            def _answer(self, status: int, text: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(text))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            found.port = server.server_port
            owner = read_owner(StoreUrl.parse(capture.url))
            assert owner is not None
            found.user, found.password = owner.user, owner.password
            yield found
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def inserter(recorder: Recorder, tmp_path: Path) -> Iterator[SegmentInserter]:
    recorder.inserts.clear()
    recorder.errors.clear()
    client = clickhouse_connect.get_client(
        host="127.0.0.1", port=recorder.port, username=recorder.user, password=recorder.password
    )
    yield SegmentInserter(client, embedded=False, quarantine=tmp_path / "quarantine")
    client.close()


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    path = tmp_path / "traces-1.otlp"
    # An empty span of ten bytes: the length of its request is the byte of a line end, and no part of the query.
    path.write_bytes(frame(_TEN_BYTES) + frame(trace_request("a").SerializeToString()))
    return path


def test_the_query_travels_in_the_body(recorder: Recorder, inserter: SegmentInserter, segment: Path) -> None:
    assert segment.read_bytes().startswith(b"\n\n"), "bytes that look like a line end come first"
    done = inserter.insert(segment, Signal.TRACES, items=2)
    assert (done.requests, done.engine_rows) == (2, 2)
    ((target, body),) = recorder.inserts
    assert len(target) < _SMALLEST_PROXY_BYTES
    assert "query=" not in target
    query, _, rows = body.partition(b"FORMAT Protobuf\n")
    assert rows == segment.read_bytes()
    assert b"input(" in query
    assert f"insert_deduplication_token = '{segment.name}'".encode() in query


def test_a_value_that_the_server_does_not_render_is_found_in_python(
    recorder: Recorder, inserter: SegmentInserter, segment: Path
) -> None:
    deep = trace_request("deep")
    value = deep.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="deep").value
    value.array_value.values.add().array_value.values.add().string_value = "x"
    segment.write_bytes(segment.read_bytes() + frame(deep.SerializeToString()))
    recorder.errors.append(b"Code: 395. DB::Exception: a hard array: while executing 'FUNCTION throwIf'")
    done = inserter.insert(segment, Signal.TRACES, items=3)
    assert (done.engine_rows, done.fallback_rows, done.quarantined_rows) == (2, 1, 0)
    whole, easy, hard = (body for _, body in recorder.inserts)
    assert whole.endswith(segment.read_bytes())
    assert not easy.endswith(segment.read_bytes())
    assert b"FORMAT Protobuf\n" in easy
    assert b"FORMAT JSONCompactEachRow\n" in hard


def test_a_server_that_is_short_of_memory_is_tried_again_later(
    recorder: Recorder, inserter: SegmentInserter, segment: Path
) -> None:
    recorder.errors.append(b"Code: 241. DB::Exception: Memory limit (total) exceeded")
    with pytest.raises(StoreUnavailable, match="Memory limit"):
        inserter.insert(segment, Signal.TRACES, items=2)
    assert len(recorder.inserts) == 1
