"""One request and the next: what ends with it, what its session keeps, and answers that come in pieces."""

import logging
import socket
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from tests.collector.served_endpoint import Served, serving

from spanloop_collector.endpoint import sessions


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("requests")) as served:
        yield served


def test_a_clients_settings_are_of_one_query(served: Served) -> None:
    """clickhouse-connect has a session in every client, and sends settings with the query that they are for."""
    client = served.client(reader=True)
    client.command("SET max_block_size = 777")
    settings = {"max_threads": 3, "max_block_size": 9, "max_result_rows": 5}
    sql = "SELECT getSetting('max_threads'), getSetting('max_block_size'), getSetting('max_result_rows')"
    before = client.query(sql).first_row
    assert client.query(sql, settings=settings).first_row == (3, 9, 5)
    assert client.query(sql).first_row == before
    assert before[1:] == (777, 0)


def test_a_session_keeps_what_was_set_in_it(served: Served) -> None:
    assert served.send("SET max_rows_to_read = 1", session_id="kept")[0] == 200
    # Its own limits do not stop the endpoint from looking after it.
    assert served.send("SELECT 1", session_id="kept", max_threads="1")[2] == b"1\n"
    assert served.send("SELECT currentDatabase()", session_id="kept", database="system")[2] == b"system\n"
    assert served.send("SELECT currentDatabase()", session_id="kept")[2] == b"default\n"
    assert served.send("USE system", session_id="kept", database="default")[0] == 200
    assert served.send("SELECT currentDatabase()", session_id="kept")[2] == b"system\n"
    assert served.send("SELECT 1", session_id="kept", no_such_setting="1")[0] == 400
    assert served.send("SELECT 1", session_id="kept")[2] == b"1\n"


def test_a_session_is_free_again_with_the_answers_end(served: Served) -> None:
    assert served.send("SET max_threads = 1", session_id="free")[0] == 200
    for number in range(50):
        assert served.send(f"SELECT {number}", session_id="free", max_block_size="9")[0] == 200


def test_sessions_with_nothing_in_them_are_none(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 2)
    for number in range(9):
        assert served.send("SELECT 1", headers=served.auth(True), session_id=f"empty-{number}")[0] == 200
    for number in range(9):
        served.send("SET max_threads = 1", headers=served.auth(True), session_id=f"full-{number}")
    status, _, body = served.send("SET max_threads = 1", headers=served.auth(True), session_id="more")
    assert (status, b"2 sessions already" in body) == (400, True)


def test_one_users_sessions_leave_room_for_the_others(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [served.send("SET max_threads = 1", session_id=f"held-{number}")[0] for number in range(3)]
    assert held == [200, 200, 200]
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 1)
    assert served.send("SET max_threads = 1", session_id="held-more")[0] == 400
    # The reader's first one, or one that an earlier test has left.
    status, _, body = served.send("SELECT 1", headers=served.auth(True), session_id="any")
    assert (status, body) == (200, b"1\n")


def test_temporary_tables_of_a_session(served: Served) -> None:
    for sql in ("CREATE TEMPORARY TABLE mine (a Int8)", "INSERT INTO mine VALUES (1)"):
        assert served.send(sql, session_id="temporary")[0] == 200
    assert served.send("SELECT a FROM mine", session_id="temporary")[2] == b"1\n"
    assert served.send("DROP TABLE mine", session_id="temporary")[0] == 200
    assert served.send("SELECT a FROM mine", session_id="temporary")[0] == 404


@pytest.mark.parametrize(
    ("sql", "answer"),
    [
        ("SELECT number AS format FROM numbers(2) ORDER BY format DESC", b"1\n0\n"),
        ("SELECT 1 AS format FROM numbers(1) FORMAT JSONEachRow SETTINGS max_threads = 1", b'{"format":1}\n'),
        (
            "SELECT number % 2 AS n, count() FROM numbers(3) GROUP BY n WITH TOTALS ORDER BY n",
            b"0\t2\n1\t1\n\n0\t3\n",
        ),
        ("SELECT number FROM numbers(3) SETTINGS extremes = 1", b"0\n1\n2\n\n0\n2\n"),
        (
            "SELECT number AS n FROM numbers(2) FORMAT JSONEachRow"
            " SETTINGS output_format_json_array_of_rows = 1, max_block_size = 1",
            b'[\n{"n":0},\n{"n":1}\n]\n',
        ),
    ],
    ids=["column", "clause", "totals", "extremes", "array"],
)
def test_formats_and_what_stands_around_the_rows(served: Served, sql: str, answer: bytes) -> None:
    assert served.send(sql)[::2] == (200, answer)


@pytest.mark.parametrize("form", ["DataFrame", "ArrowTable", "arrowtable"])
def test_formats_of_python_are_none_here(served: Served, form: str) -> None:
    for status, headers, _ in (
        served.send("SELECT 1", default_format=form),
        served.send(f"SELECT 1 FORMAT {form}"),
    ):
        assert (status, headers["X-ClickHouse-Exception-Code"]) == (404, "73")


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=x",
    ],
    ids=["no-boundary", "wrong-boundary"],
)
def test_a_form_that_is_none_is_said(served: Served, content_type: str) -> None:
    status, _, body = served.send("query=SELECT+1", headers=served.auth(**{"Content-Type": content_type}))
    assert (status, b"form cannot be read" in body) == (400, True)


def test_a_client_that_goes_away_is_no_failure_of_ours(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """It reads nothing, so that the endpoint waits to send, and then closes with data unread: a reset."""
    sql = "SELECT repeat('x', 1000) FROM numbers(1000000000)"
    user = served.credentials.reader
    query = urlencode({"query": sql, "query_id": "unread", "user": user.name, "password": user.password})
    with caplog.at_level(logging.ERROR):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(f"GET /?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            read = 0
            while read < 1 << 20:
                read += len(connection.recv(1 << 16))
        # Its id is free once everything about it has ended; until then it is "already running".
        while served.send("SELECT 1", query_id="unread")[0] != 200:
            pass
    assert "failed inside the endpoint" not in caplog.text


def test_an_insert_that_chdb_reads_otherwise_is_the_clients_mistake(served: Served) -> None:
    sql = "INSERT INTO otel_logs FROM FORMAT NullINFILE 'a' FORMAT"
    status, headers, _ = served.send(sql)
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (400, "36")
