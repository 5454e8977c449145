"""Answers that are JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from spanloop_trainer.transform.rewards.episode import Episode

_FENCE = re.compile(r"```[\w+-]*[ \t]*\r?\n(.*?)```", re.DOTALL)


def fenced(text: str) -> str:
    """The last fenced block of a text; without one, all of it."""
    blocks: list[str] = _FENCE.findall(text)
    return blocks[-1] if blocks else text


def json_schema(episode: Episode, *, schema: dict[str, Any] | None = None) -> float | None:
    """1 where the answer (or its last fenced block) is JSON that the schema allows; else 0.

    Args:
        schema: JSON Schema; None: the task's field `schema`, an object or its JSON text. References to other addresses are
            not followed.

    Raises:
        ValueError: there is no schema, or it is none.
    """
    # Only where a configuration asks for it.
    import jsonschema
    import referencing
    import referencing.jsonschema

    if episode.status != "ok":
        return None
    rules = schema if schema is not None else episode.task.get("schema")
    if isinstance(rules, str):
        rules = json.loads(rules)
    if not isinstance(rules, dict):
        raise ValueError("there is no schema: give the option `schema`, or the task a field `schema`")
    kind = jsonschema.validators.validator_for(rules, default=jsonschema.Draft202012Validator)
    kind.check_schema(rules)
    registry: referencing.Registry[Any] = referencing.Registry()
    try:
        document = json.loads(fenced(episode.answer or ""))
    except ValueError:
        return 0.0
    return float(kind(rules, registry=registry).is_valid(document))
