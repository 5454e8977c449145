"""`spanloop report`: one self-contained HTML page of a run."""

from __future__ import annotations

from pathlib import Path

import click

from spanloop.options import echo_json, example, json_option


@click.command("report", epilog=example("spanloop report --run runs/demo"))
@click.option(
    "--run", required=True, type=click.Path(path_type=Path), help="Folder with the run's result.json."
)
@click.option("--out", type=click.Path(path_type=Path), help="The page to write.  [default: RUN/report.html]")
@json_option
def command(run: Path, out: Path | None, as_json: bool) -> None:
    """Write one self-contained HTML page of a run."""
    from spanloop_trainer.report import load_result, write_page

    result = load_result(run)
    path = out or run / "report.html"
    write_page(result, path)
    if as_json:
        echo_json({"report": str(path), "gain": result.gain})
    else:
        click.echo(f"report: {path}")
