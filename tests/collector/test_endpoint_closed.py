"""What network users cannot do by SQL that comes as a value, by settings, by names that are files, or by table DDL."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.collector.served_endpoint import Served, serving

USERS = pytest.mark.parametrize("reader", [False, True], ids=["writer", "reader"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("closed")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as served:
        served.client().command("CREATE TABLE points (a Int32, b String) ENGINE = MergeTree ORDER BY a")
        yield served


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with files of somebody else's."""
    (tmp_path / "secret.txt").write_text("top secret\n")
    (tmp_path / "secret.csv").write_text("b\ntop secret\n")
    return tmp_path


def ask(served: Served, outside: Path, sql: str, reader: bool, **parameters: str) -> tuple[int, bytes]:
    given = {
        name: value.replace("{path}", str(outside / "secret.txt")).replace("{folder}", str(outside))
        for name, value in {"sql": sql, **parameters}.items()
    }
    text = given.pop("sql").replace("{csv}", str(outside / "secret.csv"))
    status, _, body = served.send(text.encode(), headers=served.auth(reader), **given)
    return status, body


def refused(served: Served, outside: Path, sql: str, reader: bool, **parameters: str) -> None:
    status, body = ask(served, outside, sql, reader, **parameters)
    assert status in (400, 403, 404), body
    # A query that fails over the file's content has read it as well.
    assert b"top secret" not in body
    assert b"throwIf" not in body
    assert sorted(path.name for path in outside.iterdir()) == ["secret.csv", "secret.txt"]
    assert (outside / "secret.csv").read_text() == "b\ntop secret\n"


@USERS
@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("SELECT arrayMap({f:Identifier}, ['{path}'])", "file"),
        ("SELECT arrayMap({f:Identifier}, ['{path}'])", "FILE"),
        ("SELECT arrayMap({\"f\":Identifier}, ['{path}'])", "file"),
        ("SELECT arrayMap({f:`Identifier`}, ['{path}'])", "file"),
        ("SELECT arrayMap({f:Identifier}, ['{path}'])", "fil\\x65"),
        ("SELECT * FROM {f:Identifier}", "{path}"),
    ],
    ids=["name", "capitals", "quoted-name", "quoted-type", "escape", "table"],
)
def test_an_identifier_in_a_parameter_is_no_way_to_a_function(
    served: Served, outside: Path, sql: str, value: str, reader: bool
) -> None:
    refused(served, outside, sql, reader, param_f=value)


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE {t:Identifier} DELETE WHERE 1",
        "TRUNCATE TABLE {t:Identifier}",
        "DELETE FROM default.{t:Identifier} WHERE 1",
        "DROP TABLE {t : `Identifier`}",
        "RENAME TABLE {t:Identifier} TO other",
        "CREATE OR REPLACE TABLE {t:Identifier} (a Int8) ENGINE = Memory",
    ],
    ids=["alter", "truncate", "delete", "drop", "rename", "replace"],
)
def test_an_identifier_in_a_parameter_is_no_way_to_the_audit_trail(
    served: Served, outside: Path, sql: str
) -> None:
    served.client().command("INSERT INTO audit (who, action) VALUES ('a test', 'query')")
    before = ask(served, outside, "SELECT count() FROM audit", True)
    for name in ("audit", "erasures", "promotions"):
        status, body = ask(served, outside, sql, False, param_t=name)
        assert status == 403, body
        assert b"named in its text" in body
    assert ask(served, outside, "SELECT count() FROM audit", True) == before
    assert ask(served, outside, "SELECT count() FROM promotions", True) == (200, b"0\n")


@USERS
def test_a_session_keeps_no_parameters(served: Served, outside: Path, reader: bool) -> None:
    refused(served, outside, "SET param_f = 'file'", reader, session_id="parameters")


def test_identifiers_in_parameters_are_open(served: Served, outside: Path) -> None:
    assert ask(served, outside, "SELECT count() FROM {t:Identifier}", True, param_t="points") == (200, b"0\n")


