"""The schema: numbered SQL files, applied in order and recorded in `spanloop_schema`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from spanloop_store import evaluations
from spanloop_store.adopt import adopt, check
from spanloop_store.errors import SchemaError
from spanloop_store.retention import apply_default
from spanloop_store.tables import read_tables

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# A stock collector makes these tables without it; a segment's insert is exactly-once only with it.
_DEDUPLICATED_TABLES = ("otel_traces", "otel_traces_trace_id_ts", "otel_logs", "rewards")
_DEDUPLICATION_WINDOW = 10_000  # inserts remembered per table
# Their rows stand in the collector's log, which forgets them once they are inserted: a power cut must not take them then.
_SYNCED_TABLES = ("otel_traces", "otel_traces_trace_id_ts", "otel_logs", "rewards")
# What a migration does beyond its SQL.
_AFTER = {3: apply_default, evaluations.VERSION: evaluations.fill}
_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")
SCHEMA_TABLE = """
CREATE TABLE IF NOT EXISTS spanloop_schema
(
    `version` UInt32,
    `name` String,
    `applied` DateTime64(3) DEFAULT now64(3)
)
ENGINE = MergeTree
ORDER BY version
"""


@dataclass(frozen=True)
class Migration:
    """One numbered file.

    Args:
        version: its number, from 1, without gaps.
        name: the rest of its file name.
        statements: its SQL statements, each able to run twice.
    """

    version: int
    name: str
    statements: tuple[str, ...]


def split_statements(text: str) -> Iterator[str]:
    """Splits a migration on `;` at line ends; comments on lines of their own are dropped.

    Only a line that *ends* in `;` ends a statement, so a `;` inside a comment or a literal is safe.
    """
    lines: list[str] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("--"):
            continue
        lines.append(line.rstrip())
        if lines[-1].endswith(";"):
            yield "\n".join(lines)[:-1]
            lines = []
    if lines:
        yield "\n".join(lines)


def migrations() -> list[Migration]:
    """All migrations of this program, in order."""
    found = []
    for entry in resources.files("spanloop_store").joinpath("migrations").iterdir():
        if match := _FILE_NAME.fullmatch(entry.name):
            text = entry.read_text(encoding="utf-8")
            found.append(Migration(int(match[1]), match[2], tuple(split_statements(text))))
    return sorted(found, key=lambda migration: migration.version)


def schema_version(client: Client) -> int:
    """The newest migration that the store has; 0 for an empty one."""
    # Not EXISTS TABLE: the embedded `default` database would take a file of that name in the working directory for one.
    known = client.query(
        "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = 'spanloop_schema'"
    )
    if not known.result_rows[0][0]:
        return 0
    return int(client.query("SELECT max(version) FROM spanloop_schema").result_rows[0][0])


def migrate(client: Client, steps: Sequence[Migration] | None = None) -> int:
    """Brings the store's schema to this program's version; does nothing where it is there already.

    Upstream's tables that another program made are adopted: rows, columns and sorting keys stay, missing columns are added,
    the deduplication window and the syncs are turned on.

    Every statement can run twice (`IF NOT EXISTS`), and a version is recorded after its statements, so a killed
    migration is simply repeated and two programs that start at once on a server do the same work twice.

    Args:
        client: a client with the right to create tables in its database.
        steps: the migrations; this program's own when None.

    Returns:
        The schema version that the store has now.

    Raises:
        SchemaError: the store's schema is newer than this program, tables of another program do not fit it, the tables are
            a cluster's, whose schema is changed by hand, or a statement failed.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError

    steps = migrations() if steps is None else list(steps)
    newest = steps[-1].version if steps else 0
    present = schema_version(client)
    if present > newest:
        raise SchemaError(
            f"the store has schema version {present}, this program knows {newest}; nothing was changed",
            "upgrade the program: pip install --upgrade spanloop",
        )
    if present == newest:
        return present
    check(client)
    cluster = next((table.cluster for table in read_tables(client).values() if table.cluster), "")
    if cluster:
        raise SchemaError(
            f"the tables are distributed over the cluster {cluster!r} and have schema version {present}, this program"
            f" needs {newest}; nothing was changed",
            f"spanloop store ddl --cluster {cluster} --since {present}, and run what it prints on any node",
        )
    client.command(SCHEMA_TABLE)
    for step in steps:
        if step.version <= present:
            continue
        try:
            for statement in step.statements:
                client.command(statement)
            if step.version == 1:
                adopt(client)
            if step.version in _AFTER:
                _AFTER[step.version](client)
            # Before the version is written down: who finds that looks no further.
            remember_inserts(client)
        except ClickHouseError as error:
            raise SchemaError(
                f"migration {step.version:04d}_{step.name} failed: {error}",
                "the earlier versions are untouched; check the rights of the store's user and run the command again",
            ) from error
        client.insert("spanloop_schema", [[step.version, step.name]], column_names=["version", "name"])
    return newest


def remember_inserts(client: Client) -> None:
    """Turns the deduplication window and the syncs on where another program made the table."""
    for tables, setting, assignment in (
        (
            _DEDUPLICATED_TABLES,
            "non_replicated_deduplication_window",
            f"non_replicated_deduplication_window = {_DEDUPLICATION_WINDOW}",
        ),
        (_SYNCED_TABLES, "fsync_after_insert", "fsync_after_insert = 1, fsync_part_directory = 1"),
    ):
        rows = client.query(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND name IN {names:Array(String)}"
            " AND engine = 'MergeTree' AND position(engine_full, {setting:String}) = 0",
            parameters={"names": list(tables), "setting": setting},
        ).result_rows
        for (name,) in rows:
            client.command(f"ALTER TABLE {name} MODIFY SETTING {assignment}")
