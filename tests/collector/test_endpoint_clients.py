"""The endpoint under what real clients do: formats, sessions, several at once, long queries watched and ended, memory that ends."""

import asyncio
import http.client
import io
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.parquet
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError
from tests.collector.served_endpoint import Served, serving
from tests.helpers.waiting import until

from spanloop_collector.endpoint.cityhash import checksum
from spanloop_store.errors import AuditError
from spanloop_store.retention import read_retention, set_retention

LIMIT_MIB = 600
# A minute of counting that needs little memory; nothing waits for its end.
ENDLESS = "SELECT count() FROM system.numbers WHERE NOT ignore(sipHash64(number))"
HUNGRY = "SELECT length(groupArray(number)) FROM numbers(1000000000)"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPANLOOP_ENGINE_MEMORY", f"{LIMIT_MIB}MiB")
        with serving(tmp_path_factory.mktemp("endpoint")) as served:
            served.client().command("CREATE TABLE points (a Int32, b String) ENGINE = MergeTree ORDER BY a")
            yield served


@pytest.fixture
def table(served: Served) -> str:
    served.client().command("TRUNCATE TABLE points")
    return "points"


def running(served: Served) -> int:
    """Queries of network users in the engine now."""
    rows = (
        served.engine.client()
        .query(
            "SELECT count() FROM system.processes WHERE Settings['log_comment'] != '' AND query NOT LIKE '%system.processes%'"
        )
        .result_rows
    )
    return int(rows[0][0])


# --- formats and compression ------------------------------------------------------------------------------------------


def test_arrow_and_parquet_by_the_client(served: Served, table: str) -> None:
    client = served.client()
    rows = pa.table({"a": pa.array([1, 2], pa.int32()), "b": ["x", "ü"]})
    client.insert_arrow(table, rows)
    parquet = io.BytesIO()
    pa.parquet.write_table(rows, parquet)
    client.raw_insert(table, ["a", "b"], parquet.getvalue(), fmt="Parquet")
    found = client.query_arrow(f"SELECT a, b FROM {table} ORDER BY a")
    assert found.to_pydict() == {"a": [1, 1, 2, 2], "b": ["x", "x", "ü", "ü"]}
    with client.query_arrow_stream("SELECT number FROM numbers(200000)") as stream:
        assert sum(batch.num_rows for batch in stream) == 200_000


@pytest.mark.parametrize("encoding", ["gzip", "lz4", "zstd", "br"])
def test_encodings_both_ways(served: Served, table: str, encoding: str) -> None:
    client = served.client(compress=encoding)
    client.insert(table, [[number, "y" * 99] for number in range(1000)], column_names=["a", "b"])
    assert client.command(f"SELECT sum(length(b)) FROM {table}") == 99_000
    with client.query_row_block_stream("SELECT number, repeat('x', 50) FROM numbers(200000)") as stream:
        assert sum(len(block) for block in stream) == 200_000
    status, headers, _ = served.send(
        "SELECT repeat('x', 9000) FROM numbers(10)",
        headers=served.auth(**{"Accept-Encoding": encoding}),
        enable_http_compression="1",
    )
    assert (status, headers["Content-Encoding"]) == (200, encoding)


@pytest.mark.parametrize("body", [b"\x8b\x02\x80", b"no brotli at all"])
def test_a_broken_body_is_said(served: Served, table: str, body: bytes) -> None:
    status, _, text = served.send(
        body, headers=served.auth(**{"Content-Encoding": "br"}), query=f"INSERT INTO {table} FORMAT CSV"
    )
    assert (status, b"br body" in text or b"not br" in text) == (400, True)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "2b9ac064fc9df03d291ee592c340b53c"),
        (b"abc", "fe48775795f10f907e0db2556317a913"),
        (b"x" * 12, "ac7b41293121151c08d836c061006230"),
        (b"span" * 30, "0394b0b20dde1ba6f1160299c1812a35"),
        (bytes(range(256)) * 3, "7159c62ab6f9e5df0fcc5ecc5cfde705"),
    ],
    ids=["empty", "3", "12", "120", "768"],
)
def test_checksums_of_blocks(data: bytes, expected: str) -> None:
    """As PyPI's `clickhouse-cityhash` (ClickHouse's own C++) computes them."""
    assert checksum(data).hex() == expected


def test_native_blocks_of_clickhouse_connect(served: Served) -> None:
    """It asks for a protocol revision, and gets it: times keep their zone, keys their dictionary."""
    client = served.client()
    assert client.protocol_version == 54405
    result = client.query(
        "SELECT toDateTime64(0, 3, 'Asia/Tokyo') AS t, toLowCardinality('x') AS l, map('a', 1) AS m FROM numbers(3)"
    )
    assert str(result.first_row[0]) == "1970-01-01 09:00:00+09:00"
    assert result.first_row[1:] == ("x", {"a": 1})


# --- sessions, several at once ----------------------------------------------------------------------------------------


