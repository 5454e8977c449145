"""The schema for a cluster: the migrations' own tables, replicated and distributed, as SQL to run once on any node."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from spanloop_store import evaluations
from spanloop_store.errors import SchemaError
from spanloop_store.migrate import SCHEMA_TABLE, Migration, migrations
from spanloop_store.otlp.signals import Signal
from spanloop_store.retention import ttl_clause
from spanloop_store.tables import PASSAGE, SHARD_KEYS, TIME_COLUMNS, quote_name

LOCAL_SUFFIX: Final = "_local"
_CREATE_TABLE = re.compile(
    r"\s*CREATE TABLE IF NOT EXISTS (\w+)\s*\((.*)\)\s*ENGINE = MergeTree\n(.*)", re.DOTALL
)
_CREATE_PASSAGE = re.compile(r"\s*CREATE TABLE IF NOT EXISTS (\w+)\s*\(.*\)\s*ENGINE = Null\s*", re.DOTALL)
_CREATE_VIEW = re.compile(r"\s*CREATE MATERIALIZED VIEW IF NOT EXISTS (\w+)\s", re.DOTALL)
_ALTER_TABLE = re.compile(r"\s*ALTER TABLE (\w+) ")
# Replicated tables have a window of their own, whose default has changed between versions.
_WINDOW = re.compile(r"\bnon_replicated_deduplication_window = (\d+)")
_REPLICATED_WINDOW = r"replicated_deduplication_window = \1, replicated_deduplication_window_seconds = 604800"
_CLUSTER = re.compile(r"[\w-]+|\{\w+\}")
_DATABASE = re.compile(r"[\w-]+")
_PATH = re.compile(r"(/([\w.-]|\{\w+\})+)+")


@dataclass(frozen=True)
class Layout:
    """Where things are on the cluster.

    Args:
        cluster: its name in `remote_servers`; `{cluster}` to let each server's macro say it.
        database: what the tables lie in; it must exist on every node.
        path: prefix of the tables' paths in Keeper.
        days: how long rows are kept; None: for ever.
    """

    cluster: str
    database: str = "default"
    path: str = "/clickhouse/tables"
    days: int | None = None


def cluster_ddl(layout: Layout, since: int = 0, steps: Sequence[Migration] | None = None) -> list[str]:
    """The statements, in order; each can run twice.

    Spans, logs and rewards: a replicated table `NAME_local` on every shard, and a distributed table of the usual name over
    them, sharded by the trace's hash, so that one trace lies on one shard. The lookup's view works on the local tables. The
    registry is small and asked by everyone: one replicated table with a copy on every node, no shards.

    Args:
        layout: names of cluster, database and path.
        since: the schema version that the cluster has; only later migrations are rendered.
        steps: the migrations; this program's own when None.

    Raises:
        SchemaError: a cluster or database whose name is none, a path that is none, or a migration that is not known here.
    """
    for what, name, form, use in (
        ("name of a cluster", layout.cluster, _CLUSTER, "letters, digits, _ and -, or a macro as {cluster}"),
        ("name of a database", layout.database, _DATABASE, "letters, digits, _ and -"),
        (
            "path in Keeper",
            layout.path,
            _PATH,
            "/ and names of letters, digits, _, - and ., or macros as {uuid}",
        ),
    ):
        if not form.fullmatch(name):
            raise SchemaError(f"{name!r} is no {what}", f"use {use}")
    statements = [*_registry_table(SCHEMA_TABLE, layout)] if not since else []
    for step in migrations() if steps is None else steps:
        if step.version <= since:
            continue
        for statement in step.statements:
            statements += _render(statement, layout)
        if step.version == evaluations.VERSION:
            # A cluster's migration ends here: what the views have not seen is made now.
            statements += [
                evaluations.fill_statement(signal, named=partial(_qualified, layout=layout))
                for signal in Signal
            ]
        statements.append(
            f"INSERT INTO {_qualified('spanloop_schema', layout)} (version, name) VALUES ({step.version}, '{step.name}')"  # noqa: S608
        )
    return statements


def _render(statement: str, layout: Layout) -> Iterator[str]:
    if table := _CREATE_TABLE.match(statement):
        name = table[1]
        yield from (
            _sharded_table(statement, layout) if name in SHARD_KEYS else _registry_table(statement, layout)
        )
    elif passage := _CREATE_PASSAGE.fullmatch(statement):
        yield _here(statement, passage[1], layout)
    elif view := _CREATE_VIEW.match(statement):
        yield _view(statement, view[1], layout)
    elif alter := _ALTER_TABLE.match(statement):
        name = alter[1]
        target = name + LOCAL_SUFFIX if name in SHARD_KEYS else name
        yield _WINDOW.sub(_REPLICATED_WINDOW, statement.strip()).replace(
            f"ALTER TABLE {name}", f"ALTER TABLE {_qualified(target, layout)}{_on(layout)}", 1
        )
    else:
        raise SchemaError(
            f"a migration has a statement that is not known for clusters: {statement[:60]!r}",
            "teach spanloop_store.ddl to render it",
        )


def _sharded_table(statement: str, layout: Layout) -> Iterator[str]:
    name, columns, rest = _parts(statement)
    local = name + LOCAL_SUFFIX
    path = f"{layout.path}/{{shard}}/{layout.database}/{local}"
    yield (
        f"CREATE TABLE IF NOT EXISTS {_qualified(local, layout)}{_on(layout)}\n({columns})\n"
        f"ENGINE = ReplicatedMergeTree('{path}', '{{replica}}')\n{_with_ttl(name, rest, layout.days)}"
    )
    yield (
        f"CREATE TABLE IF NOT EXISTS {_qualified(name, layout)}{_on(layout)}\n({_plain(columns)})\n"
        f"ENGINE = Distributed('{layout.cluster}', '{layout.database}', '{local}', {SHARD_KEYS[name]})"
    )


def _registry_table(statement: str, layout: Layout) -> Iterator[str]:
    """One copy a node: a path without a shard, and a replica's name with it, since `{replica}` repeats over shards."""
    name, columns, rest = _parts(statement)
    path = f"{layout.path}/all/{layout.database}/{name}"
    yield (
        f"CREATE TABLE IF NOT EXISTS {_qualified(name, layout)}{_on(layout)}\n({columns})\n"
        f"ENGINE = ReplicatedMergeTree('{path}', '{{shard}}-{{replica}}')\n{rest}"
    )