@USERS
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT x FROM values('a UInt8, x String ALIAS file(\\'{path}\\')', 1)",
        "SELECT x FROM values(concat('a UInt8, x String ALIAS fi', 'le(\\'{path}\\')'), 1)",
        "SELECT * FROM (values('a UInt8, x String ALIAS file(\\'{path}\\')', 1))",
        "SELECT x FROM generateRandom('a UInt8, x String ALIAS file(\\'{path}\\')') LIMIT 1",
        "SELECT * FROM format('Values', 'x String', '(file(\\'{path}\\'))')",
        "SELECT * FROM format('JSONEachRow', 'a String, x String DEFAULT file(\\'{path}\\')', '{\"a\":\"1\"}')",
        "SELECT * FROM view(SELECT x FROM values('a UInt8, x String ALIAS file(\\'{path}\\')', 1))",
        "INSERT INTO points SELECT 1, x FROM values('a UInt8, x String ALIAS file(\\'{path}\\')', 1)",
        "INSERT INTO points SELECT 1, x FROM input('a UInt8, x String ALIAS file(\\'{path}\\')')",
        "INSERT INTO FUNCTION null('x String DEFAULT file(\\'{path}\\')') VALUES (1)",
        "INSERT INTO values('a UInt8, x String ALIAS file(\\'{path}\\')', 1) VALUES (1)",
        "INSERT INTO points FORMAT Values (1, file('{path}'))",
        "INSERT INTO points FORMAT/**/values\n(1, `file`('{path}'))",
        "INSERT INTO points SETTINGS input_format_values_interpret_expressions = 1 FORMAT CSV\n1,x",
    ],
)
def test_sql_in_a_structure_or_in_values_is_not_run(
    served: Served, outside: Path, sql: str, reader: bool
) -> None:
    refused(served, outside, sql, reader)


def test_rows_in_values_are_open(served: Served, outside: Path) -> None:
    for sql in (
        "INSERT INTO points VALUES (1, concat('a', 'b'))",
        "INSERT INTO points (a, b) FORMAT Values (2, 'é'), (3, upper('q'))",
        "INSERT INTO points (a) SETTINGS async_insert = 0 VALUES (4)",
    ):
        assert ask(served, outside, sql, False) == (200, b"")
    rows = "1\tab\n2\té\n3\tQ\n4\t\n".encode()
    assert ask(served, outside, "SELECT * FROM points ORDER BY a", True) == (200, rows)
    assert ask(served, outside, "SELECT format('{}-{}', a, b) FROM points LIMIT 1", True) == (200, b"1-ab\n")
    assert ask(served, outside, "TRUNCATE TABLE points", False) == (200, b"")


READS_FILE = "throwIf(file('{path}') LIKE 'top%')"


@USERS
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("additional_result_filter", READS_FILE),
        ("additional_table_filters", f"{{'system.one': '{READS_FILE}'}}"),
        ("filter", READS_FILE),
        ("select", READS_FILE),
        ("order", READS_FILE),
        ("parallel_replicas_custom_key", READS_FILE),
        ("schema_inference_hints", f"x String DEFAULT {READS_FILE}"),
        ("dialect", "prql"),
        ("polyglot_dialect", "mysql"),
        ("output_format_schema", "{folder}/made.proto"),
        ("input_format_record_errors_file_path", "{folder}/errors.csv"),
        ("format_avro_schema_registry_url", "http://127.0.0.1:1/"),
        ("default_view_definer", "default"),
        ("default_normal_view_sql_security", "NONE"),
        ("input_format_values_interpret_expressions", "1"),
        ("log_comment", "x"),
        ("output_format", "JSON"),
    ],
)
def test_settings_that_hold_sql_files_or_servers(
    served: Served, outside: Path, name: str, value: str, reader: bool
) -> None:
    literal = value.replace("'", "\\'")
    refused(served, outside, f"SELECT 1 AS x FORMAT Protobuf SETTINGS {name} = '{literal}'", reader)
    refused(served, outside, f"SET {name} = '{literal}'", reader, session_id="settings")
    if name != "log_comment":  # which clients send; the endpoint puts its own in its place
        refused(served, outside, "SELECT 1 AS x FORMAT Protobuf", reader, **{name: value})