def test_sessions_of_both_clients(served: Served) -> None:
    client = served.client(session_id="sync")
    client.command("CREATE TEMPORARY TABLE mine (a Int8)")
    client.command("INSERT INTO mine VALUES (3)")
    assert client.command("SELECT a FROM mine") == 3
    with pytest.raises(DatabaseError):
        served.client(session_id="other").command("SELECT a FROM mine")

    async def work() -> Any:
        async with await served.async_client(session_id="async") as other:
            await other.command("SET max_threads = 3")
            return await other.command("SELECT toUInt8(getSetting('max_threads'))")

    assert asyncio.run(work()) == 3


def test_several_at_once(served: Served, table: str) -> None:
    async def one(client: Any, number: int) -> Any:
        await client.insert(table, [[number, "x" * number]], column_names=["a", "b"])
        result = await client.query(
            f"SELECT length(b), {{n:Int32}} FROM {table} WHERE a = {{n:Int32}}", parameters={"n": number}
        )
        stream = await client.query_rows_stream(f"SELECT number + {number} FROM numbers(1000)")
        async with stream:
            total = sum([row[0] async for row in stream])
        return result.result_rows, total

    async def work() -> list[Any]:
        async with await served.async_client() as client:
            return await asyncio.gather(*(one(client, number) for number in range(24)))

    for number, (rows, total) in enumerate(asyncio.run(work())):
        assert rows == [(number, number)]
        assert total == 1000 * number + 499_500


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_after_rows_keeps_its_code(served: Served) -> None:
    client = served.client()
    with (
        pytest.raises(StreamFailureError, match=r"Code: 395.*throwIf"),
        client.query_row_block_stream("SELECT throwIf(number = 900000) FROM numbers(1000000)") as stream,
    ):
        for _ in stream:
            pass

    async def work() -> None:
        async with await served.async_client() as other:
            await other.query("SELECT throwIf(number = 900000) FROM numbers(1000000)")

    with pytest.raises(DatabaseError, match="395"):
        asyncio.run(work())


def test_a_text_that_looks_like_the_mark_is_only_text(served: Served) -> None:
    text = "\r\n__exception__\r\naaaaaaaaaaaaaaaa\r\nCode: 1\n7 aaaaaaaaaaaaaaaa\r\n__exception__\r\n"
    result = served.client().query("SELECT {t:String}", parameters={"t": text})
    assert result.result_rows == [(text,)]


# --- long queries -----------------------------------------------------------------------------------------------------


class Asked:
    """A query in a thread, and its answer when it comes."""

    def __init__(self, served: Served, sql: str, reader: bool = True, **parameters: str) -> None:
        self.answer: Any = None
        self.thread = threading.Thread(
            target=lambda: setattr(
                self, "answer", served.send(sql, headers=served.auth(reader), **parameters)
            )
        )
        self.thread.start()

    def end(self) -> Any:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.answer


@pytest.mark.parametrize("form", ["TabSeparated", "JSON"], ids=["streamed", "whole"])
def test_kill_by_query_id(served: Served, form: str) -> None:
    asked = Asked(served, ENDLESS, query_id=f"long-{form}", default_format=form)
    until(lambda: running(served) == 1)
    assert served.send("SELECT 1", query_id=f"long-{form}")[0] == 500  # the same id twice: as in ClickHouse
    status, _, body = served.send(f"KILL QUERY WHERE query_id = 'long-{form}' SYNC")
    assert (status, f"long-{form}".encode() in body) == (200, True)
    status, headers, body = asked.end()
    assert headers["X-ClickHouse-Exception-Code"] == "394", body
    assert served.send(f"KILL QUERY WHERE query_id = 'long-{form}'")[0] == 404


def test_a_reader_ends_only_its_own(served: Served) -> None:
    asked = Asked(served, ENDLESS, reader=False, query_id="the-writers")
    until(lambda: running(served) == 1)
    kill = "KILL QUERY WHERE query_id = 'the-writers'"
    assert served.send(kill, headers=served.auth(reader=True))[0] == 404
    assert served.send(kill)[0] == 200
    asked.end()


@pytest.mark.parametrize(
    "sql",
    [
        "KILL QUERY WHERE 1",
        "KILL QUERY WHERE query_id != 'x'",
        "KILL QUERY WHERE query_id = 'x' OR 1",
        "KILL QUERY WHERE query_id = 'x\\' OR 1 --'",
        "KILL QUERY WHERE query_id = 'x'; DROP TABLE points",
        "KILL MUTATION WHERE query_id = 'x'",
        "KILL QUERY ON CLUSTER c WHERE query_id = 'x'",
    ],
)
def test_no_other_kill(served: Served, sql: str) -> None:
    assert served.send(sql)[0] in (400, 403)


@pytest.mark.parametrize(
    "query_id",
    ["a'b", "a\\b", "ü", "x" * 201, "a\r\nSet-Cookie: b"],
    ids=["quote", "backslash", "letter", "long", "header"],
)
def test_ids_that_are_none(served: Served, query_id: str) -> None:
    assert served.send("SELECT 1", query_id=query_id)[0] == 400
    assert served.send("SELECT 1", default_format=query_id)[0] in (400, 404)


