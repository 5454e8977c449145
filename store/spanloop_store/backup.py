"""`spanloop store backup`: rows of every table as files, or the server's own BACKUP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spanloop_store import audit, connection
from spanloop_store.archive import Manifest, PieceWriter, TableBackup, Writer
from spanloop_store.errors import BackupError, NativeError
from spanloop_store.migrate import schema_version
from spanloop_store.native import Truncated, read_block
from spanloop_store.otlp.frames import SEGMENT_SUFFIX
from spanloop_store.server_backup import is_destination, write_backup
from spanloop_store.tables import PRIVACY, REGISTRY, TIME_COLUMNS, quote_name, read_columns, read_tables
from spanloop_store.url import StoreUrl

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# The lookup is made again by its view, the schema's own table by the migrations.
TABLES: Final = ("otel_traces", "otel_logs", "rewards", *REGISTRY, *PRIVACY, "ingest_segments")
_HASH: Final = "__spanloop_hash"
_READ_BYTES: Final = 1 << 20
_FLUSH_S: Final = 120

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Backup:
    """What was backed up or restored: rows by table, and the bytes of the files (0: the server keeps them)."""

    place: str
    rows: dict[str, int]
    bytes: int
    schema_version: int


def backup(url: str | StoreUrl | None, to: str, progress: Progress = lambda _line: None) -> Backup:
    """Writes every row of the store into a new folder, a new `.tar` file, or a destination of the server.

    First everything that the collector acknowledged is inserted. A running `spanloop up` goes on meanwhile: each piece (a
    table's day) is one consistent read; what arrives later is not in it.

    Args:
        url: the store.
        to: a path that does not exist yet, `*.tar` for one file; or `Disk('NAME', 'PATH')`, `S3(…)`, `File('NAME')`, which
            the server itself writes.
        progress: called with a line now and then.

    Raises:
        BackupError: the place is taken or cannot be written, or acknowledged requests wait in a log that nobody inserts.
        AuditError: the audit trail cannot be written; nothing was copied.
        StoreUnavailable: the store, or its collector, does not answer.
    """
    parsed = StoreUrl.parse(url)
    _drain(parsed, progress)
    with closing(connection.connect(parsed, make=False)) as client:
        if is_destination(to):
            _record(client, to)
            progress(f"the engine writes {to.strip()}")
            write_backup(parsed, client, to.strip(), TABLES)
            return counted(client, to.strip())
        writer = Writer(Path(to).expanduser())
        try:
            _record(client, str(Path(to).expanduser().resolve()))
            manifest = _write_all(parsed, client, writer, progress)
            writer.commit(manifest)
        except BaseException:
            writer.abort()
            raise
    return summary(to, manifest)


def _record(client: Client, to: str) -> None:
    """One row before the first byte leaves; the backup has it too."""
    audit.record(client, "backup", to, {})


def row_hash(columns: dict[str, str]) -> str:
    """SQL of one row's hash. NULL would make the whole hash NULL, so such a column goes in as text."""
    parts = [
        f"coalesce(toString({quote_name(name)}), '\\\\N')"
        if kind.startswith("Nullable(")
        else quote_name(name)
        for name, kind in columns.items()
    ]
    return f"cityHash64({', '.join(parts)})"


def _drain(url: StoreUrl, progress: Progress) -> None:
    progress("waiting until everything acknowledged is in the store")
    if connection.flush(url, _FLUSH_S) is None and url.embedded and waiting(url):
        raise BackupError(
            f"{len(waiting(url))} segments of acknowledged requests wait in {url.log_path}; nothing was written",
            f"spanloop up --store {url.redacted()} inserts them; run the backup while it runs, or after",
        )


def waiting(url: StoreUrl) -> list[Path]:
    """Segments that nobody has inserted; not what else the collector keeps beside them."""
    return [path for path in url.log_path.glob(f"*{SEGMENT_SUFFIX}") if path.stat().st_size]


def _write_all(url: StoreUrl, client: Client, writer: Writer, progress: Progress) -> Manifest:
    manifest = Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        store=url.redacted(),
        schema_version=schema_version(client),
        program=version("spanloop"),
    )
    present = read_tables(client)
    for name in TABLES:
        if name not in present:
            continue
        columns = read_columns(client, name)
        table = manifest.tables[name] = TableBackup(columns)
        for label, condition in _pieces_of(client, name):
            with writer.piece(f"{name}/{label}.native.zst") as piece:
                total = _copy(client, _select(name, columns, condition), piece)
            done = piece.piece()
            table.rows += done.rows
            table.hash = (table.hash + total) % (1 << 64)
            table.pieces.append(done)
        if table.rows:
            progress(f"{name}: {table.rows:,} rows in {len(table.pieces)} files")
    return manifest


