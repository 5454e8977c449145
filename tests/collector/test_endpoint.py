"""ClickHouse's HTTP protocol over the embedded engine: real clients, credentials, and what is closed."""

import asyncio
import gzip
import json
import struct
from collections.abc import Iterator
from typing import Any

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from tests.collector.served_endpoint import Served, serving

from spanloop_store import Owner, StoreUrlError, connect, write_owner


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("endpoint")) as served:
        (served.folder / "secret.txt").write_text("top secret\n")
        yield served


@pytest.fixture
def table(served: Served) -> str:
    client = served.client()
    client.command("CREATE TABLE IF NOT EXISTS points (a Int32, b String) ENGINE = MergeTree ORDER BY a")
    client.command("TRUNCATE TABLE points")
    return "points"


def test_ping(served: Served) -> None:
    assert served.send(method="GET", headers={}, path="/ping")[::2] == (200, b"Ok.\n")
    assert served.client().ping()


def test_sync_client(served: Served, table: str) -> None:
    client = served.client()
    client.insert(table, [[1, "x"], [2, "ü'\\"]], column_names=["a", "b"])
    assert client.query(f"SELECT * FROM {table} ORDER BY a").result_rows == [(1, "x"), (2, "ü'\\")]
    assert client.query(
        "SELECT {x:String}, {y:Array(Int8)}", parameters={"x": "it's", "y": [1]}
    ).result_rows == [("it's", [1])]
    assert client.command(f"SELECT count() FROM {table}") == 2
    assert client.query_arrow(f"SELECT * FROM {table}").num_rows == 2
    with client.query_row_block_stream("SELECT number FROM numbers(300000)") as stream:
        assert sum(len(block) for block in stream) == 300_000


def test_async_client(served: Served, table: str) -> None:
    async def work() -> Any:
        user = served.credentials.writer
        client = await clickhouse_connect.get_async_client(
            host="127.0.0.1", port=served.port, username=user.name, password=user.password
        )
        await client.insert(table, [[7, "y"]], column_names=["a", "b"])
        result = await client.query(f"SELECT * FROM {table} WHERE a = {{a:Int32}}", parameters={"a": 7})
        await client.close()
        return result.result_rows

    assert asyncio.run(work()) == [(7, "y")]


def test_an_empty_result_has_its_columns(served: Served, table: str) -> None:
    result = served.client().query(f"SELECT a, b FROM {table} WHERE a > 100")
    assert result.column_names == ("a", "b")
    assert result.result_rows == []


@pytest.mark.parametrize(
    ("form", "body"),
    [
        ("CSV", b'1,"q"\n2,w\n'),
        ("JSONEachRow", b'{"a":1,"b":"q"}\n{"a":2,"b":"w"}\n'),
        ("TabSeparated", b"1\tq\n2\tw\n"),
    ],
)
def test_inserts_in_text_formats(served: Served, table: str, form: str, body: bytes) -> None:
    served.client().raw_insert(table, column_names=["a", "b"], insert_block=body, fmt=form)
    assert served.send(f"SELECT * FROM {table} ORDER BY a")[2] == b"1\tq\n2\tw\n"
    served.client().command(f"TRUNCATE TABLE {table}")
    sql = f"INSERT INTO {table} (a, b) FORMAT {form}"
    status, headers, _ = served.send(
        gzip.compress(body), headers=served.auth(**{"Content-Encoding": "gzip"}), query=sql
    )
    assert status == 200
    assert json.loads(headers["X-ClickHouse-Summary"])["written_rows"] == "2"
    assert served.send(f"SELECT count() FROM {table}")[2] == b"2\n"


@pytest.mark.parametrize("form", ["Parquet", "Arrow", "Native"])
def test_inserts_in_binary_formats(served: Served, table: str, form: str) -> None:
    status, _, body = served.send(f"SELECT toInt32(number) AS a, 'x;--' AS b FROM numbers(5) FORMAT {form}")
    assert status == 200
    assert served.send(f"INSERT INTO {table} FORMAT {form}\n".encode() + body)[0] == 200
    assert served.send(f"SELECT sum(a), any(b) FROM {table}")[2] == b"10\tx;--\n"


