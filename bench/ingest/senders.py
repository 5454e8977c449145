"""Sends export requests as fast as they are taken, over a few connections; what is refused for now is sent again."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import grpc

CONNECTIONS = 4
_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_TIMEOUT_S = 120.0
_PAUSE_S = 0.1  # after a refusal
_GRPC_BYTES = 64 << 20

Send = Callable[[bytes], bool]  # whether the request was acknowledged; False: send it again


def send_all(requests: Iterable[bytes], connect: Callable[[], Iterator[Send]]) -> None:
    """Returns once every request was acknowledged.

    Args:
        requests: serialised; taken one by one, so a generator may set the pace.
        connect: makes a connection (a generator that yields its `Send` and closes it).

    Raises:
        RuntimeError: a request was refused for good.
    """
    source, lock = iter(requests), threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with contextmanager(connect)() as send:
                while not errors:
                    with lock:
                        request = next(source, None)
                    if request is None:
                        return
                    while not send(request):
                        time.sleep(_PAUSE_S)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise RuntimeError(f"sending failed: {errors[0]!r}") from errors[0]


def over_http(url: str) -> Callable[[], Iterator[Send]]:
    """OTLP/HTTP with protobuf, uncompressed, to `url` (`…/v1/traces`)."""
    parts = urlsplit(url)

    def connect() -> Iterator[Send]:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)

        def send(body: bytes) -> bool:
            connection.request("POST", parts.path, body, {"content-type": "application/x-protobuf"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status in (429, 502, 503, 504):
                return False
            if answer.status != 200:
                raise RuntimeError(f"HTTP {answer.status} {text[:200]!r}")
            return True

        try:
            yield send
        finally:
            connection.close()

    return connect


def over_grpc(address: str) -> Callable[[], Iterator[Send]]:
    """OTLP/gRPC to `HOST:PORT`."""

    def connect() -> Iterator[Send]:
        limits = [("grpc.max_send_message_length", _GRPC_BYTES), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options=limits) as channel:
            call = channel.unary_unary(_EXPORT)

            def send(body: bytes) -> bool:
                try:
                    call(body, timeout=_TIMEOUT_S)
                except grpc.RpcError as error:
                    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                        return False
                    raise
                return True

            yield send

    return connect
