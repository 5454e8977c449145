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
        spanloop import ~/.spanloop/spool
        """
    ),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@store_option
@json_option
def command(files: tuple[Path, ...], store: str, as_json: bool) -> None:
    """Take OTLP from files, through the receiver's own path.

    Understood are OTLP JSON, JSON lines, protobuf and length-delimited protobuf, and gzip of each. Requests that the
    collector logged before (a file imported twice) are counted and not stored again.

    A folder is a spool of agents: what dead ones left there, or a target refused, is taken and deleted from it.
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
    if summary.living:
        click.echo(f"left alone {summary.living} segments of agents that run and send them")
    if summary.dropped:
        click.echo(
            f"agents had dropped {summary.dropped} from there before; account.json in the folder says why"
        )
    if summary.repeated:
        click.echo(f"left out {summary.repeated} spans and log records that were stored before")
    if summary.rejected:
        click.echo(f"left out {summary.rejected} with invalid ids:")
        for reason in summary.reasons[:20]:
            click.echo(f"  {reason}")