@pytest.mark.parametrize("encoding", ["gzip", "lz4", "zstd"])
def test_compression_both_ways(served: Served, table: str, encoding: str) -> None:
    headers = served.auth(**{"Accept-Encoding": encoding})
    for wait in ("0", "1"):
        answer = served.send(
            "SELECT repeat('x', 9000)", headers=headers, enable_http_compression="1", wait_end_of_query=wait
        )
        assert answer[1]["Content-Encoding"] == encoding
        assert len(answer[2]) < 1000
    client = served.client(compress=encoding)
    client.insert(table, [[number, "y" * 99] for number in range(1000)], column_names=["a", "b"])
    assert client.command(f"SELECT sum(length(b)) FROM {table}") == 99_000
    assert len(client.query("SELECT number, repeat('x', 50) FROM numbers(100000)").result_rows) == 100_000


def test_block_frames(served: Served, table: str) -> None:
    body = b"3,z\n"
    frame = b"\0" * 16 + struct.pack("<BII", 0x02, len(body) + 9, len(body)) + body
    assert served.send(frame, query=f"INSERT INTO {table} FORMAT CSV", decompress="1")[0] == 200
    status, _, text = served.send(frame[:-1], query=f"INSERT INTO {table} FORMAT CSV", decompress="1")
    assert (status, b"compressed block" in text) == (400, True)


def test_errors_carry_clickhouse_codes(served: Served) -> None:
    client = served.client()
    for sql, code in [("SELECT nope", 47), ("SELECT * FROM nope", 60), ("SELEC 1", 497), ("SELECT (", 62)]:
        with pytest.raises(DatabaseError) as caught:
            client.query(sql)
        assert caught.value.code == code, sql


def test_an_error_in_mid_stream_is_no_short_answer(served: Served) -> None:
    with (
        pytest.raises(Exception, match=r"throwIf|FUNCTION_THROW|395|Incomplete|ended|broken"),
        served.client().query_row_block_stream(
            "SELECT throwIf(number = 900000) FROM numbers(1000000)"
        ) as stream,
    ):
        for _ in stream:
            pass


def test_a_session_keeps_its_settings_and_others_do_not_see_them(served: Served) -> None:
    assert served.send("SET max_threads = 3", session_id="one")[0] == 200
    assert served.send("SELECT getSetting('max_threads')", session_id="one")[2] == b"3\n"
    assert served.send("SELECT getSetting('max_threads')", session_id="two")[2] != b"3\n"
    assert served.send("SELECT getSetting('max_threads')")[2] != b"3\n"
    assert served.send("SELECT 1", session_id="three", session_check="1")[0] == 404
    assert served.send("SELECT 1", session_id="four", session_timeout="x")[0] == 400


def test_a_session_is_bound_to_its_user(served: Served) -> None:
    assert served.send("SET max_threads = 3", session_id="mine")[0] == 200
    reader = served.credentials.reader
    headers = {"X-ClickHouse-User": reader.name, "X-ClickHouse-Key": reader.password}
    assert served.send("SELECT 1", headers=headers, session_id="mine", session_check="1")[0] == 404


def test_settings_of_a_request_end_with_it(served: Served) -> None:
    assert served.send("SELECT getSetting('max_threads')", max_threads="3")[2] == b"3\n"
    assert served.send("SELECT getSetting('max_threads')")[2] != b"3\n"
    assert served.send("SELECT 1", no_such_setting="3")[0] != 200


