"""Keeps a span's values within a size that every receiver takes, and marks what was cut or dropped as such.

The exporter prepares a span's attributes when it encodes it; the plugin for other collectors does the very same.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from spanloop_exporter.stamps import stamps

if TYPE_CHECKING:
    from spanloop_exporter.redaction.redactor import Redactor

log = logging.getLogger(__name__)

CUT: Final = "spanloop.cut"
DROPPED: Final = "spanloop.dropped_attributes"
# Bytes of UTF-8 a value. A prompt of a million tokens is some 4 MB, and receivers refuse requests over 64 MiB.
DEFAULT_MAX_BYTES: Final = 16 << 20
REDACTED: Final = "spanloop.redacted"
TOKEN_KEYS: Final = (
    "spanloop.prompt_token_ids",
    "spanloop.completion_token_ids",
    "spanloop.completion_logprobs",
)
VARIABLE: Final = "SPANLOOP_MAX_ATTRIBUTE_BYTES"

# Attributes of a call that are neither its prompt nor its answer: where it went, and for whom.
NO_CONTENT: Final = re.compile(
    r"(?:server|client|net|network|http|url|host|peer|source|destination|user|enduser|session|service|process|thread|code|"
    r"traceloop\.association|gen_ai\.conversation)[._].*|user|.*(?:api_base|base_url|endpoint|user_agent)"
)

# UTF-8 needs at most four bytes a character: shorter text cannot be too long, and is not measured.
_BYTES_A_CHARACTER: Final = 4
_NUMBERS: Final = frozenset({int, float, bool})


class Preparation:
    """Makes what is sent of a span's or log record's attributes: stamped, cut, and what was cut marked.

    Args:
        environ: read once. A value that makes no sense is logged, and the default used.
        in_agent: whether `environ` is that of the agent's own SDK, whose limits it then names.
        redactor: None: redaction is off. Only what will be cut is redacted here, all else as bytes later: a
            secret that is cut in two is not recognised any more.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        in_agent: bool = True,
        redactor: Redactor | None = None,
    ) -> None:
        self._stamps = stamps(environ)
        self._redactor = redactor
        self.max_bytes = _positive(environ, VARIABLE) or DEFAULT_MAX_BYTES
        self._sdk_length: int | None = None
        if in_agent:
            self._sdk_length = _positive(environ, "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT") or _positive(
                environ, "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"
            )

    def __call__(
        self, attributes: Mapping[str, Any], dropped: int = 0, *, stamped: bool = True
    ) -> dict[str, Any]:
        """What is sent instead; a value that needs no change is the same object.

        Args:
            attributes: in plain Python values.
            dropped: how many the SDK's limit dropped.
            stamped: whether the stamps of the environment belong on it, where the key is not there.
        """
        if stamped and self._stamps:
            attributes = {**self._stamps, **attributes}
        kept, keys = cut(attributes, self.max_bytes)
        if keys and self._redactor is not None:
            kept, keys = cut(redacted(attributes, keys, self._redactor), self.max_bytes)
        return mark(kept, keys, dropped=dropped, sdk_length=self._sdk_length)


