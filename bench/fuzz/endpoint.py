"""Mutated requests to the ClickHouse endpoint: texts, parameters, headers, frames and insert bodies; and what none of them may do."""

from __future__ import annotations

import base64
import re
import secrets
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lz4.block
import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd
from hypothesis import strategies as st

from bench.fuzz.mutate import mutated
from bench.fuzz.served import Reply, Served, Watch, Wire

TARGET = "fuzz"  # the table that inserts go to
_CREATE = f"CREATE TABLE IF NOT EXISTS {TARGET} (a Int32, b String) ENGINE = MergeTree ORDER BY a"
_UNKNOWN_EXCEPTION = "1002"  # the endpoint's own failure
_SECRET = "{SECRET}"  # in a text: the path of the file that nobody may read
_FOLDER = "{FOLDER}"

_READS = (
    "SELECT 1",
    "SELECT a, b FROM fuzz WHERE a > 1 ORDER BY a LIMIT 5",
    "SELECT count() FROM otel_traces",
    "WITH 1 AS x SELECT x, {p:String}",
    "(SELECT 1) UNION ALL (SELECT 2)",
    "FROM numbers(3) SELECT number FORMAT JSON",
    "SHOW TABLES",
    "SHOW CREATE TABLE fuzz",
    "DESCRIBE TABLE fuzz",
    "EXPLAIN AST SELECT 1",
    "EXISTS TABLE fuzz",
    "SELECT displayName(), version(), revision(), timezone()",
    "SELECT * FROM system.tables LIMIT 2 FORMAT Native",
    "SELECT 'it''s', \"a\", `b`, 'x\\'y', -- comment\n 1 /* more */ FROM fuzz SETTINGS max_threads = 1",
    "SELECT arrayMap(x -> x + 1, [1, 2]), {x: 1}['x'], 1.5e3, 0x1f, NULL, tuple(1, 'a').1",
    "SET max_threads = 1",
    "USE default",
)
_WRITES = (
    "INSERT INTO fuzz (a, b) VALUES (1, 'x'), (2, 'y')",
    "INSERT INTO fuzz SELECT number, 'n' FROM numbers(3)",
    "CREATE TABLE other (a Int8) ENGINE = Memory",
    "DROP TABLE IF EXISTS other",
    "ALTER TABLE fuzz ADD COLUMN IF NOT EXISTS c Int8",
    "ALTER TABLE fuzz DROP COLUMN IF EXISTS c",
    "TRUNCATE TABLE fuzz",
    "OPTIMIZE TABLE fuzz FINAL",
    "CREATE VIEW v AS SELECT 1",
    "DROP VIEW IF EXISTS v",
    "DELETE FROM fuzz WHERE a = 1",
)
# Ways out of the store: a file, another server, a program, more rights.
_ESCAPES = (
    "SELECT * FROM file('{SECRET}', 'LineAsString')",
    "SELECT file('{SECRET}')",
    "SELECT arrayMap(file, ['{SECRET}'])",
    "SELECT * FROM '{SECRET}'",
    "SELECT * FROM `{SECRET}`",
    'SELECT * FROM "{SECRET}"',
    "DESCRIBE file('{FOLDER}/*')",
    "SELECT * FROM merge('default', '.*')",
    "SELECT * FROM view(SELECT * FROM file('{SECRET}', 'LineAsString', 'x String'))",
    "SELECT * FROM viewIfPermitted(SELECT * FROM file('{SECRET}') ELSE null('x Int8'))",
    "SELECT * FROM loop(file('{SECRET}'))",
    "SELECT * FROM url('file://{SECRET}', 'LineAsString', 'x String')",
    "SELECT * FROM s3('http://127.0.0.1:1/x', 'CSV')",
    "SELECT * FROM remote('127.0.0.1:1', system.one)",
    "SELECT * FROM executable('cat {SECRET}', 'TSV', 'x String')",
    "SELECT * FROM sqlite('{SECRET}', 't')",
    "SELECT * FROM format('CSV', $$1$$)",
    "SELECT * FROM fileCluster('default', '{SECRET}')",
    "SELECT 1 INTO OUTFILE '{FOLDER}/out.csv'",
    "SELECT 1 INTO OUTFILE '{FOLDER}/out.csv' TRUNCATE FORMAT CSV",
    "INSERT INTO fuzz FROM INFILE '{SECRET}' FORMAT LineAsString",
    "INSERT INTO FUNCTION file('{FOLDER}/out.csv', 'CSV', 'x Int8') SELECT 1",
    "INSERT INTO TABLE FUNCTION null('x Int8') SELECT * FROM file('{SECRET}')",
    "CREATE TABLE f (x String) ENGINE = File(LineAsString, '{SECRET}')",
    "CREATE TABLE f ENGINE = Memory AS SELECT * FROM file('{SECRET}', 'LineAsString')",
    "CREATE TABLE f AS file('{SECRET}')",
    "CREATE TABLE f (x Int8) ENGINE = URL('http://127.0.0.1:1', CSV)",
    "CREATE DICTIONARY d (x String) PRIMARY KEY x SOURCE(FILE(PATH '{SECRET}' FORMAT 'CSV')) LAYOUT(FLAT()) LIFETIME(0)",
    "CREATE TABLE f (x Int8) ENGINE = MergeTree ORDER BY x SETTINGS disk = disk(type = local, path = '{FOLDER}/')",
    "CREATE FUNCTION g AS () -> file('{SECRET}')",
    "CREATE DATABASE d ENGINE = Filesystem('{FOLDER}')",
    "CREATE USER u",
    "GRANT ALL ON *.* TO default",
    "SET ROLE spanloop_owner",
    "SET ROLE ALL",
    "EXECUTE AS default SELECT 1",
    "BACKUP TABLE fuzz TO File('{FOLDER}/b')",
    "RESTORE TABLE fuzz FROM File('{FOLDER}/b')",
    "ATTACH TABLE x FROM '{FOLDER}' (x Int8) ENGINE = MergeTree ORDER BY x",
    "ALTER TABLE fuzz FREEZE",
    "SYSTEM SHUTDOWN",
    "SYSTEM FLUSH LOGS",
    "KILL QUERY WHERE 1",
    "DETACH TABLE fuzz",
    "SELECT 1; SELECT 2",
    "SELECT 1 PARALLEL WITH DROP TABLE fuzz",
    "SELECT catboostEvaluate('{SECRET}', 1)",
    "SELECT * FROM fuzz SETTINGS format_schema = '{SECRET}:x' FORMAT Protobuf",
    "INSERT INTO fuzz SETTINGS format_schema_source = 'file', format_schema = '{SECRET}' FORMAT Protobuf x",
    "SELECT * FROM python('x')",
    # SQL that comes as a value.
    "SELECT arrayMap({p:Identifier}, ['{SECRET}'])",
    "SELECT x FROM values('a UInt8, x String ALIAS file(\\'{SECRET}\\')', 1)",
    "SELECT x FROM generateRandom('a UInt8, x String ALIAS file(\\'{SECRET}\\')') LIMIT 1",
    "SELECT * FROM format('Values', 'x String', '(file(\\'{SECRET}\\'))')",
    "INSERT INTO fuzz FORMAT Values (1, file('{SECRET}'))",
    "SELECT 1 SETTINGS additional_result_filter = 'file(\\'{SECRET}\\') != 1'",
    "SELECT 1 AS x FORMAT Protobuf SETTINGS output_format_schema = '{FOLDER}/o.proto'",
    # Names that are files.
    "EXISTS TABLE `{SECRET}`",
    "TRUNCATE TABLE `{SECRET}`",
    "DROP TABLE `{SECRET}`",
    "CREATE TABLE f (engine String, memory String, CONSTRAINT c CHECK engine = memory) ENGINE EmbeddedRocksDB(0, '{FOLDER}/o') PRIMARY KEY engine",
    "CREATE TABLE f (x UInt8 DEFAULT 'x' IN `{SECRET}`) ENGINE = Memory",
)
# What two lexers may read differently.
_SQL_PIECES = tuple(
    text.encode()
    for text in (
        *(
            "/*",
            "*/",
            "--",
            "#",
            "#!",
            "$$",
            "$a$",
            "'",
            '"',
            "`",
            "\\",
            "''",
            "\\'",
            "\\x27",
            "\\0",
            ";",
            ";;",
        ),
        *(
            "\x00",
            "\xa0",
            "\u2028",
            "\u200b",
            "\ufeff",
            "\x0b",
            "\x0c",
            "\r",
            "\n",
            "(",
            ")",
            "{",
            "}",
            "@",
            "?",
        ),
        *(
            "FORMAT Native",
            "FORMAT Null",
            "SETTINGS max_threads = 1",
            "UNION ALL",
            "fi/**/le",
            "FILE",
            "file",
        ),
        *("file('{SECRET}')", "INTO OUTFILE '{FOLDER}/o'", '"file"', "`file`", '"fi\\x6ce"', "EXPLAIN", "AS"),
        *("1e", "0x", "1.", ".1", "..", "->", "::", "||", "<=>", "≠", "U&'x'", "b'01'", "x'41'", "N'x'"),
    )
)
_TOKEN = re.compile(rb"\w+|\s+|'(?:[^'\\]|\\.)*'|.", re.DOTALL)
_FORMATS = ("Native", "Arrow", "ArrowStream", "Parquet", "JSON", "JSONEachRow", "CSV", "TabSeparated")
_MORE_FORMATS = (
    "RowBinary",
    "Values",
    "XML",
    "Vertical",
    "Null",
    "Protobuf",
    "Template",
    "RawBLOB",
    "Nonsense",
    "",
)
_SETTINGS = (
    *(
        "max_threads",
        "max_block_size",
        "readonly",
        "allow_ddl",
        "role",
        "format_schema",
        "format_template_row",
    ),
    *(
        "query_id",
        "query_id",
        "session_id",
        "session_timeout",
        "session_check",
        "database",
        "default_format",
        "compress",
        "decompress",
    ),
    *(
        "enable_http_compression",
        "wait_end_of_query",
        "query_id",
        "user",
        "password",
        "param_p",
        "param_",
        "x y",
    ),
    *(
        "client_protocol_version",
        "disk",
        "storage_policy",
        "log_queries",
        "input_format_allow_errors_num",
        "",
    ),
    *("param_p", "filter", "select", "order", "additional_result_filter", "output_format_schema", "dialect"),
    *("stacktrace", "buffer_size", "output_format_native_encode_types_in_binary_format", "max_memory_usage"),
)
_SETTING_VALUES = (
    *("1", "0", "-1", "", "x", "99999999999999999999", "1.5", "'", "\\", "a`b", "\u00e9", "\ud800", "\x00"),
    *(
        "a\r\nX-Evil: 1",
        "default",
        "nowhere",
        "Native",
        "spanloop_owner",
        "true",
        "null",
        "0x10",
        "s1",
        "s2",
        "file",
        "file('{SECRET}') != 'x'",
        "{FOLDER}/o",
        "54460",
        "60",
    ),
)


