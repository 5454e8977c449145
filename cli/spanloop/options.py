"""Options and output helpers that every command shares."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from spanloop_trainer.config import Config

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
    """Print one JSON document on standard output; in escapes where that holds no Unicode."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=not unicode))


def load_settings(config: Path | None) -> Config:
    """The configuration that `--config` names, else that of ./spanloop.toml, else the defaults.

    Raises:
        ConfigError: the file is missing or malformed.
    """
    from spanloop_trainer.config import load_config

    if config is None and Path("spanloop.toml").is_file():
        config = Path("spanloop.toml")
    return load_config(config)


def progress_printer(enabled: bool = True) -> Callable[[str], None]:
    """A callback that shows progress lines on standard error, so that standard output stays parseable."""

    def show(line: str) -> None:
        if enabled:
            click.echo(line, err=True)
            sys.stderr.flush()

    return show


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


class SizeType(click.ParamType[int]):
    """Bytes, with a unit if one is given."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """`value` in bytes; fails with the units that are known."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", str(value).strip().lower())
        if found is None or found[2] not in _UNITS:
            self.fail(f"{value!r} is no size; write 500MB, 2GiB or a number of bytes", param, ctx)
        return int(float(found[1]) * _UNITS[found[2]])


SIZE = SizeType()

_AGES = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType[datetime]):
    """A time in ISO 8601 (UTC unless it says otherwise), or an age such as `24h` or `7d`."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The moment in UTC, or click's usage error."""
        if isinstance(value, datetime):
            return value
        if value[:-1].isdecimal() and value[-1] in _AGES:
            try:
                return datetime.now(UTC) - timedelta(**{_AGES[value[-1]]: int(value[:-1])})
            except OverflowError:
                self.fail(f"{value!r} is longer ago than there are dates", param, ctx)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is neither ISO 8601 (2026-08-01, 2026-08-01T12:00+02:00) nor an age (24h, 7d)",
                param,
                ctx,
            )
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


MOMENT = Moment()
