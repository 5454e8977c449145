"""A scripted OTLP/HTTP target that knows repeated requests by their bytes, as the collector does, and counts them."""

from __future__ import annotations

import gzip
import hashlib
import ssl
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Said:
    """An answer to one request."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    taken: bool | None = None  # None: as the status says


@dataclass
class Target:
    """What arrived, and what is answered.

    `answers` are given first, one a request; then `judge` is asked with each body, and 200 where it says nothing.
    """

    url: str = ""
    spans: Counter[str] = field(
        default_factory=Counter
    )  # span id in hex → how many times, repeated requests left out
    records: Counter[str] = field(default_factory=Counter)  # body of a log record, the same
    requests: list[tuple[str, dict[str, str], bytes]] = field(
        default_factory=list
    )  # path, headers, unpacked body
    repeats: int = 0
    answers: deque[Said] = field(default_factory=deque)
    judge: Callable[[bytes], Said | None] = lambda body: None
    changed: threading.Condition = field(default_factory=threading.Condition)
    _seen: set[bytes] = field(default_factory=set)

    def take(self, path: str, headers: dict[str, str], body: bytes) -> Said:
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        elif headers.get("content-encoding") == "deflate":
            body = zlib.decompress(body)
        with self.changed:
            self.requests.append((path, headers, body))
            said = self.answers.popleft() if self.answers else self.judge(body) or Said(200)
            if said.taken if said.taken is not None else said.status == 200:
                self._count(path, body)
            self.changed.notify_all()
        return said

    def _count(self, path: str, body: bytes) -> None:
        digest = hashlib.sha256(path.encode() + body).digest()
        if digest in self._seen:
            self.repeats += 1
            return
        self._seen.add(digest)
        if path == "/v1/traces":
            request = ExportTraceServiceRequest.FromString(body)
            self.spans.update(
                span.span_id.hex()
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            )
        else:
            logs = ExportLogsServiceRequest.FromString(body)
            self.records.update(
                record.body.string_value
                for resource in logs.resource_logs
                for scope in resource.scope_logs
                for record in scope.log_records
            )

    def wait(self, enough: Callable[[Target], bool], timeout_s: float = 30.0) -> None:
        """Blocks until something is true of what has come."""
        deadline = time.monotonic() + timeout_s
        with self.changed:
            while not enough(self):
                left = deadline - time.monotonic()
                assert left > 0, (
                    f"{len(self.spans)} spans in {len(self.requests)} requests after {timeout_s:g} s"
                )
                self.changed.wait(left)


@contextmanager
def otlp_target(port: int = 0, *, tls: ssl.SSLContext | None = None) -> Iterator[Target]:
    """A running target; `target.url` is the OTLP endpoint (without /v1/traces)."""
    target = Target()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            said = target.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            self.send_response(said.status)
            for name, value in said.headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(said.body)))
            self.end_headers()
            self.wfile.write(said.body)

        def log_message(self, format: str, *args: object) -> None:
            """No access log."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients are killed in these tests."""

    with Server(("127.0.0.1", port), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        target.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        try:
            yield target
        finally:
            server.shutdown()
            thread.join(10)
