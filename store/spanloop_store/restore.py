"""`spanloop store restore`: fills an empty store from a backup, and compares."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from spanloop_store import audit, connection, evaluations
from spanloop_store.archive import Reader, TableBackup, unpacked
from spanloop_store.backup import TABLES, Backup, Progress, counted, row_hash, summary, waiting
from spanloop_store.engine import Engine
from spanloop_store.errors import BackupError
from spanloop_store.migrate import migrations
from spanloop_store.otlp.queries import quote
from spanloop_store.owner import lock_holder, read_owner
from spanloop_store.retention import apply_default, set_retention
from spanloop_store.server_backup import is_destination, read_backup
from spanloop_store.tables import LOOKUP, PRIVACY, quote_name, read_columns, read_tables
from spanloop_store.url import StoreUrl

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

REPEATS: Final = "repeats"  # in the log: what the collector remembers of requests that it has logged


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
            progress(f"the engine reads {source.strip()}")
            read_backup(parsed, client, source.strip(), TABLES)
            # It may be of before the views, and restored parts pass none.
            evaluations.fill(client)
            audit.record(client, "restore", source.strip(), {})
            return counted(client, source.strip())
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
        return summary(source, reader.manifest)


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
        if waiting(url):
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
