"""The gateway beside no gateway and beside LiteLLM's proxy, and swaps under load: `python -m bench gateway --help`."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> None:
    """What `python -m bench gateway` runs."""
    from bench.gateway.run import main as run

    code = run(arguments or [])
    if code:
        sys.exit(code)
