"""`spanloop audit`: who erased, exported, promoted or used the administrator's token."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

import click

from spanloop.options import MOMENT, echo_json, example, json_option, store_option


@click.command(
    epilog=example("""
        spanloop audit --since 30d
        spanloop audit --json > audit.json
    """)
)
@click.option("--since", type=MOMENT, help="Only what happened later: a time, or an age (24h, 7d).")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="The most rows, the newest first.",
)
@store_option
@json_option
def command(since: datetime | None, limit: int, store: str, as_json: bool) -> None:
    """Show who erased, exported, promoted or used the administrator's token, and when."""
    from contextlib import closing

    from spanloop_store import audit, connect

    with closing(connect(store, make=False)) as client:
        entries = audit.entries(client, since=since, limit=limit)
    if as_json:
        echo_json([asdict(entry) for entry in entries])
        return
    for entry in entries:
        details = ", ".join(f"{key}: {value}" for key, value in entry.details.items() if value)
        line = f"{entry.time:%Y-%m-%d %H:%M:%S}  {entry.action:<9} {entry.subject}  by {entry.who}"
        click.echo(f"{line}  ({details})" if details else line)
    if not entries:
        click.echo("nothing is recorded" + (" since then" if since else ""))