def test_no_server_is_asked_for_a_schema(served: Served, outside: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        refused(
            served,
            outside,
            "SELECT 1 AS x FORMAT AvroConfluent",
            True,
            format_avro_schema_registry_url=address,
            output_format_avro_confluent_subject="x",
        )
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_column_may_have_the_name_of_a_closed_setting(served: Served, outside: Path) -> None:
    sql = "SELECT role FROM (SELECT 'user' AS role, 1 AS filter) WHERE role = 'user' AND filter = 1"
    assert ask(served, outside, sql, True) == (200, b"user\n")


@USERS
def test_whether_a_file_is_there_is_not_told(
    served: Served, outside: Path, reader: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(outside)
    for sql in (
        "EXISTS TABLE `{path}`",
        "EXISTS `{csv}`",
        "EXISTS TABLE `secret.csv`",
        "EXISTS VIEW `{csv}`",
    ):
        assert ask(served, outside, sql, reader) == (200, b"0\n"), sql
    refused(served, outside, "EXISTS TABLE {t:Identifier}", reader, param_t="{path}")
    refused(served, outside, "SELECT hasColumnInTable('default', '{csv}', 'b')", reader)


@pytest.mark.parametrize(
    ("sql", "answer"),
    [
        ("EXISTS TABLE points", b"1\n"),
        ("EXISTS points", b"1\n"),
        ('EXISTS TABLE "default".`points` FORMAT JSONEachRow', b'{"result":1}\n'),
        ("EXISTS TABLE system.one", b"1\n"),
        ("EXISTS TABLE nope", b"0\n"),
        ("EXISTS TABLE `it's`", b"0\n"),
        ("EXISTS VIEW otel_traces_trace_id_ts_mv", b"1\n"),
        ("EXISTS VIEW points", b"0\n"),
        ("EXISTS DATABASE default", b"1\n"),
    ],
)
def test_exists_tells_of_tables(served: Served, outside: Path, sql: str, answer: bytes) -> None:
    assert ask(served, outside, sql, True) == (200, answer)


@pytest.mark.parametrize(
    "sql",
    [
        "TRUNCATE TABLE `{csv}`",
        "TRUNCATE TABLE IF EXISTS `{path}`, `{csv}`",
        "TRUNCATE TABLE `secret.csv`",
        "DROP TABLE `{csv}`",
        "INSERT INTO `{csv}` VALUES ('x')",
        "INSERT INTO `{csv}` FORMAT CSV\nx\n",
        "ALTER TABLE `{csv}` DELETE WHERE 1",
        "CREATE TABLE `{csv}` (a Int8) ENGINE = Memory",
        "CREATE TABLE c1 (a UInt8 DEFAULT throwIf('top secret' IN `{csv}`)) ENGINE = Memory",
        "CREATE TABLE c2 (a UInt8 DEFAULT throwIf(hasColumnInTable('default', '{csv}', 'b'))) ENGINE = Memory",
    ],
)
def test_a_files_name_is_no_tables_name(
    served: Served, outside: Path, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(outside)
    refused(served, outside, sql, False)


def test_a_file_is_not_cut_where_tables_may_be_missing(served: Served, outside: Path) -> None:
    assert ask(served, outside, "TRUNCATE TABLE IF EXISTS `{csv}`", False) == (200, b"")
    assert (outside / "secret.csv").read_text() == "b\ntop secret\n"


@pytest.mark.parametrize(
    "engine",
    [
        "EmbeddedRocksDB(0, '{folder}/rocks') PRIMARY KEY engine",
        "FileLog('{folder}', 'LineAsString')",
        "Kafka('127.0.0.1:1', 't', 'g', 'CSV')",
        "Distributed('default', 'system', 'one')",
        "Buffer('default', 'points', 1, 1, 1, 1, 1, 1, 1)",
        "QueryRunner",
    ],
)
def test_a_column_called_engine_hides_no_engine(served: Served, outside: Path, engine: str) -> None:
    columns = "(engine String, memory String, CONSTRAINT c CHECK engine = memory)"
    refused(served, outside, f"CREATE TABLE trick {columns} ENGINE {engine}", False)
    assert ask(served, outside, "EXISTS TABLE trick", True) == (200, b"0\n")


def test_the_systems_tables_stay(served: Served, outside: Path) -> None:
    for sql in (
        "DROP TABLE system.processes",
        "DROP TABLE IF EXISTS system.processes",
        "CREATE TABLE system.mine (a Int8) ENGINE = Memory",
        "CREATE TABLE IF NOT EXISTS `system`.`mine` (a Int8) ENGINE = Memory",
    ):
        refused(served, outside, sql, False)
    assert ask(served, outside, "SELECT count() > 0 FROM system.processes", True) == (200, b"1\n")


def test_table_ddl_that_is_open(served: Served, outside: Path) -> None:
    for sql in (
        'CREATE TABLE IF NOT EXISTS "default"."mine" (engine String, a Int8 DEFAULT 1) ENGINE = MergeTree() ORDER BY a',
        "CREATE TABLE other (a Int8) ENGINE MergeTree ORDER BY a",
        "DROP TABLE IF EXISTS nope",
        "TRUNCATE TABLE IF EXISTS nope",
        "DROP TABLE mine",
        "DROP TABLE IF EXISTS other SYNC",
    ):
        assert ask(served, outside, sql, False) == (200, b""), sql
    # Of several, some would be left without a word.
    assert ask(served, outside, "DROP TABLE IF EXISTS nope, points", False)[0] == 404
    assert ask(served, outside, "EXISTS points", True) == (200, b"1\n")


@USERS
def test_a_long_text_is_refused_before_it_is_read(served: Served, outside: Path, reader: bool) -> None:
    status, body = ask(served, outside, f"SELECT {'1,' * (3 << 20)}1", reader)
    assert (status, b"Max query size exceeded" in body) == (400, True)


def test_a_query_that_waits_for_its_turn_ends_with_its_client(served: Served, outside: Path) -> None:
    """More queries than threads: the engine does not know of the last one when its client goes."""
    endless = (
        "SELECT count() FROM system.numbers WHERE NOT ignore(sipHash64(number)) SETTINGS max_threads = 1"
    )
    ids = [f"busy-{number}" for number in range(8)]
    asked = [
        threading.Thread(target=ask, args=(served, outside, endless, True), kwargs={"query_id": query_id})
        for query_id in ids
    ]
    for thread in asked:
        thread.start()
    processes = served.engine.client()
    limit = threading.Event()
    timer = threading.Timer(60, limit.set)
    timer.start()
    try:
        mine = "SELECT count() FROM system.processes WHERE Settings['log_comment'] LIKE 'busy-%'"
        while processes.query(mine).result_rows[0][0] < len(ids):
            assert not limit.wait(0.02)
        user = served.credentials.reader
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            head = f"POST /?query_id=late&user={user.name}&password={user.password} HTTP/1.1\r\nHost: localhost\r\n"
            connection.sendall(f"{head}Content-Length: {len(endless)}\r\n\r\n{endless}".encode())
            # It is known here by now, and this ends nothing: the engine does not know it yet.
            while ask(served, outside, "KILL QUERY WHERE query_id = 'late'", True)[0] != 200:
                assert not limit.wait(0.02)
        for query_id in ids:
            assert ask(served, outside, f"KILL QUERY WHERE query_id = '{query_id}'", True)[0] == 200
        for thread in asked:
            thread.join()
        while ask(served, outside, "SELECT 1", True, query_id="late")[0] != 200:
            assert not limit.wait(0.02), "it runs on for nobody"
    finally:
        timer.cancel()
