"""Options and output helpers that every command shares."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import click

DEFAULT_STORE = "chdb:///~/.spanloop"

store_option = click.option(
    "--store",
    envvar="SPANLOOP_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    metavar="URL",
    help="The store: chdb:///PATH or clickhouse://USER:PASSWORD@HOST:8123/DB.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print machine-readable JSON instead of text."
)


def example(text: str) -> str:
    """Epilog for a command: an example that can be pasted (click would re-wrap it without the marker)."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in textwrap.dedent(text).strip().splitlines())


def echo_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def progress_printer(enabled: bool = True) -> Callable[[str], None]:
    """A callback that shows progress lines on standard error, so that standard output stays parseable."""

    def show(line: str) -> None:
        if enabled:
            click.echo(line, err=True)
            sys.stderr.flush()

    return show
