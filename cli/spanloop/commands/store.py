"""`spanloop store …`: backup, restore, retention, the schema for a cluster, and what differs in tables of others."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spanloop.options import echo_json, example, json_option, progress_printer, store_option

if TYPE_CHECKING:
    from spanloop_store.backup import Backup


@click.group(
    epilog=example("""
        spanloop store backup --to backups/today.tar
        spanloop store retention --days 90
    """)
)
def command() -> None:
    """Look after the store: back up, restore, retention, cluster schema."""


@command.command(
    short_help="Write every row into a folder or tar file.",
    epilog=example("spanloop store backup --to backups/today.tar"),
)
@click.option(
    "--to",
    required=True,
    metavar="PATH",
    help="A folder or a .tar file, neither of which exists yet; or Disk('NAME', 'PATH') and the like, written by the engine.",
)
@store_option
@json_option
def backup(to: str, store: str, as_json: bool) -> None:
    """Write every row into a new folder or tar file; `spanloop up` may go on meanwhile."""
    from spanloop_store.backup import backup as run

    _print("backed up", run(store, to, progress_printer(not as_json)), as_json)


@command.command(
    short_help="Fill an empty store from a backup.",
    epilog=example("spanloop store restore --from backups/today.tar --store chdb:///~/.spanloop-restored"),
)
@click.option("--from", "source", required=True, metavar="PATH", help="What `store backup` wrote.")
@store_option
@json_option
def restore(source: str, store: str, as_json: bool) -> None:
    """Fill an empty store from a backup, and compare counts and hashes with it."""
    from spanloop_store.restore import restore as run

    _print("restored", run(store, source, progress_printer(not as_json)), as_json)


@command.command(
    short_help="Show or set how long rows are kept.",
    epilog=example("""
        spanloop store retention
        spanloop store retention --days 90
        spanloop store retention --off
    """),
)
@click.option(
    "--days", type=click.IntRange(min=1), help="Days that spans, logs and rewards are kept; older ones go."
)
@click.option("--off", is_flag=True, help="Keep everything.")
@store_option
@json_option
def retention(days: int | None, off: bool, store: str, as_json: bool) -> None:
    """Show or set how long rows are kept; models, datasets and the audit trail never expire."""
    from spanloop_store import connect
    from spanloop_store.retention import read_retention, set_retention

    if days is not None and off:
        raise click.UsageError("--days and --off exclude each other")
    client = connect(store, make=False)
    try:
        kept = set_retention(client, days) if days is not None or off else read_retention(client)
    finally:
        client.close()
    if as_json:
        echo_json([asdict(table) for table in kept])
        return
    for table in sorted(kept, key=lambda table: table.table):
        how = f"{table.days} days" if table.days else table.expression or "for ever"
        oldest = f"oldest row {table.oldest}" if table.oldest else "empty"
        click.echo(f"{table.table:<26}{how:<14}{oldest}")


@command.command(
    short_help="Print the schema for a cluster.",
    epilog=example("spanloop store ddl --cluster production --database otel --out schema.sql"),
)
@click.option("--cluster", required=True, metavar="NAME", help="The cluster's name in remote_servers.")
@click.option("--database", default="default", show_default=True, help="It must exist on every node.")
@click.option(
    "--keeper-path",
    default="/clickhouse/tables",
    show_default=True,
    help="Prefix of the tables' paths in Keeper.",
)
@click.option(
    "--retention-days",
    type=click.IntRange(min=0),
    default=None,
    help="Days that rows are kept; 0 keeps everything. Default: a year, or SPANLOOP_RETENTION_DAYS.",
)
@click.option(
    "--since", type=click.IntRange(min=0), default=0, show_default=True, help="Schema version that it has."
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File instead of the terminal.")
@json_option
def ddl(
    cluster: str,
    database: str,
    keeper_path: str,
    retention_days: int | None,
    since: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print the schema for a cluster: replicated tables, distributed ones over them, sharded by trace."""
    from spanloop_store.ddl import Layout, cluster_ddl
    from spanloop_store.retention import configured_days

    days = configured_days() if retention_days is None else retention_days or None
    statements = cluster_ddl(Layout(cluster, database, keeper_path, days), since)
    if as_json:
        echo_json(statements)
        return
    text = "\n\n".join(f"{statement};" for statement in statements) + "\n"
    if out is None:
        click.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
        click.echo(f"{len(statements)} statements in {out}", err=True)


@command.command(
    short_help="Show how tables that others made differ.",
    epilog=example("spanloop store check --store clickhouse://USER:PASSWORD@HOST:8123/otel"),
)
@store_option
@json_option
def check(store: str, as_json: bool) -> None:
    """Show how upstream's tables differ from Spanloop's where another program made them; changes nothing."""
    from spanloop_store import connect
    from spanloop_store.adopt import WRONG, differences

    client = connect(store, migrate=False, make=False)
    try:
        found = differences(client)
    finally:
        client.close()
    if as_json:
        echo_json([asdict(difference) for difference in found])
    else:
        for difference in found:
            click.echo(str(difference))
        if not found:
            click.echo("no differences")
    if any(difference.verdict == WRONG for difference in found):
        raise click.exceptions.Exit(1)


def _print(what: str, done: Backup, as_json: bool) -> None:
    if as_json:
        echo_json(asdict(done))
        return
    rows = sum(done.rows.values())
    size = f", {done.bytes / 1e6:,.1f} MB" if done.bytes else ""
    click.echo(f"{what} {rows:,} rows{size}: {done.place} (schema {done.schema_version})")
    for table, count in done.rows.items():
        if count:
            click.echo(f"  {table:<20}{count:>14,}")