def _view(statement: str, name: str, layout: Layout) -> str:
    text = statement.strip()
    for table in sorted(SHARD_KEYS, key=len, reverse=True):
        text = re.sub(rf"\b(TO|FROM) {table}\b", rf"\1 {_qualified(table + LOCAL_SUFFIX, layout)}", text)
    text = re.sub(rf"\b(TO|FROM) {PASSAGE}\b", rf"\1 {_qualified(PASSAGE, layout)}", text)
    return _here(text, name, layout)


def _here(statement: str, name: str, layout: Layout) -> str:
    """The same on every node."""
    return statement.strip().replace(f"EXISTS {name}", f"EXISTS {_qualified(name, layout)}{_on(layout)}", 1)


def _parts(statement: str) -> tuple[str, str, str]:
    match = _CREATE_TABLE.match(statement)
    assert match is not None, statement
    return match[1], match[2], _WINDOW.sub(_REPLICATED_WINDOW, match[3]).strip()


def _with_ttl(name: str, rest: str, days: int | None) -> str:
    if days is None or name not in TIME_COLUMNS:
        return rest
    before, settings, after = rest.partition("SETTINGS")
    return f"{before.rstrip()}\nTTL {ttl_clause(name, days)}\n{settings or 'SETTINGS'}{after or ' ttl_only_drop_parts = 1'}"


def _plain(columns: str) -> str:
    """Columns without what only a table with rows of its own can have: codecs and indexes."""
    lines = [line for line in columns.splitlines() if not line.strip().startswith("INDEX ")]
    text = "\n".join(re.sub(r" CODEC\((?:[^()]|\([^()]*\))*\)", "", line) for line in lines)
    return text.rstrip().rstrip(",") + "\n"


def _qualified(name: str, layout: Layout) -> str:
    return f"{quote_name(layout.database)}.{quote_name(name)}"


def _on(layout: Layout) -> str:
    return f" ON CLUSTER '{layout.cluster}'"