@dataclass(frozen=True)
class Ask:
    """One request.

    Args:
        user: `writer`, `reader`, or something that is no credential.
        method: of HTTP.
        parameters: of the URL.
        body: as it is sent.
        headers: without credentials.
        insert: whether the body is data for the table.
    """

    user: str
    method: str
    parameters: tuple[tuple[str, str], ...]
    body: bytes
    headers: tuple[tuple[str, bytes], ...]
    insert: bool


def _bodies() -> dict[str, bytes]:
    table = pa.table({"a": pa.array([1, 2, 3], pa.int32()), "b": ["x", "", "ü" * 20]})
    stream, file, parquet = (pa.BufferOutputStream() for _ in range(3))
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, parquet)
    native = b"\x02\x03\x01a\x05Int32" + struct.pack("<3i", 1, 2, 3) + b"\x01b\x06String\x01x\x00\x02ok"
    return {
        "Native": native,
        "ArrowStream": stream.getvalue().to_pybytes(),
        "Arrow": file.getvalue().to_pybytes(),
        "Parquet": parquet.getvalue().to_pybytes(),
        "RowBinary": struct.pack("<i", 1) + b"\x01x" + struct.pack("<i", 2) + b"\x00",
        "JSONEachRow": b'{"a":1,"b":"x"}\n{"a":2,"b":"y"}\n',
        "JSONCompactEachRow": b'[1,"x"]\n[2,"y"]\n',
        "CSV": b'1,"x"\n2,y\n',
        "TabSeparated": b"1\tx\n2\ty\n",
        "Values": b"(1, 'x'), (2, 'y')",
    }


