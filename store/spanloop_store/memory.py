"""How much memory the embedded engine may take: a share of what this machine, or its container, has."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from spanloop_store.errors import StoreSettingError

MEMORY_VARIABLE = "SPANLOOP_ENGINE_MEMORY"
DEFAULT_SHARE = 0.5  # the agents and the gateway live on the same machine
QUERY_SHARE = 0.5  # of the engine's: what one query of a network user may take; inserts keep the rest
LEAST_BYTES = 256 << 20  # below, the engine cannot even insert a segment
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[KMGT]i?B?)", re.IGNORECASE)
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def engine_bytes(environ: Mapping[str, str] | None = None, available: int | None = None) -> int:
    """The engine's limit in bytes, from `SPANLOOP_ENGINE_MEMORY`, else half of the machine's memory.

    Args:
        environ: the environment; this process' own when None.
        available: bytes that there are; found out when None.

    Raises:
        StoreSettingError: the variable is neither a share from 0 to 1 nor a size, or too small to work with.
    """
    text = (os.environ if environ is None else environ).get(MEMORY_VARIABLE, "").strip()
    available = available_bytes() if available is None else available
    if not text:
        return max(int(available * DEFAULT_SHARE), LEAST_BYTES)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise StoreSettingError(
            f"{MEMORY_VARIABLE}={text!r} is no amount of memory", "write a share, as 0.5, or a size, as 4GiB"
        )
    number, unit = float(match[1]), match[2].upper()
    if not unit and number <= 1:
        size = int(available * number)
    else:
        base = 1000 if unit.endswith("B") and "I" not in unit and len(unit) == 2 else 1024
        size = int(number * base ** _UNITS[unit[:1]])
    if size < LEAST_BYTES:
        raise StoreSettingError(
            f"{MEMORY_VARIABLE}={text!r} leaves the engine {size >> 20} MiB",
            f"give it at least {LEAST_BYTES >> 20} MiB",
        )
    return size


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Physical memory, or the least limit of the control groups that this process is in (versions 1 and 2)."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux, or no /proc: the machine's memory is all that is known
        return found[0]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (cgroups / "memory", "memory.limit_in_bytes") if controllers else (cgroups, "memory.max")
        # A container sees its own group at the root; a limit may stand at any group above.
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            text = _read(group / name)
            if text.isdecimal():
                found.append(int(text))
            if group == root:
                break
    return min(found)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
