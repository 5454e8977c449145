"""The whole capture process inside this one: receivers, log, writer, engine, endpoint; what is sent to it, and what it keeps."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from clickhouse_connect.driver.client import Client

from spanloop_collector.capture import Options, running
from spanloop_store import Owner, connect, read_owner
from spanloop_store.retention import RETENTION_VARIABLE

_TIMEOUT_S = 60.0
_LONGEST_ANSWER = 1 << 20  # bytes that are looked at


@dataclass(frozen=True)
class Reply:
    """An HTTP answer.

    Args:
        status: 0 where the connection was closed without one.
        headers: names in lower case.
        body: at most its first MiB.
    """

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One kept-alive HTTP connection; it is made anew where the other side closed it."""

    def __init__(self, address: str) -> None:
        self._netloc = urlsplit(address).netloc
        self._connection: http.client.HTTPConnection | None = None

    def send(
        self, method: str, path: str, body: bytes, headers: list[tuple[bytes | str, bytes | str]]
    ) -> Reply:
        """Sends one request as it is: header values may be any bytes.

        Raises:
            OSError: nobody listens any more.
        """
        for attempt in range(2):
            fresh = self._connection is None
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self._netloc, timeout=_TIMEOUT_S)
            try:
                return self._send(self._connection, method, path, body, headers)
            except (OSError, http.client.HTTPException):
                self.close()
                # A kept connection may have been closed meanwhile; a new one that breaks is an answer of its own.
                if fresh or attempt:
                    break
        with contextlib.closing(http.client.HTTPConnection(self._netloc, timeout=_TIMEOUT_S)) as probe:
            probe.connect()
        return Reply(0, {}, b"")

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes,
        headers: list[tuple[bytes | str, bytes | str]],
    ) -> Reply:
        given = {_text(name).lower() for name, _ in headers}
        connection.putrequest(method, path, skip_host="host" in given, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(_text(name), value if isinstance(value, bytes) else value.encode())
        if body or method == "POST":
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        reply = Reply(
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            answer.read(_LONGEST_ANSWER),
        )
        if answer.read(1) or answer.will_close:
            self.close()
        return reply

    def close(self) -> None:
        """Closes the connection; the next request makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _text(name: bytes | str) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else name


@dataclass
class Served:
    """A running capture process of this process."""

    folder: Path
    otlp_http: str
    otlp_grpc: str
    clickhouse: str
    owner: Owner
    client: Client  # with every right, past the endpoint; of the thread that entered `serving`

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query that the endpoint does not see."""
        return [tuple(row) for row in self.client.query(sql).result_rows]

    def flush(self) -> None:
        """Until everything acknowledged is queryable."""
        reply = Wire(self.otlp_http).send("POST", "/flush?timeout_s=100", b"", [])
        assert reply.status == 200, reply


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Capture on a new store in `folder`, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="served", daemon=True)
    thread.start()
    url = f"chdb://{folder}"
    context = running(Options(url, otlp_http_port=0, otlp_grpc_port=0, clickhouse_port=0))
    # Mutated times are of any year, and the default retention takes what is older than one.
    keep_all = mock.patch.dict(os.environ, {RETENTION_VARIABLE: "0"})
    keep_all.start()
    try:
        addresses = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
        try:
            owner = read_owner(url)
            assert owner is not None
            with contextlib.closing(connect(url)) as client:
                yield Served(
                    folder, addresses.otlp_http, addresses.otlp_grpc, addresses.clickhouse, owner, client
                )
        finally:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result()
    finally:
        keep_all.stop()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Watch:
    """Tells whether anybody opened, listed or made anything in a folder (inotify(7)): a leak shows even where no byte of it is answered."""

    _OPEN, _ACCESS, _CREATE, _MOVED_TO = 0x20, 0x01, 0x100, 0x80
    _EVENT = struct.Struct("iIII")

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = self._OPEN | self._ACCESS | self._CREATE | self._MOVED_TO
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify does not work here")

    def seen(self) -> list[str]:
        """Names that were touched since the last call; `.` is the folder itself."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return []
        names = []
        while data:
            _, _, _, length = self._EVENT.unpack_from(data)
            name = data[self._EVENT.size : self._EVENT.size + length].rstrip(b"\0")
            names.append(name.decode() or ".")
            data = data[self._EVENT.size + length :]
        return names

    def close(self) -> None:
        """Stops watching."""
        os.close(self._descriptor)
