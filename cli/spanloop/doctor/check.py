"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Check:
    """What was looked at and what was found.

    Args:
        name: the promise, the same in every run, so that scripts can look for it.
        status: `FAIL` where spans or their content are lost, `warn` where they may be.
        detail: what was found.
        fix: a command or a variable that can be pasted; empty where all is well.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""