@pytest.mark.parametrize("form", ["TabSeparated", "JSON"], ids=["streamed", "whole"])
def test_a_client_that_goes_away_ends_its_query(served: Served, form: str) -> None:
    user = served.credentials.reader
    path = "/?" + urlencode(
        {"query": ENDLESS, "default_format": form, "user": user.name, "password": user.password}
    )
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        until(lambda: running(served) == 1)
    until(lambda: running(served) == 0)


def test_progress_in_headers(served: Served) -> None:
    # Read raw: the headers come before the answer is known.
    user = served.credentials.writer
    query = urlencode(
        {
            "query": ENDLESS,
            "query_id": "watched",
            "send_progress_in_http_headers": "1",
            "http_headers_progress_interval_ms": "20",
            "user": user.name,
            "password": user.password,
        }
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(
            f"POST /?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()
        )
        head = b""
        while not re.search(rb'"read_rows":"[1-9]', head):
            head += connection.recv(1000)
        assert head.startswith(b"HTTP/1.1 200 OK\r\nX-ClickHouse-Progress: {")
        assert served.send("KILL QUERY WHERE query_id = 'watched'")[0] == 200
        response = http.client.HTTPResponse(connection)
        response.fp = io.BufferedReader(_Replay(head, connection))  # type: ignore[arg-type]
        response.begin()
        seen = [json.loads(text) for text in response.headers.get_all("X-ClickHouse-Progress") or []]
        assert [int(a["read_rows"]) <= int(b["read_rows"]) for a, b in pairwise(seen)]
        assert int(seen[-1]["read_rows"]) > 0
        assert response.headers["X-ClickHouse-Exception-Code"] == "394"


class _Replay(io.RawIOBase):
    """What was read from a socket already, then the rest of it."""

    def __init__(self, head: bytes, connection: socket.socket) -> None:
        self._head, self._connection = head, connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._head:
            size = min(len(buffer), len(self._head))
            buffer[:size], self._head = self._head[:size], self._head[size:]
            return size
        return self._connection.recv_into(buffer)


@pytest.mark.parametrize("form", ["TabSeparated", "JSON", "Native"])
def test_an_answer_after_progress_is_whole(served: Served, form: str) -> None:
    status, headers, body = served.send(
        f"SELECT sum(number), sum(sipHash64(number)) AS h FROM numbers(20000000) FORMAT {form}",
        send_progress_in_http_headers="1",
        http_headers_progress_interval_ms="10",
    )
    assert status == 200
    assert headers["X-ClickHouse-Format"] == form
    assert (struct.pack("<Q", 199_999_990_000_000) if form == "Native" else b"199999990000000") in body


def test_the_summary_says_what_was_read(served: Served) -> None:
    _, headers, _ = served.send("SELECT sum(number) FROM numbers(1000) FORMAT JSON")
    assert json.loads(headers["X-ClickHouse-Summary"])["read_rows"] == "1000"


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_hungry_query_fails_and_inserts_go_on(served: Served, table: str) -> None:
    asked = [Asked(served, HUNGRY) for _ in range(3)]
    client = served.client()
    for number in range(20):
        client.insert(table, [[number, "x"]], column_names=["a", "b"])
    for one in asked:
        status, headers, body = one.end()
        assert (status, headers["X-ClickHouse-Exception-Code"]) == (500, "241")
        assert b"MEMORY_LIMIT_EXCEEDED" in body
        assert b"SPANLOOP_ENGINE_MEMORY" in body
    assert client.command(f"SELECT count() FROM {table}") == 20


@pytest.mark.parametrize(
    "sql",
    [
        f"{HUNGRY} SETTINGS max_memory_usage = 0",
        "SET max_memory_usage = 0",
        "SELECT 1 SETTINGS `max_memory_usage` = 1",
        "SELECT 1 SETTINGS max_memory_usage_for_user = 0",
    ],
)
def test_the_limit_is_not_the_users_to_lift(served: Served, sql: str) -> None:
    assert served.send(sql)[0] in (400, 403)
    assert served.send("SELECT 1", max_memory_usage="0")[0] in (400, 403)


def test_half_of_it_is_for_one_query(served: Served) -> None:
    for reader in (False, True):
        status, _, body = served.send("SELECT getSetting('max_memory_usage')", headers=served.auth(reader))
        assert (status, int(body)) == (200, LIMIT_MIB * 1024 * 1024 // 2)


# --- looking after the store through it ---------------------------------------------------------------------------------


def test_retention_through_the_endpoint(served: Served) -> None:
    assert {kept.days for kept in set_retention(served.client(), 30)} == {30}
    assert {kept.days for kept in read_retention(served.client(reader=True))} == {30}
    with pytest.raises(AuditError, match="only reads"):
        set_retention(served.client(reader=True), 1)
    assert {kept.days for kept in set_retention(served.client(), None)} == {None}