def _positive(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number > 0:
        return number
    log.warning("%s=%.40s is no number of 1 or more, and is not followed", name, text)
    return None


def redacted(attributes: Mapping[str, Any], keys: Iterable[str], redactor: Redactor) -> dict[str, Any]:
    """The attributes with some of them redacted, and token ids left off where that changed prompt or answer."""
    changed = dict(attributes)
    said = False
    for key in list(keys):
        value, name = redacted_value(attributes[key], redactor), redactor.redact_text(key)
        said = said or (value is not attributes[key] and NO_CONTENT.fullmatch(key) is None)
        if name != key:
            del changed[key]
        changed[name] = value
    if said:
        without_token_ids(changed)
    return changed


def redacted_value(value: Any, redactor: Redactor) -> Any:
    """A value with every text in it redacted; the same object where nothing changed."""
    if isinstance(value, str):
        return redactor.redact_text(value)
    if isinstance(value, bytes):
        return redactor.redact(value)
    if isinstance(value, Mapping):
        pairs = {
            redactor.redact_text(str(key)): redacted_value(item, redactor) for key, item in value.items()
        }
        return value if pairs == value else pairs
    if isinstance(value, Sequence):
        items = [redacted_value(item, redactor) for item in value]
        return value if items == list(value) else items
    return value


def without_token_ids(attributes: dict[str, Any]) -> None:
    """Takes token ids and log-probabilities off: they say what the text said before it was redacted."""
    found = [attributes.pop(key, None) for key in TOKEN_KEYS]
    if any(value is not None for value in found):
        attributes[REDACTED] = "true"


def cut(attributes: Mapping[str, Any], max_bytes: int) -> tuple[dict[str, Any], list[str]]:
    """Cut values that are longer than `max_bytes` bytes of UTF-8; text at a character boundary.

    Of a list, what follows the last element that has room is left out.

    Returns:
        The attributes, and the keys whose values were cut, sorted.

    Raises:
        ValueError: `max_bytes` is negative.
    """
    if max_bytes < 0:
        raise ValueError(f"max_bytes is {max_bytes}: a number of bytes is 0 or more")
    kept: dict[str, Any] = {}
    keys = []
    short = max_bytes // _BYTES_A_CHARACTER
    for key, value in attributes.items():
        kind = type(value)
        if (len(value) <= short) if kind is str else (kind in _NUMBERS):
            kept[key] = value
            continue
        kept[key], size = _within(value, max_bytes)
        if size > max_bytes:
            keys.append(key)
    return kept, sorted(keys)


def mark(
    attributes: dict[str, Any], keys: Sequence[str], *, dropped: int = 0, sdk_length: int | None = None
) -> dict[str, Any]:
    """Note in `attributes` what is not whole: `spanloop.cut` (keys) and `spanloop.dropped_attributes` (a count).

    Marks of an earlier stage are kept. A span on which everything is whole gets no mark.

    Args:
        attributes: changed in place, and returned.
        keys: those that `cut` names.
        dropped: how many attributes the SDK's count limit dropped (`ReadableSpan.dropped_attributes`).
        sdk_length: the SDK's own limit (OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT), in characters; text of exactly that length was
            most likely cut by it.
    """
    if not keys and not dropped and sdk_length is None and CUT not in attributes:
        return attributes  # nearly always
    earlier = attributes.get(CUT, ())
    if isinstance(earlier, str) or not isinstance(earlier, Sequence):
        earlier = [earlier]
    marked = {*keys, *map(str, earlier)}
    if sdk_length is not None:
        marked.update(key for key, value in attributes.items() if _has_length(value, sdk_length))
    if marked:
        attributes[CUT] = sorted(marked)
    if dropped > 0:
        attributes[DROPPED] = dropped
    return attributes


def _within(value: Any, room: int) -> tuple[Any, int]:
    """The value cut to `room` bytes, and its size before (of what was looked at: more than `room` if it was cut)."""
    if isinstance(value, str):
        # A lone surrogate cannot be sent; it takes a byte of a question mark's.
        data = value.encode("utf-8", "replace")
        return (value, len(data)) if len(data) <= room else (_text(data, room), len(data))
    if isinstance(value, bytes):
        return (value, len(value)) if len(value) <= room else (value[:room], len(value))
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
        kept, size = _items([item for _, item in items], room)
        return {
            key: item for (key, _), item in zip(items, kept, strict=False)
        } if size > room else value, size
    if isinstance(value, Sequence):
        kept, size = _items(value, room)
        return (value if size <= room else kept), size
    return value, 0  # numbers and truth values


def _items(values: Sequence[Any], room: int) -> tuple[list[Any], int]:
    kept: list[Any] = []
    total = 0
    for value in values:
        part, size = _within(value, room - total)
        total += size
        if total <= room:
            kept.append(part)
            continue
        if part or not isinstance(part, str | bytes):
            kept.append(part)
        break
    return kept, total


def _text(data: bytes, room: int) -> str:
    # A character that straddles the boundary is left out whole.
    return data[:room].decode("utf-8", "ignore")


def _has_length(value: Any, length: int) -> bool:
    if isinstance(value, str):
        return len(value) == length
    return isinstance(value, list | tuple) and any(
        isinstance(item, str) and len(item) == length for item in value
    )
