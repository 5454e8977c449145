"""Recorded JSON: in with every digit, out as models read it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

Json = dict[str, Any]

# JSON as chat templates render it (`tojson`: spaces after separators, no ASCII escapes), so that text trained on and text
# served agree.
dump = json.JSONEncoder(ensure_ascii=False).encode
# What a framework sends for a value that is no text: Pydantic AI and JavaScript's JSON.stringify write no spaces.
compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
# Messages are assembled from text: a dict and a `dump` of it cost three times as much, and this runs once a message.
string = json.encoder.encode_basestring
# orjson turns longer integers into floats.
_LONG_INTEGER = re.compile("[0-9]{19}")


def load(raw: str) -> Any:
    """JSON with every digit; half a surrogate pair, which no encoding can hold, becomes a question mark.

    Raises:
        ValueError: it does not parse.
        RecursionError: it is nested too deeply.
    """
    if _LONG_INTEGER.search(raw) is None:
        try:
            return orjson.loads(raw)
        except ValueError:
            pass
    value = json.loads(raw)
    if "\\u" in raw:
        return json.loads(dump(value).encode("utf-8", "replace"))
    return value


def first(part: Mapping[str, Any], *names: str) -> Any:
    """The value under the first of these names that has one; None: none has."""
    for name in names:
        value = part.get(name)
        if value is not None:
            return value
    return None