def test_form_fields_and_get(served: Served) -> None:
    fields = {"query": "SELECT {x:Int8} + 1", "param_x": "4"}
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
        for name, text in fields.items()
    ]
    headers = served.auth(**{"Content-Type": "multipart/form-data; boundary=b"})
    assert served.send("".join(parts) + "--b--\r\n", headers=headers)[2] == b"5\n"
    curls = served.auth(**{"Content-Type": "application/x-www-form-urlencoded"})
    assert served.send("SELECT 1 + 1 AS `a=b`", headers=curls)[2] == b"2\n"
    assert served.send(method="GET", query="SELECT 1", default_format="JSONEachRow")[2] == b'{"1":1}\n'
    assert served.send(method="GET", query="TRUNCATE TABLE otel_logs")[0] == 400


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-ClickHouse-User": "spanloop", "X-ClickHouse-Key": "wrong"},
        {"X-ClickHouse-User": "default"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Bearer x"},
    ],
)
def test_without_the_credential_nothing(served: Served, headers: dict[str, str]) -> None:
    status, answer, body = served.send("SELECT 1", headers=headers)
    assert (status, answer["X-ClickHouse-Exception-Code"]) == (401, "516")
    assert b"AUTHENTICATION_FAILED" in body


def test_credentials_by_every_door(served: Served) -> None:
    user = served.credentials.writer
    assert served.send("SELECT 1", headers=served.auth())[0] == 200
    assert served.send("SELECT 1", headers={}, user=user.name, password=user.password)[0] == 200
    assert served.send("SELECT 1", user=user.name, password=user.password)[0] == 401  # two doors at a time
    assert user.password not in repr(served.credentials)


def test_foreign_host_and_origin_are_refused(served: Served) -> None:
    assert served.send("SELECT 1", headers=served.auth(Host="evil.example:8123"))[0] == 403
    assert served.send("SELECT 1", headers=served.auth(Origin="http://evil.example"))[0] == 403
    assert served.send("SELECT 1", headers=served.auth(Origin="null"))[0] == 403
    assert served.send("SELECT 1", headers=served.auth(Origin="http://localhost:3000"))[0] == 200
    assert served.send(method="GET", headers={"Host": "evil.example"}, path="/ping")[0] == 403


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO otel_logs (Body) VALUES ('x')",
        "DROP TABLE otel_logs",
        "TRUNCATE TABLE otel_logs",
        "CREATE TABLE mine (a Int8) ENGINE = Memory",
        "ALTER TABLE otel_logs DELETE WHERE 1",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SET ROLE spanloop_owner",
        "WITH x AS (SELECT 1) INSERT INTO otel_logs (Body) SELECT 'x'",
        "EXPLAIN SELECT 1; DROP TABLE otel_logs",
        "OPTIMIZE TABLE otel_logs",
    ],
)
def test_the_reader_only_reads(served: Served, sql: str) -> None:
    client = served.client(reader=True)
    assert client.query("SELECT count() FROM otel_logs", settings={"max_threads": 1}).result_rows == [(0,)]
    with pytest.raises(DatabaseError):
        client.command(sql)
    assert served.client().command("SELECT count() FROM otel_logs") == 0


