"""`spanloop import`: OTLP from files."""

from __future__ import annotations

from pathlib import Path

import click

from spanloop.options import echo_json, example, json_option, progress_printer, store_option


@click.command(
    "import",
    epilog=example(
        """
        spanloop import traces.json.gz yesterday.jsonl
        spanloop import --store chdb:///data/spanloop exported/*.pb
        """
    ),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@store_option
@json_option
def command(files: tuple[Path, ...], store: str, as_json: bool) -> None:
    """Take OTLP from files, through the receiver's own path.

    Understood are OTLP JSON, JSON lines, protobuf and length-delimited protobuf, and gzip of each. Importing a file
    twice stores its spans twice.
    """
    from dataclasses import asdict

    from spanloop_collector.importing import import_files

    summary = import_files(store, files, progress_printer())
    if as_json:
        echo_json(asdict(summary))
        return
    click.echo(
        f"imported {summary.spans} spans and {summary.log_records} log records"
        f" from {summary.requests} requests in {summary.files} files"
    )
    if summary.rejected:
        click.echo(f"left out {summary.rejected} with invalid ids:")
        for reason in summary.reasons[:20]:
            click.echo(f"  {reason}")
