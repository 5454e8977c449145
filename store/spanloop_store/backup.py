"""`spanloop store backup` and `restore`: rows of every table as files, or the server's own BACKUP."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from spanloop_store import audit, connection, evaluations
from spanloop_store.archive import Manifest, PieceWriter, Reader, TableBackup, Writer, unpacked
from spanloop_store.engine import Engine
from spanloop_store.errors import BackupError, NativeError
from spanloop_store.migrate import migrations, schema_version
from spanloop_store.native import Truncated, read_block
from spanloop_store.otlp.frames import SEGMENT_SUFFIX
from spanloop_store.otlp.queries import quote
from spanloop_store.owner import lock_holder, read_owner
from spanloop_store.retention import apply_default, set_retention
from spanloop_store.tables import (
    LOOKUP,
    PRIVACY,
    REGISTRY,
    TIME_COLUMNS,
    quote_name,
    read_columns,
    read_tables,
)
from spanloop_store.url import StoreUrl

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# The lookup is made again by its view, the schema's own table by the migrations.
TABLES: Final = ("otel_traces", "otel_logs", "rewards", *REGISTRY, *PRIVACY, "ingest_segments")
REPEATS: Final = "repeats"  # in the log: what the collector remembers of requests that it has logged
_HASH: Final = "__spanloop_hash"
_READ_BYTES: Final = 1 << 20
_FLUSH_S: Final = 120
# A server's own destinations: Disk('backups', 'name'), S3('https://…', …), File('name').
_DESTINATION = re.compile(r"(Disk|S3|File|AzureBlobStorage)\(.*\)", re.DOTALL)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Backup:
    """What was backed up or restored: rows by table, and the bytes of the files (0: the server keeps them)."""

    place: str
    rows: dict[str, int]
    bytes: int
    schema_version: int


def is_destination(text: str) -> bool:
    """Whether `--to` or `--from` names a place of the server and not a path."""
    return _DESTINATION.fullmatch(text.strip()) is not None


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
            return _native_backup(parsed, client, to.strip(), progress)
        writer = Writer(Path(to).expanduser())
        try:
            _record(client, str(Path(to).expanduser().resolve()))
            manifest = _write_all(parsed, client, writer, progress)
            writer.commit(manifest)
        except BaseException:
            writer.abort()
            raise
    return _summary(to, manifest)


def restore(url: str | StoreUrl | None, source: str, progress: Progress = lambda _line: None) -> Backup:
    """Fills an empty store from a backup, and compares counts and hashes of every table with it.

    An embedded store is filled beside its place and takes it when it is whole; `spanloop up` must not run on it. On a server,
    an attempt that failed leaves what it had inserted: the message names the tables.

    Args:
        url: the store; an embedded one may be missing.
        source: what `backup` wrote.
        progress: called with a line now and then.

    Raises:
        BackupError: the store has rows, the backup is damaged or newer than this program, or what was restored differs.
        StoreUnavailable: the store does not answer.
    """
    parsed = StoreUrl.parse(url)
    if is_destination(source):
        with closing(connection.connect(parsed)) as client:
            _refuse_rows(parsed, client)
            return _native_restore(parsed, client, source.strip(), progress)
    with closing(Reader(Path(source).expanduser())) as reader:
        newest = len(migrations())
        if reader.manifest.schema_version > newest:
            raise BackupError(
                f"{source} has schema version {reader.manifest.schema_version}, this program knows {newest}",
                "upgrade the program: pip install --upgrade spanloop",
            )
        # Their names go into SQL, which runs with every right.
        if unknown := sorted(set(reader.manifest.tables) - set(TABLES)):
            raise BackupError(
                f"{source} has rows of {unknown[0]!r}, which is no table of a store", "is it a backup?"
            )
        reader.verify(progress)
        if parsed.embedded:
            _restore_embedded(parsed, reader, progress)
        else:
            with closing(connection.connect(parsed)) as client:
                _refuse_rows(parsed, client)
                _fill(client, reader, progress, scratch=None)
                audit.record(client, "restore", source, {})
        return _summary(source, reader.manifest)


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
    if connection.flush(url, _FLUSH_S) is None and url.embedded and _waiting(url):
        raise BackupError(
            f"{len(_waiting(url))} segments of acknowledged requests wait in {url.log_path}; nothing was written",
            f"spanloop up --store {url.redacted()} inserts them; run the backup while it runs, or after",
        )


def _waiting(url: StoreUrl) -> list[Path]:
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


def _restore_embedded(url: StoreUrl, reader: Reader, progress: Progress) -> None:
    holder = read_owner(url) or lock_holder(url)
    if holder:
        raise BackupError(
            f"{url.redacted()} is open in another process; it is untouched",
            "stop `spanloop up` first: a restored store takes its place as a whole",
        )
    existed = url.folder.exists()
    # Beside the engine, so that it is of the same file system, however the folder is mounted.
    staging = url.folder / "restoring"
    # Open to the end: nobody else may begin to write what is about to be replaced.
    with Engine(url) as empty:
        with closing(empty.client()) as client:
            _refuse_rows(url, client)
            kept = _read_privacy(client)
        if _waiting(url):
            raise BackupError(
                f"requests wait in {url.log_path}; the store is untouched",
                "restore into another folder, or insert them first: spanloop up",
            )
        empty.close_files()
        leftover = staging if existed else url.folder
        try:
            shutil.rmtree(staging, ignore_errors=True)
            with Engine(replace(url, path=staging)) as engine, closing(engine.client()) as client:
                # Whatever its age, what was kept is restored; what a new store would let go of is decided afterwards.
                set_retention(client, None)
                _fill(client, reader, progress, scratch=staging)
                _add_privacy(client, kept)
                audit.record(client, "restore", str(reader.source), {})
                apply_default(client)
            # Requests that the collector remembers need not be among the rows of the backup: they may come again.
            (url.log_path / REPEATS).unlink(missing_ok=True)
            shutil.rmtree(url.engine_path)
            (staging / "engine").replace(url.engine_path)
            leftover = staging
        finally:
            shutil.rmtree(leftover, ignore_errors=True)


def _fill(client: Client, reader: Reader, progress: Progress, *, scratch: Path | None) -> None:
    """Inserts and compares; `scratch`: where the engine in this process may find files, None: it is a server."""
    for name, table in reader.manifest.tables.items():
        present = read_columns(client, name)
        missing = sorted(set(table.columns) - set(present))
        if missing and table.rows:
            raise BackupError(
                f"the store's {name} has no column {', '.join(missing)}, which the backup has",
                "restore into a store that the same kind of program made",
            )
        if table.rows:
            progress(f"restoring {name}: {table.rows:,} rows")
        if name == "rewards":
            # The views have made those of the events that were restored before.
            rewards = read_tables(client)[name]
            client.command(f"TRUNCATE TABLE {rewards.local}{rewards.on_cluster}")
        for piece in table.pieces:
            with reader.open(piece) as file:
                _insert(client, name, list(table.columns), file, scratch)
        # What the store itself recorded stays beside what the backup has.
        if table.rows and name not in PRIVACY:
            _compare(client, name, table)
    if reader.manifest.schema_version < evaluations.VERSION:
        evaluations.fill(client)


def _insert(client: Client, name: str, columns: list[str], file: IO[bytes], scratch: Path | None) -> None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    settings: dict[str, Any] = {
        "input_format_skip_unknown_fields": 1,  # the hash
        # Two equal blocks are two blocks here.
        "insert_deduplicate": 0,
        "max_partitions_per_insert_block": 0,
    }
    try:
        if scratch is not None:
            # The engine reads files; through the client it would unpack the whole piece first.
            with tempfile.NamedTemporaryFile(dir=scratch, suffix=".native.zst") as copy:
                shutil.copyfileobj(file, copy)
                copy.flush()
                clause = ", ".join(f"{key} = {value}" for key, value in settings.items())
                names = ", ".join(map(quote_name, columns))
                client.command(
                    f"INSERT INTO {name} ({names}) FROM INFILE {quote(copy.name)} SETTINGS {clause} FORMAT Native"
                )
        else:
            client.raw_insert(name, columns, unpacked(file), settings, "Native")
    except (ClickHouseError, OSError) as error:
        raise BackupError(
            f"{name} could not be restored: {str(error).splitlines()[0]}",
            "on a server, TRUNCATE what was restored so far, then run the command again",
        ) from error


def _compare(client: Client, name: str, table: TableBackup) -> None:
    rows, total = client.query(
        f"SELECT count(), sum({row_hash(table.columns)}) FROM {name}"  # noqa: S608  # names of our own tables
    ).result_rows[0]
    if (rows, total) != (table.rows, table.hash):
        raise BackupError(
            f"{name} has {rows:,} rows after the restore, the backup {table.rows:,}, or other values in them",
            "the backup is untouched; a default retention may have let old rows go: SPANLOOP_RETENTION_DAYS=0",
        )


def _refuse_rows(url: StoreUrl, client: Client) -> None:
    present = read_tables(client)
    full = [
        name
        for name in (*TABLES, LOOKUP)
        # What was done to it, and what was erased from it, outlives what is in it.
        if name not in PRIVACY
        and name in present
        and client.query(f"SELECT count() FROM {name}").result_rows[0][0]  # noqa: S608  # constants
    ]
    if full:
        raise BackupError(
            f"{url.redacted()} is not empty ({', '.join(full)} have rows); it is untouched",
            "restore into an empty store: another folder or database",
        )


def _native_backup(url: StoreUrl, client: Client, to: str, progress: Progress) -> Backup:
    tables = _native_tables(url, client)
    progress(f"the engine writes {to}")
    _run_native(client, f"BACKUP {tables} TO {to}")
    return _counted(client, to)


def _native_restore(url: StoreUrl, client: Client, source: str, progress: Progress) -> Backup:
    tables = _native_tables(url, client)
    progress(f"the engine reads {source}")
    # The tables are there, made by the migrations, and empty.
    _run_native(client, f"RESTORE {tables} FROM {source} SETTINGS allow_different_table_def = 1")
    # It may be of before the views, and restored parts pass none.
    evaluations.fill(client)
    return _counted(client, source)


def _native_tables(url: StoreUrl, client: Client) -> str:
    if url.embedded and read_owner(url) is not None:
        raise BackupError(
            "the running collector does not let its clients write backups of the engine's own kind",
            "give a path: --to FOLDER or --to FILE.tar; that works while it runs",
        )
    present = read_tables(client)
    clusters = {table.cluster for table in present.values() if table.cluster}
    names = [present[name].local for name in (*TABLES, LOOKUP) if name in present]
    clause = ", ".join(f"TABLE {name}" for name in names)
    return clause + (f" ON CLUSTER {quote_name(clusters.pop())}" if clusters else "")


def _read_privacy(client: Client) -> dict[str, bytes]:
    """What must outlive a restore, as it is: a backup of before an erasure must not bring it back unseen."""
    return {name: client.raw_query(f"SELECT * FROM {name}", fmt="Native") for name in PRIVACY}  # noqa: S608


def _add_privacy(client: Client, kept: dict[str, bytes]) -> None:
    """Puts back what the backup does not have."""
    for name, data in kept.items():
        if data:
            client.command(f"CREATE TABLE before_restore AS {name}")
            client.raw_insert("before_restore", insert_block=data, fmt="Native")
            client.command(
                f"INSERT INTO {name} SELECT * FROM before_restore WHERE tuple(*) NOT IN (SELECT tuple(*) FROM {name})"  # noqa: S608
            )
            client.command("DROP TABLE before_restore SYNC")


def _run_native(client: Client, sql: str) -> None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        client.command(sql)
    except ClickHouseError as error:
        raise BackupError(
            str(error).splitlines()[0],
            "the destination must be allowed by the server's <backups> setting; a path works without: --to FOLDER",
        ) from error


def _counted(client: Client, place: str) -> Backup:
    present = read_tables(client)
    rows: dict[str, int] = {
        name: int(client.query(f"SELECT count() FROM {name}").result_rows[0][0])  # noqa: S608  # constants
        for name in TABLES
        if name in present
    }
    return Backup(place, rows, 0, schema_version(client))


def _summary(place: str, manifest: Manifest) -> Backup:
    rows = {name: table.rows for name, table in manifest.tables.items()}
    return Backup(place, rows, manifest.bytes, manifest.schema_version)