def _pieces_of(client: Client, name: str) -> Iterator[tuple[str, str]]:
    """(label, condition): a day each, so that each is restored into one partition; small tables whole."""
    column = TIME_COLUMNS.get(name)
    if column is None:
        yield "all", "1"
        return
    days = client.query(
        f"SELECT DISTINCT toString(toDate({column})) AS day FROM {name} ORDER BY day"  # noqa: S608  # constants
    ).result_rows
    for (day,) in days:
        yield day, f"toDate({column}) = '{day}'"


def _select(name: str, columns: dict[str, str], condition: str) -> str:
    names = ", ".join(map(quote_name, columns))
    return f"SELECT {names}, {row_hash(columns)} AS {_HASH} FROM {name} WHERE {condition}"  # noqa: S608  # constants


def _copy(client: Client, sql: str, piece: PieceWriter) -> int:
    """Streams an answer into a piece, block by block; returns the sum of its rows' hashes."""
    total = 0
    for data, rows, hashes in _blocks(client, sql):
        piece.write(data, rows)
        total += sum(int.from_bytes(hashes[at : at + 8], "little") for at in range(0, len(hashes), 8))
    return total % (1 << 64)


def _blocks(client: Client, sql: str) -> Iterator[tuple[bytes, int, bytes]]:
    """(bytes, rows, hashes) of each block of an answer; the last column is the hash.

    Raises:
        BackupError: the answer ends early.
    """
    buffer = bytearray()
    wanted = _READ_BYTES
    stream: Any = client.raw_stream(sql, fmt="Native")
    with closing(stream):
        while True:
            data = stream.read(wanted)
            buffer += data
            position = 0
            view = bytes(buffer)
            try:
                while position < len(view):
                    block = read_block(view, position)
                    last = block.columns[-1] if block.columns else None
                    yield view[position : block.end], block.rows, view[last.data : last.end] if last else b""
                    position = block.end
                wanted = _READ_BYTES
            except Truncated:
                # A large block: the next look waits until as much again has come, so that it is not read too often.
                wanted = max(_READ_BYTES, len(view) - position)
            except NativeError as error:
                raise BackupError(
                    f"the store's answer cannot be read: {error.message}", "run the backup again"
                ) from error
            del buffer[:position]
            if not data:
                break
    if buffer:
        raise BackupError(
            "the store's answer ends early", "look at the store's log, then run the backup again"
        )


def counted(client: Client, place: str) -> Backup:
    """What the store has, where the server alone knows its backup."""
    present = read_tables(client)
    rows: dict[str, int] = {
        name: int(client.query(f"SELECT count() FROM {name}").result_rows[0][0])  # noqa: S608  # constants
        for name in TABLES
        if name in present
    }
    return Backup(place, rows, 0, schema_version(client))


def summary(place: str, manifest: Manifest) -> Backup:
    """What a backup's own list says."""
    rows = {name: table.rows for name, table in manifest.tables.items()}
    return Backup(place, rows, manifest.bytes, manifest.schema_version)
