"""The server's own BACKUP and RESTORE, to a place that its settings allow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from spanloop_store.errors import BackupError
from spanloop_store.owner import read_owner
from spanloop_store.tables import LOOKUP, quote_name, read_tables
from spanloop_store.url import StoreUrl

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# Its destinations: Disk('backups', 'name'), S3('https://…', …), File('name').
_DESTINATION = re.compile(r"(Disk|S3|File|AzureBlobStorage)\(.*\)", re.DOTALL)


def is_destination(text: str) -> bool:
    """Whether `--to` or `--from` names a place of the server and not a path."""
    return _DESTINATION.fullmatch(text.strip()) is not None


def write_backup(url: StoreUrl, client: Client, to: str, names: Iterable[str]) -> None:
    """Lets the server back these tables up.

    Raises:
        BackupError: it does not, or its clients may not ask it.
    """
    _run(client, f"BACKUP {_tables(url, client, names)} TO {to}")


def read_backup(url: StoreUrl, client: Client, source: str, names: Iterable[str]) -> None:
    """Lets the server fill these tables, which are there, made by the migrations, and empty.

    Raises:
        BackupError: it does not, or its clients may not ask it.
    """
    _run(
        client, f"RESTORE {_tables(url, client, names)} FROM {source} SETTINGS allow_different_table_def = 1"
    )


def _tables(url: StoreUrl, client: Client, names: Iterable[str]) -> str:
    if url.embedded and read_owner(url) is not None:
        raise BackupError(
            "the running collector does not let its clients write backups of the engine's own kind",
            "give a path: --to FOLDER or --to FILE.tar; that works while it runs",
        )
    present = read_tables(client)
    clusters = {table.cluster for table in present.values() if table.cluster}
    locals_ = [present[name].local for name in (*names, LOOKUP) if name in present]
    clause = ", ".join(f"TABLE {name}" for name in locals_)
    return clause + (f" ON CLUSTER {quote_name(clusters.pop())}" if clusters else "")


def _run(client: Client, sql: str) -> None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        client.command(sql)
    except ClickHouseError as error:
        raise BackupError(
            str(error).splitlines()[0],
            "the destination must be allowed by the server's <backups> setting; a path works without: --to FOLDER",
        ) from error