_BODIES = _bodies()


def _frames(data: bytes, method: int = 0x82) -> bytes:
    packed = lz4.block.compress(data, store_size=False) if method == 0x82 else zstd.compress(data)
    return bytes(16) + struct.pack("<BII", method, len(packed) + 9, len(data)) + packed


_PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: zlib.compress(data, wbits=31),
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "lz4": lz4.frame.compress,
}


@st.composite
def statements(draw: st.DrawFn, seeds: Sequence[str]) -> bytes:
    """A statement whose tokens were moved, doubled, glued, split by comments, or re-spelt; then a few of its bytes."""
    tokens = _TOKEN.findall(draw(st.sampled_from(seeds)).encode())
    for _ in range(draw(st.sampled_from((0, 1, 1, 2, 3, 5)))):
        place = draw(st.integers(0, len(tokens)))
        kind = draw(st.sampled_from(("insert", "insert", "cut", "double", "swap", "case", "blank", "quote")))
        if kind == "insert" or place == len(tokens):
            tokens.insert(place, draw(st.sampled_from(_SQL_PIECES)))
        elif kind == "cut":
            del tokens[place]
        elif kind == "double":
            tokens.insert(place, tokens[place])
        elif kind == "swap":
            other = draw(st.integers(0, len(tokens) - 1))
            tokens[place], tokens[other] = tokens[other], tokens[place]
        elif kind == "case":
            tokens[place] = tokens[place].swapcase()
        elif kind == "blank":
            tokens[place] = draw(
                st.sampled_from((b"/**/", b"\t", b"\n--\n", b"\xc2\xa0", b"\x0c", b"/*/*", b""))
            )
        else:
            mark = draw(st.sampled_from((b"`", b'"', b"'")))
            tokens[place] = mark + tokens[place] + mark
    text = b"".join(tokens)
    return draw(mutated((text,), 2, _SQL_PIECES)) if draw(st.integers(0, 3)) == 0 else text


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    """Queries, inserts and ways out, with right and wrong surroundings."""
    user = draw(st.sampled_from(("reader",) * 4 + ("writer",) * 8 + ("wrong", "none", "odd")))
    method = draw(st.sampled_from(("POST",) * 16 + ("GET",) * 4 + ("PUT",)))
    parameters: list[tuple[str, str]] = [("max_execution_time", "2"), ("param_p", "x")]
    headers: list[tuple[str, bytes]] = []
    insert = draw(st.integers(0, 3)) == 0
    if insert:
        form = draw(st.sampled_from(sorted(_BODIES)))
        text = f"INSERT INTO {TARGET} (a, b) FORMAT {form}".encode()
        body = draw(mutated((_BODIES[form],), 4))
        if draw(st.booleans()):
            body, text = text + b"\n" + body, b""
    else:
        text = draw(
            statements(draw(st.sampled_from((_READS, _READS, _READS, _READS, _WRITES, _ESCAPES, _ESCAPES))))
        )
        body = b""
        if method != "GET" and draw(st.booleans()):
            body, text = text, b""
    if draw(st.integers(0, 3)) == 0 and body:
        body = draw(st.sampled_from((_frames(body), _frames(body, 0x90))))
        parameters.append(("decompress", "1"))
    if draw(st.integers(0, 3)) == 0 and body:
        name = draw(st.sampled_from(sorted(_PACK)))
        body = _PACK[name](body)
        if draw(st.integers(0, 2)) == 0:
            body = draw(mutated((body,), 2))
        headers.append(("Content-Encoding", name.encode()))
    if text:
        parameters.append(("query", text.decode("utf-8", "surrogateescape")))
    if draw(st.booleans()):
        forms = st.sampled_from((*_FORMATS, *_MORE_FORMATS))
        parameters.append(("default_format", draw(forms)))
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
        parameters.append((draw(st.sampled_from(_SETTINGS)), draw(st.sampled_from(_SETTING_VALUES))))
    if draw(st.integers(0, 5)) == 0:
        encoding = draw(st.sampled_from((b"gzip", b"lz4", b"zstd", b"br", b"gzip;q=0, deflate", b"\xff;q=x")))
        headers.append(("Accept-Encoding", encoding))
        parameters.append(("enable_http_compression", "1"))
    if draw(st.integers(0, 9)) == 0:
        name = draw(
            st.sampled_from(("Host", "Origin", "Content-Type", "Content-Encoding", "X-ClickHouse-User"))
        )
        value = draw(
            st.sampled_from((b"evil.example", b"localhost", b"null", b"[::1", b"\xff\xfe", b"", b"a@b:c"))
        )
        headers.append((name, value))
    return Ask(user, method, tuple(parameters), body, tuple(headers), insert)


