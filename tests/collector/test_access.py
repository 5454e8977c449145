"""Which token opens which door, and that the administrator's leaves a trail."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from tests.collector.capture_process import Capture, running, trace_request

from spanloop_collector.access import Access, Tokens
from spanloop_collector.endpoint.auditing import SHOWN_CHARACTERS, shown
from spanloop_collector.errors import ListenError, TokenError

WRITE, READ, ADMIN = "w" * 20, "r" * 20, "a" * 20
ALL = {"SPANLOOP_TOKEN": WRITE, "SPANLOOP_READ_TOKEN": READ, "SPANLOOP_ADMIN_TOKEN": ADMIN}


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capture]:
    with running(tmp_path_factory.mktemp("access") / "s", "--host", "0.0.0.0", **ALL) as process:
        yield process


def ask(address: str, method: str, path: str, token: str = "", body: bytes = b"") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(address).port or 0, timeout=60)
    headers = {"Content-Type": "application/x-protobuf"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.request(method, path, body=body, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def client(capture: Capture, user: str, password: str) -> Any:
    port = urlsplit(capture.clickhouse).port or 0
    return clickhouse_connect.get_client(host="127.0.0.1", port=port, username=user, password=password)


SPANS = trace_request("one").SerializeToString()


@pytest.mark.parametrize(
    ("method", "path", "opens"),
    [
        ("POST", "/v1/traces", {WRITE}),
        ("POST", "/flush", {WRITE}),
        ("GET", "/metrics", {READ}),
        ("GET", "/healthz", {WRITE, READ, ADMIN, "", WRITE[:-1]}),
    ],
    ids=["otlp", "flush", "metrics", "health"],
)
def test_each_door_takes_its_own_token(capture: Capture, method: str, path: str, opens: set[str]) -> None:
    body = SPANS if path == "/v1/traces" else b""
    for token in (WRITE, READ, ADMIN, "", WRITE[:-1]):
        status = ask(capture.otlp_http, method, path, token, body)
        assert (status == 200) is (token in opens), (path, token[:1], status)
        assert status in (200, 401)


def test_the_endpoints_users_have_the_tokens_as_passwords(capture: Capture) -> None:
    with client(capture, "spanloop_reader", READ) as reader:
        assert reader.command("SELECT 1") == 1
        with pytest.raises(DatabaseError, match="only reads"):
            reader.command("CREATE TABLE mine (x UInt8) ENGINE = Memory")
    for user, password in (
        ("spanloop", READ),
        ("spanloop_reader", ADMIN),
        ("spanloop", WRITE),
        ("spanloop_reader", WRITE),
    ):
        with pytest.raises(DatabaseError, match="516"):
            client(capture, user, password)
    # What a command on this machine finds in owner.json goes on working beside them.
    assert capture.query("SELECT 1") == [(1,)]


def test_a_use_of_the_administrators_token_is_a_row(capture: Capture) -> None:
    with client(capture, "spanloop", ADMIN) as admin:
        admin.command("CREATE TABLE mine (x String) ENGINE = MergeTree ORDER BY x")
        for _ in range(3):
            admin.command("INSERT INTO mine VALUES ('a secret')")
        admin.insert("mine", [["another secret"]], column_names=["x"])
        with pytest.raises(DatabaseError, match="closed"):
            admin.command("SELECT * FROM url('http://example.com')")
        rows = capture.query("SELECT who, action, subject FROM audit WHERE action = 'query' ORDER BY time")
        assert {row[0] for row in rows} == {"spanloop from 127.0.0.1"}
        said = [row[2] for row in rows]
        assert "CREATE TABLE mine (x String) ENGINE = MergeTree ORDER BY x" in said
        assert said.count("INSERT INTO mine VALUES …") == 1  # the others of this minute are counted
        assert "SELECT * FROM url(?)" in said
        assert not any("secret" in text for text in said)
        for statement in (
            "ALTER TABLE audit DELETE WHERE 1",
            "TRUNCATE TABLE `audit`",
            "DROP TABLE default.erasures",
            "DELETE FROM audit WHERE 1",
            "RENAME TABLE promotions TO other",
        ):
            with pytest.raises(DatabaseError, match="never changed"):
                admin.command(statement)


def test_the_local_credential_and_the_reader_leave_no_rows(capture: Capture) -> None:
    before = capture.query("SELECT count() FROM audit")
    with client(capture, "spanloop_reader", READ) as reader:
        reader.command("SELECT 2")
    capture.query("SELECT 3")
    assert capture.query("SELECT count() FROM audit") == before


def test_what_is_counted_is_written_in_the_end_and_without_a_trail_nothing_runs(tmp_path: Path) -> None:
    store = tmp_path / "s"
    with running(store, **ALL) as capture:
        with client(capture, "spanloop", ADMIN) as admin:
            admin.command("CREATE TABLE mine (x String) ENGINE = Memory")
            for _ in range(4):
                admin.command("SELECT count() FROM rewards")
        capture.stop()
        rows = capture.query(
            "SELECT subject, details FROM audit WHERE subject LIKE '%rewards%' ORDER BY time"
        )
    assert rows == [("SELECT count() FROM rewards", "{}"), ("SELECT count() FROM rewards", '{"repeats": 3}')]
    with running(store, **ALL) as capture, client(capture, "spanloop", ADMIN) as admin:
        _take_away_the_table(capture)
        with pytest.raises(DatabaseError, match="audit trail cannot be written"):
            admin.command("INSERT INTO mine VALUES ('x')")
        assert capture.query("SELECT count() FROM mine") == [(0,)]


def _take_away_the_table(capture: Capture) -> None:
    """Parts of the table cannot be written any more: its folder is a file."""
    engine = Path(capture.url.removeprefix("chdb://")) / "engine"
    (table,) = (engine / "data" / "default").glob("audit")
    folder = table.resolve()
    folder.rename(folder.with_name("away"))
    folder.write_bytes(b"")


def test_tokens_must_differ_and_be_long() -> None:
    assert Tokens.of({}) == Tokens()
    assert Tokens.of({"SPANLOOP_TOKEN": "t", "SPANLOOP_READ_TOKEN": ""}) == Tokens("t")
    with pytest.raises(TokenError, match="SPANLOOP_READ_TOKEN and SPANLOOP_ADMIN_TOKEN are the same"):
        Tokens.of({**ALL, "SPANLOOP_READ_TOKEN": ADMIN})
    with pytest.raises(TokenError, match="SPANLOOP_ADMIN_TOKEN has 3 characters"):
        Tokens.of({"SPANLOOP_ADMIN_TOKEN": "abc"})


def test_loopback_asks_for_no_token_and_administration_always_does() -> None:
    tokens = Tokens(WRITE, READ, ADMIN)
    here = Access.to("127.0.0.1", tokens, local="generated")
    assert here.may_send(None)
    assert here.may_look(None)
    assert here.administrator(None) == here.administrator("Bearer ") == ""
    assert here.administrator(f"Bearer {ADMIN}") == "admin"
    assert here.administrator("Bearer generated") == "local"
    assert here.administrator(f"Bearer {WRITE}") == here.administrator(f"Bearer {READ}") == ""
    open_to_all = Access.to("0.0.0.0", tokens)
    assert not open_to_all.may_send(None)
    assert not open_to_all.may_look(f"Bearer {WRITE}")
    assert open_to_all.may_look(f"Bearer {READ}")
    no_readers = Access.to("0.0.0.0", Tokens(WRITE))
    assert not no_readers.may_look(None)
    assert no_readers.may_look(f"Bearer {WRITE}")
    assert Access.to("127.0.0.1", Tokens()).administrator("Bearer None") == ""
    with pytest.raises(ListenError, match="SPANLOOP_TOKEN is not set"):
        Access.to("0.0.0.0", Tokens(read=READ, admin=ADMIN))


def test_what_is_shown_of_a_statement() -> None:
    assert shown("SELECT  x\nFROM t WHERE a = 'it''s' AND b = 3.5 AND c = '\\'x'") == (
        "SELECT x FROM t WHERE a = ? AND b = ? AND c = ?"
    )
    assert shown("INSERT INTO t (a1) VALUES ('x', 1)") == "INSERT INTO t (a1) VALUES …"
    assert len(shown("SELECT " + "x, " * 500)) == SHOWN_CHARACTERS
