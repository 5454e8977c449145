"""`spanloop feedback import`: judgements from files."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from spanloop.options import echo_json, example, json_option, progress_printer, store_option

_SHOWN = 20  # reasons on a terminal


@click.group(epilog=example("spanloop feedback import ratings.csv"))
def command() -> None:
    """Take judgements of what agents did: users' ratings, reviews, scores of others."""


@command.command(
    "import",
    epilog=example(
        """
        spanloop feedback import ratings.csv
        spanloop feedback import --store chdb:///data/spanloop reviews.jsonl scores.parquet
        """
    ),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@store_option
@json_option
def import_(files: tuple[Path, ...], store: str, as_json: bool) -> None:
    """Take judgements from CSV, JSON lines or Parquet.

    Fields are trace_id, span_id, response_id, session_id (one of these), name, value or label, comment, evaluator,
    version, time, id. A row that is wrong is named with its line and stops no other; correct it and import the file again:
    what is stored counts once. Exits with 1 where a row was left out.
    """
    from dataclasses import asdict

    from spanloop_collector.feedback.importing import import_feedback

    summary = import_feedback(store, files, progress_printer(not as_json))
    if as_json:
        echo_json(asdict(summary))
    else:
        click.echo(f"imported {summary.stored} judgements from {summary.files} files")
        if summary.repeated:
            click.echo(f"left out {summary.repeated} that were stored before")
        if summary.refused:
            click.secho(f"left out {summary.refused} rows that are wrong:", err=True, fg="red")
            for reason in summary.reasons[:_SHOWN]:
                click.echo(f"  {reason}", err=True)
            if summary.refused > _SHOWN:
                click.echo(f"  and {summary.refused - _SHOWN} more; --json names them", err=True)
            click.echo("next:  correct them and import the file again", err=True)
    if summary.refused:
        sys.exit(1)