class Endpoint:
    """Sends requests to the endpoint and looks at what they did.

    Args:
        served: the running process; its folder holds the store.
        outside: a folder that the endpoint must not touch; a secret is put there.
    """

    def __init__(self, served: Served, outside: Path) -> None:
        self._served = served
        self._wire = Wire(served.clickhouse)
        self._secret = secrets.token_hex(16).encode()
        self._outside = outside
        self.secret_file = outside / "secret.txt"
        self.secret_file.write_bytes(self._secret + b"\n")
        self._watch = Watch(outside)
        self._served.query(_CREATE)
        self.answers: Counter[str] = Counter()

    def close(self) -> None:
        """Closes the connection and stops watching."""
        self._wire.close()
        self._watch.close()

    def check(self, ask: Ask) -> None:
        """Sends one request.

        Raises:
            AssertionError: it failed inside, read or made a file, or a refused request changed something.
        """
        may_write = ask.user == "writer" and ask.method == "POST"
        before = None if may_write and not ask.insert else self._state(rows_only=ask.insert)
        reply = self._send(ask)
        code = reply.headers.get("x-clickhouse-exception-code", "")
        self.answers[f"{reply.status} code {code}" if reply.status >= 500 else str(reply.status)] += 1
        assert reply.status, ("the connection was closed without an answer", ask)
        if reply.status >= 500:
            assert code not in ("", _UNKNOWN_EXCEPTION), (reply, ask)
        assert self._secret not in reply.body, (reply, ask)
        touched = self._watch.seen()
        assert not touched, (touched, reply, ask)
        if before is not None and (reply.status >= 400 or not may_write):
            after = self._state(rows_only=ask.insert)
            assert after == before, (before, after, reply, ask)
        if may_write and self._served.query(f"EXISTS TABLE {TARGET}") != [(1,)]:
            self._served.query(_CREATE)

    def _send(self, ask: Ask) -> Reply:
        def fill(text: str) -> str:
            return text.replace(_SECRET, str(self.secret_file)).replace(_FOLDER, str(self._outside))

        parts = [
            f"{quote(name, safe='', errors='replace')}={quote(fill(value), safe='', errors='surrogateescape')}"
            if not _lone(value)
            else f"{quote(name, safe='')}=%ED%A0%80"
            for name, value in ask.parameters
        ]
        headers: list[tuple[bytes | str, bytes | str]] = [*self._credentials(ask.user), *ask.headers]
        body = ask.body.replace(_SECRET.encode(), str(self.secret_file).encode())
        body = body.replace(_FOLDER.encode(), str(self._outside).encode())
        return self._wire.send(ask.method, "/?" + "&".join(parts), body, headers)

    def _credentials(self, user: str) -> list[tuple[str, bytes]]:
        owner = self._served.owner
        pairs = {
            "writer": f"{owner.user}:{owner.password}".encode(),
            "reader": f"{owner.reader_user}:{owner.reader_password}".encode(),
            "wrong": f"{owner.user}:wrong".encode(),
            "odd": b"\xff\xfe:\x00",
        }
        if user not in pairs:
            return []
        return [("Authorization", b"Basic " + base64.b64encode(pairs[user]))]

    def _state(self, *, rows_only: bool) -> list[tuple[Any, ...]]:
        """What a reader could change: the rows of the target, or of everything with its definition."""
        if rows_only:
            # A count would go up at an insert and down at a merge of equal rows; there are no such merges here.
            return self._served.query(f"SELECT count(), sum(cityHash64(*)) FROM {TARGET}")
        return self._served.query(
            "SELECT name, create_table_query, total_rows FROM system.tables WHERE database = 'default' ORDER BY name"
        )


def _lone(text: str) -> bool:
    return any("\ud800" <= character <= "\udc7f" for character in text)
