"""`spanloop` in this process: what a command does takes a fraction of what importing its libraries anew would."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from spanloop.main import cli
from spanloop_store.errors import SpanloopError


def spanloop(*arguments: object, **environment: str | None) -> Result:
    """Run a command to its end, with `environment` beside the variables of this process; None: without that one.

    What the command line would show of an error is its standard error; any other exception is raised.
    """
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit | SpanloopError):
        raise result.exception
    return result


def report(*arguments: object, **environment: str | None) -> dict[str, Any]:
    """What a command that succeeds says with `--json`."""
    done = spanloop(*arguments, "--json", **environment)
    assert done.exit_code == 0, done.exception or done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
