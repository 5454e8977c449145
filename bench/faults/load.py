"""Senders under load: several threads over HTTP and gRPC that never give a request up until it is acknowledged."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.faults.ledger import Ledger

EXPORT_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_RETRY_S = 0.02  # between two tries of a sender whose collector is away
_TIMEOUT_S = 30.0
_RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
_LIMIT = 128 << 20  # bytes of a gRPC message


@dataclass(frozen=True)
class Shape:
    """What a request looks like.

    Args:
        spans: at most so many; each request has a random number of them.
        least_spans: at least so many.
        text_bytes: length of the longest text of a span.
        deep_every: one request in so many has a value that only the fallback decoder renders; 0: none.
        start_ns: the first span's start; None: now.
        step_ns: added from request to request; below 0 the clock runs backwards.
    """

    spans: int = 8
    least_spans: int = 1
    text_bytes: int = 1000
    deep_every: int = 5
    start_ns: int | None = None
    step_ns: int = 1000


SMALL = Shape()


def request_bytes(number: int, spans: int, shape: Shape = SMALL) -> bytes:
    """Request `number`, the same bytes each time it is made."""
    rng = random.Random(number)
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = f"agent-{number % 3}"
    scope = resource.scope_spans.add()
    scope.scope.name = "faults"
    base = 1_790_000_000_000_000_000 if shape.start_ns is None else shape.start_ns
    for index in range(1, spans + 1):
        span = scope.spans.add(name=f"step {index % 4}", kind=3)
        span.trace_id = number.to_bytes(16, "big")
        span.span_id = index.to_bytes(8, "big")
        span.start_time_unix_nano = base + number * shape.step_ns + index
        span.end_time_unix_nano = span.start_time_unix_nano + rng.randrange(10**9)
        span.attributes.add(key="gen_ai.operation.name").value.string_value = "chat"
        text = rng.randbytes(shape.text_bytes // 2).hex()
        span.attributes.add(key="gen_ai.input.messages").value.string_value = text
        span.attributes.add(key="gen_ai.usage.input_tokens").value.int_value = number
        if shape.deep_every and number % shape.deep_every == 0:
            inner = span.attributes.add(key="deep").value.array_value.values.add()
            inner.array_value.values.add().int_value = index
    return request.SerializeToString()


class Refused(Exception):
    """An answer that asks to try again."""


class Unexpected(Exception):
    """An answer that no sender should ever see."""


class Target:
    """Where the collector listens now: a new address after each start; senders wait while there is none."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._addresses: tuple[str, str] | None = None
        self._stopped = False

    def set(self, otlp_http: str, otlp_grpc: str) -> None:
        """The collector is up."""
        with self._condition:
            self._addresses = (otlp_http, otlp_grpc)
            self._condition.notify_all()

    def unset(self) -> None:
        """It is going to die."""
        with self._condition:
            self._addresses = None

    def get(self) -> tuple[str, str] | None:
        """(OTLP/HTTP base URL, OTLP/gRPC host:port); None: the senders are to stop."""
        with self._condition:
            self._condition.wait_for(lambda: self._addresses is not None or self._stopped)
            return self._addresses

    def stop(self) -> None:
        """Lets waiting senders go."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()


class Senders:
    """Client threads. A request that got no answer, or a retryable one, is sent again byte for byte until it is acknowledged.

    Args:
        target: where to.
        ledger: what was sent and acknowledged.
        threads: even ones speak HTTP (every second of those with gzip), odd ones gRPC.
        shape: of the requests.
        twice: send each acknowledged request a second time, as a client does whose answer was lost.
    """

    def __init__(
        self,
        target: Target,
        ledger: Ledger,
        threads: int = 4,
        shape: Shape = SMALL,
        *,
        twice: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        self._target = target
        self._ledger = ledger
        self._shape = shape
        self._twice = twice
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self.problems: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(index,), name=f"sender-{index}", daemon=True)
            for index in range(threads)
        ]

    def __enter__(self) -> Senders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            # Nobody starts the collector again: let those go that wait for it.
            self._target.unset()
            self._target.stop()
        self.finish()

    def finish(self, timeout_s: float = 120.0) -> None:
        """No new requests; waits until those begun are acknowledged.

        Raises:
            RuntimeError: a sender got an answer that it should not, or none at all.
        """
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout_s)
        alive = [thread.name for thread in self._threads if thread.is_alive()]
        self._target.stop()
        if self.problems or alive:
            raise RuntimeError(f"senders failed: {self.problems[:3]}; still waiting: {alive}")

    def _run(self, index: int) -> None:
        rng = random.Random(index)
        wire = _Grpc() if index % 2 else _Http(compressed=index % 4 == 2)
        try:
            while not self._stopping.is_set():
                number = self._ledger.begin()
                spans = rng.randint(self._shape.least_spans, self._shape.spans)
                body = request_bytes(number, spans, self._shape)
                self._ledger.sent(number, spans)
                for _ in range(2 if self._twice else 1):
                    if not self._deliver(wire, body):
                        return
                self._ledger.acknowledged(number, spans)
                if self._pause_s:
                    self._stopping.wait(self._pause_s)
        except Exception as error:
            self.problems.append(f"{type(error).__name__}: {error}")
        finally:
            wire.close()

    def _deliver(self, wire: _Http | _Grpc, body: bytes) -> bool:
        """Until it is acknowledged; False: the run ends without an answer."""
        first = True
        while (address := self._target.get()) is not None:
            if not first:
                self._ledger.again()
            first = False
            try:
                wire.send(address, body)
                return True
            except Refused as refusal:
                self._ledger.refuse(str(refusal))
            except (OSError, http.client.HTTPException, grpc.RpcError) as error:
                if isinstance(error, grpc.RpcError) and error.code() not in _BROKEN:
                    raise Unexpected(f"{error.code()}: {error.details()}") from error
                wire.close()
            time.sleep(_RETRY_S)
        return False


class _Http:
    def __init__(self, *, compressed: bool) -> None:
        self._compressed = compressed
        self._connection: http.client.HTTPConnection | None = None
        self._address = ""

    def send(self, address: tuple[str, str], body: bytes) -> None:
        if self._address != address[0]:
            self.close()
            self._address = address[0]
        if self._connection is None:
            self._connection = http.client.HTTPConnection(urlsplit(self._address).netloc, timeout=_TIMEOUT_S)
        headers = {"Content-Type": "application/x-protobuf"}
        if self._compressed:
            # Without a time in it: the same bytes each time.
            body, headers["Content-Encoding"] = gzip.compress(body, 1, mtime=0), "gzip"
        self._connection.request("POST", "/v1/traces", body, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status in (429, 502, 503, 504):
            if not answer.headers.get("Retry-After"):
                raise Unexpected(f"{answer.status} without Retry-After: {text[:200]!r}")
            raise Refused(str(answer.status))
        if answer.status != 200 or text:
            raise Unexpected(f"{answer.status}: {text[:200]!r}")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Grpc:
    def __init__(self) -> None:
        self._channel: Any = None
        self._call: Callable[..., bytes] | None = None
        self._address = ""

    def send(self, address: tuple[str, str], body: bytes) -> None:
        if self._address != address[1]:
            self.close()
            self._address = address[1]
        if self._call is None:
            options = [("grpc.max_send_message_length", _LIMIT), ("grpc.enable_retries", 0)]
            self._channel = grpc.insecure_channel(self._address, options=options)
            self._call = self._channel.unary_unary(EXPORT_METHOD)
        try:
            answer = self._call(body, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            # RetryInfo comes from the collector itself, and not from a connection that broke.
            said = dict(error.trailing_metadata() or ())
            if error.code() in _RETRYABLE and "grpc-status-details-bin" in said:
                raise Refused(error.code().name) from error
            raise
        if answer:
            raise Unexpected(f"partial success: {answer[:200]!r}")

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = self._call = None


@contextlib.contextmanager
def hurry(target: Target, every_s: float = 0.1) -> Iterator[None]:
    """Asks for a flush again and again, so that the writer is always at work and a kill meets an insert more often."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_s):
            address = target.get()
            if address is None:
                return
            # Whatever happens to it, the next one follows.
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                flush(address[0], 5)

    thread = threading.Thread(target=run, name="hurry", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


def flush(otlp_http: str, timeout_s: float) -> dict[str, Any]:
    """Asks the collector to make everything acknowledged queryable.

    Raises:
        OSError: it is away.
    """
    connection = http.client.HTTPConnection(urlsplit(otlp_http).netloc, timeout=timeout_s + 10)
    try:
        connection.request("POST", f"/flush?timeout_s={timeout_s:g}")
        answer = connection.getresponse()
        result: dict[str, Any] = json.loads(answer.read())
        return {**result, "status": answer.status}
    finally:
        connection.close()
