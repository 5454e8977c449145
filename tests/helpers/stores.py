"""New stores by copying: migrating one costs five times as much as opening it, and most tests are about something else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_RETENTION = "SPANLOOP_RETENTION_DAYS"
_MAKE = "import sys; from spanloop_store import Engine; Engine(sys.argv[1]).close()"


def laid(folder: Path) -> str:
    """Lays a store with today's schema and without rows in a folder that has none; its URL."""
    shutil.copytree(_template(os.environ.get(_RETENTION, "")).name, folder, symlinks=True, dirs_exist_ok=True)
    return f"chdb://{folder}"


@cache
def _template(retention_days: str) -> tempfile.TemporaryDirectory[str]:
    """One for each schema: how long rows stay is written in it."""
    made = tempfile.TemporaryDirectory()  # goes with this process
    # In a process of its own: this one may have a store open, and opens one at a time.
    subprocess.run([sys.executable, "-c", _MAKE, f"chdb://{made.name}"], check=True)
    return made