ESCAPES = [
    "SELECT * FROM file('{path}', 'LineAsString')",
    "SELECT * FROM FILE('{path}', 'LineAsString')",
    "SELECT * FROM `file`('{path}', 'LineAsString')",
    "SELECT * FROM \"file\"('{path}', LineAsString)",
    "SELECT * FROM /* x */ file /**/ ('{path}', 'LineAsString')",
    "SELECT * FROM file -- x\n('{path}', 'LineAsString')",
    "SELECT * FROM '{path}'",
    "SELECT * FROM `{path}`",
    "SELECT * FROM default.`{path}`",
    "SELECT file('{path}')",
    "SELECT fIlE('{path}')",
    "SELECT `fil\\x65`('{path}')",
    "SELECT * APPLY(file) FROM (SELECT '{path}' AS x)",
    "SELECT * APPLY file FROM (SELECT '{path}' AS x)",
    "SELECT arrayMap(file, ['{path}'])",
    "SELECT ‘'’, file('{path}'), ‘'’",
    "SELECT $a$'$a$, file('{path}'), $b$'$b$",
    "SELECT 1 # '\n, file('{path}') # '",
    "SELECT '\\'', file('{path}'), '\\''",
    "SELECT ''', file(', file('{path}')",
    "SELECT 1; SELECT file('{path}')",
    "WITH (SELECT file('{path}')) AS x SELECT x",
    "DESCRIBE file('{path}')",
    "EXPLAIN SELECT * FROM file('{path}', 'LineAsString')",
    "SELECT * FROM fileCluster('c', '{path}')",
    "SELECT * FROM url('file://{path}', 'LineAsString')",
    "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a Int8')",
    "SELECT * FROM urlCluster('c', 'http://127.0.0.1:1/')",
    "SELECT * FROM s3('http://127.0.0.1:1/b/k', 'CSV', 'a Int8')",
    "SELECT * FROM remote('127.0.0.1:1', system.one)",
    "SELECT * FROM remoteSecure('127.0.0.1:1', system.one)",
    "SELECT * FROM cluster('default', system.one)",
    "SELECT * FROM mysql('127.0.0.1:1', 'd', 't', 'u', 'p')",
    "SELECT * FROM postgresql('127.0.0.1:1', 'd', 't', 'u', 'p')",
    "SELECT * FROM mongodb('127.0.0.1:1', 'd', 't', 'u', 'p')",
    "SELECT * FROM redis('127.0.0.1:1', 'k', 'k String')",
    "SELECT * FROM sqlite('{path}', 't')",
    "SELECT * FROM hdfs('hdfs://127.0.0.1:1/x', 'CSV')",
    "SELECT * FROM azureBlobStorage('x', 'y', 'z')",
    "SELECT * FROM executable('x.sh', 'CSV', 'a Int8')",
    "SELECT * FROM odbc('d', 't')",
    "SELECT * FROM python(engine)",
    "SELECT * FROM icebergLocal('{path}')",
    "SELECT * FROM deltaLakeLocal('{path}')",
    "SELECT * FROM filesystem('{path}')",
    "SELECT * FROM view(SELECT * FROM file('{path}', 'LineAsString'))",
    "SELECT * FROM merge(REGEXP('file'), '{path}') WHERE file('{path}') != ''",
    "SELECT 1 INTO OUTFILE '{path}.out'",
    "SELECT 1 INTO/**/OUTFILE '{path}.out' TRUNCATE",
    "SELECT 1 into outfile '{path}.out' FORMAT CSV",
    "INSERT INTO points FROM INFILE '{path}' FORMAT LineAsString",
    "INSERT INTO FUNCTION file('{path}.out', 'CSV', 'a Int8') VALUES (1)",
    "INSERT INTO TABLE FUNCTION file('{path}.out', 'CSV', 'a Int8') SELECT 1",
    "INSERT INTO points SELECT 1, file('{path}')",
    "INSERT INTO points VALUES (1, file('{path}'))",
    "CREATE TABLE z1 (a String) ENGINE = File(LineAsString, '{path}')",
    "CREATE TABLE z2 (a String) ENGINE File(LineAsString, '{path}')",
    "CREATE TABLE z3 (a String) ENGINE = URL('http://127.0.0.1:1/', 'CSV')",
    "CREATE TABLE z4 (a String) ENGINE = Memory AS SELECT * FROM '{path}'",
    "CREATE TABLE z5 AS file('{path}', 'LineAsString')",
    "CREATE TABLE z6 (a String DEFAULT file('{path}')) ENGINE = Memory",
    "CREATE TABLE z7 (a Int8) ENGINE = MergeTree ORDER BY a SETTINGS disk = disk(type = local, path = '{path}')",
    "CREATE TABLE IF NOT EXISTS z8 (a Int8) ENGINE = SQLite('{path}', 't')",
    "CREATE TABLE IF NOT EXISTS z8 (a Int8) ENGINE = Memory ENGINE = File(CSV)",
    "CREATE DATABASE z9 ENGINE = Filesystem('{folder}')",
    "CREATE DATABASE z9 ENGINE Filesystem('{folder}')",
    "CREATE VIEW z10 AS SELECT * FROM '{path}'",
    "CREATE VIEW z11 DEFINER = default SQL SECURITY DEFINER AS SELECT * FROM '{path}'",
    "CREATE MATERIALIZED VIEW z12 ENGINE = Memory AS SELECT * FROM '{path}'",
    "CREATE DICTIONARY z13 (a String) PRIMARY KEY a SOURCE(FILE(PATH '{path}' FORMAT 'CSV')) LAYOUT(FLAT()) LIFETIME(1)",
    "CREATE FUNCTION z14 AS x -> file(x)",
    "CREATE USER z15",
    "CREATE NAMED COLLECTION z16 AS url = 'x'",
    "ATTACH TABLE z17 FROM '{folder}' (a Int8) ENGINE = Memory",
    "ALTER TABLE points ATTACH PARTITION tuple() FROM otel_logs",
    "ALTER TABLE points FREEZE",
    "ALTER TABLE points FETCH PARTITION tuple() FROM '/x'",
    "ALTER TABLE points MODIFY COLUMN b String DEFAULT file('{path}')",
    "BACKUP TABLE points TO File('{path}.out')",
    "RESTORE TABLE points FROM File('{path}')",
    "SYSTEM SHUTDOWN",
    "SYSTEM FLUSH LOGS",
    "KILL QUERY WHERE 1",
    "GRANT ALL ON *.* TO default",
    "SET ROLE spanloop_owner",
    "SET ROLE ALL",
    "SET DEFAULT ROLE ALL TO default",
    "SET/**/ROLE spanloop_owner",
    "SELECT 1 PARALLEL WITH SET ROLE spanloop_owner",
    "EXECUTE AS default SELECT 1",
    "SET format_schema = '{path}'",
    "SELECT 1 SETTINGS format_template_row = '{path}'",
]


