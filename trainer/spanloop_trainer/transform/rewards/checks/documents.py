"""Answers that are JSON."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from spanloop_trainer.transform.rewards.episode import Episode

# Ours may stand behind other text of its line, as many models write; then nothing but the language may follow.
_OPENING = re.compile(r"(?:(\s*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*|([^`]+)(`{3,})([\w+-]*)\s*)")


def fenced(text: str, *languages: str) -> str:
    """The last fenced block of a text that says to be in one of `languages`, else the last of all; without one, all of it.

    As CommonMark 0.31 has them (section 4.5): the same marks close that opened, or more of them, alone in their line; and what nobody
    closed goes on to the end. Unlike there a block may be indented, and is moved to the left.
    """
    lines = text.splitlines(keepends=True)
    last = named = None
    at = 0
    while at < len(lines):
        found = _OPENING.fullmatch(lines[at])
        at += 1
        if found is None:
            continue
        before, fence, language = found.groups()[:3] if found[2] else found.groups()[3:]
        block, at = _block(lines, at, fence, len(before))
        if not block.strip():
            continue  # a mark too many
        last = textwrap.dedent(block)
        if language.lower() in languages:
            named = last
    return next((block for block in (named, last) if block is not None), text)


def _block(lines: Sequence[str], first: int, fence: str, depth: int) -> tuple[str, int]:
    """A block from its first line on, and the number of the line behind it."""
    closing = re.compile(rf"[ \t]{{0,{depth + 3}}}{fence}{fence[0]}*\s*")
    for at in range(first, len(lines)):
        if closing.fullmatch(lines[at]):
            return "".join(lines[first:at]), at + 1
    # Behind its last line, or nowhere.
    for at in range(first, len(lines)):
        if (line := lines[at].rstrip()).endswith(fence):
            return "".join(lines[first:at]) + line.rstrip(fence[0]), len(lines)
    return "".join(lines[first:]), len(lines)


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

    if episode.status != "ok" or episode.called:
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
        document = json.loads(fenced(episode.answer or "", "json"), parse_constant=_refused)
    except (ValueError, RecursionError):
        return 0.0
    return float(kind(rules, registry=registry).is_valid(document))


def _refused(name: str) -> Any:
    """`NaN` and its like, which Python reads and JSON has not."""
    raise ValueError(name)
