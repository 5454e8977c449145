"""What the environment said to the tool calls of an episode."""

from __future__ import annotations

import json
import re

from spanloop_trainer.transform.rewards.episode import Episode, Message, text_of

# How results that are plain text begin where a tool failed: Python, LangChain, the OpenAI Agents SDK, shells.
_FAILED = re.compile(
    r"\s*(?:\w*(?:error|exception)(?:\s*(?:[:(!.]|\Z)|\s+(?:calling|during|executing|in|invoking|occurred|running|when|while)\b)"
    r"|an error occurred|traceback \(most recent call last\))",
    re.IGNORECASE,
)


def tool_errors(episode: Episode) -> float:
    """How many tool results say that the tool failed: give it a negative weight.

    A result says so by `"status": "error"` or `"is_error": true` on its message or in its JSON, by a JSON field `error` that is
    not empty, or by a text that begins with an error's name and what was wrong, `An error occurred` or a traceback. A repeated result in a later prompt is the same one.
    """
    results: dict[tuple[str, str], Message] = {}
    for call in episode.calls:
        seen: dict[tuple[str, str], int] = {}
        for message in call.messages:
            if message.get("role") == "tool":
                key = (str(message.get("tool_call_id")), json.dumps(message.get("content"), sort_keys=True))
                seen[key] = seen.get(key, 0) + 1
                # Where ids are missing, a text that comes twice in one prompt is two results.
                results.setdefault((f"{key[0]}#{seen[key]}", key[1]), message)
    return float(sum(_failed(message) for message in results.values()))


def _failed(message: Message) -> bool:
    if message.get("status") == "error" or message.get("is_error") is True:
        return True
    text = text_of(message)
    try:
        value = json.loads(text)
    except ValueError:
        return _FAILED.match(text) is not None
    if isinstance(value, str):
        return _FAILED.match(value) is not None
    if not isinstance(value, dict):
        return False
    flagged = value.get("is_error") is True or value.get("isError") is True or value.get("status") == "error"
    return flagged or bool(value.get("error"))
