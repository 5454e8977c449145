"""The verifiers that ship with Spanloop; docs/rewards.md has their options.

Each takes an `Episode` and keyword options, and gives a number, or None where it has nothing to say. An answer that
cannot be read is wrong (0); an episode whose last call failed has no answer, and one that another called answers that one and not
the task (None); a task that says too little raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spanloop_trainer.transform.rewards.checks.code import unit_tests
from spanloop_trainer.transform.rewards.checks.database import sql_result
from spanloop_trainer.transform.rewards.checks.documents import json_schema
from spanloop_trainer.transform.rewards.checks.text import exact_match, numeric_match
from spanloop_trainer.transform.rewards.checks.tools import tool_errors

SHIPPED: dict[str, Callable[..., Any]] = {
    "exact_match": exact_match,
    "json_schema": json_schema,
    "numeric_match": numeric_match,
    "sql_result": sql_result,
    "tool_errors": tool_errors,
    "unit_tests": unit_tests,
}