@pytest.mark.parametrize("reader", [False, True], ids=["writer", "reader"])
@pytest.mark.parametrize("sql", ESCAPES)
def test_nothing_reaches_out_of_the_store(served: Served, table: str, sql: str, reader: bool) -> None:
    secret = served.folder / "secret.txt"
    text = sql.replace("{path}", str(secret)).replace("{folder}", str(served.folder))
    user = served.credentials.reader if reader else served.credentials.writer
    headers = {"X-ClickHouse-User": user.name, "X-ClickHouse-Key": user.password}
    status, answer, body = served.send(text.encode(), headers=headers)
    assert b"top secret" not in body
    assert status >= 400, body
    assert "X-ClickHouse-Exception-Code" in answer
    assert sorted(path.name for path in served.folder.iterdir()) == ["s", "secret.txt"]


def test_closed_settings_as_parameters(served: Served) -> None:
    for name in ("format_schema", "readonly", "role", "format_template_row"):
        assert served.send("SELECT 1", **{name: "x"})[0] in (400, 403), name
    assert served.send("SELECT 1", **{"max_threads = 1, readonly": "0"})[0] == 400


def test_the_words_are_open_inside_of_literals(served: Served) -> None:
    assert (
        served.send("SELECT 'file(x) INTO OUTFILE; SET ROLE' AS a")[2] == b"file(x) INTO OUTFILE; SET ROLE\n"
    )
    assert served.send("SELECT 1 /* file('x') ; */ + 1 -- INTO OUTFILE")[2] == b"2\n"
    assert served.send("SELECT 1;\n ")[2] == b"1\n"


def test_connect_goes_through_the_owner(served: Served) -> None:
    """Another process finds the endpoint by owner.json; this one has the engine and uses it directly."""
    import subprocess
    import sys

    user = served.credentials.writer
    url = f"chdb://{served.folder}/s"
    write_owner(url, Owner(1, 1.0, f"http://127.0.0.1:{served.port}", user=user.name, password=user.password))
    code = (
        "import sys; from spanloop_store import connect, registry\n"
        "c = connect(sys.argv[1]); m = registry.register_model(c, 'm', '/x')\n"
        "registry.point_alias(c, 'm', 'candidate', 1, action='point', who='w', why=\"it's\")\n"
        "print(registry.resolve(c, 'm@candidate').id, type(c).__name__)"
    )
    out = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=120)
    assert out.stdout == "m@1 HttpClient\n", out.stderr
    with pytest.raises(StoreUrlError, match="refuses"):
        connect(f"clickhouse://spanloop:wrong@127.0.0.1:{served.port}/default")
    with pytest.raises(StoreUrlError, match="no database"):
        connect(f"clickhouse://{user.name}:{user.password}@127.0.0.1:{served.port}/nowhere")
