"""Changes to JSON that leave every other byte as it came: members set in a request, members taken out of an answer.

A member's key stands in the text as `"key"` and a colon, and nowhere else, since a quote inside a string is escaped; how
often it must occur is known from the parsed document. Where the number differs (a key written with escapes, the same key
deeper down) the document is written anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'
_BRACKET: Final = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)
_TOKEN: Final = re.compile(_STRING + rb"|[{}\[\],:]", re.DOTALL)
_SCALAR: Final = re.compile(rb"[^\s,\]}]++")
_SPACES: Final = re.compile(rb"[ \t\r\n]*+")
_SPACE: Final = b" \t\r\n"
# Members of log-probabilities, and of vLLM's raw messages.
_INSIDE: Final = frozenset(
    {"token", "logprob", "bytes", "top_logprobs", "content", "refusal", "type", "message", "tokens"}
    | {"tokens", "token_logprobs", "text_offset"}
)


def without(raw: bytes, key: str, holders: Sequence[Mapping[str, Any]]) -> bytes | None:
    """`raw` less all its members `key`.

    Args:
        raw: the text of a JSON document.
        key: the members' name.
        holders: the objects of the parsed document that have one, in the order of the text.

    Returns:
        None where the text does not hold just these.
    """
    return _changed(raw, key, holders, None)


def replaced(raw: bytes, key: str, holders: Sequence[Mapping[str, Any]], value: bytes) -> bytes | None:
    """As `without`, with another value in place of each."""
    return _changed(raw, key, holders, value)


def _changed(raw: bytes, key: str, holders: Sequence[Mapping[str, Any]], put: bytes | None) -> bytes | None:
    if not holders:
        return raw
    if len(holders) == 1 and (changed := _changed_once(raw, key, holders[0], put)) is not None:
        return changed
    kept: list[bytes] = []
    done = 0
    spans = _occurrences(raw, key)
    for holder in holders:
        found = next(spans, None)
        if found is None:
            return None
        start, begin = found
        end = _end(raw, begin, holder[key], _next(holder, key))
        if not _says(raw[begin:end], holder[key]):
            return None  # another one of that name, deeper down
        if put is not None:
            kept += (raw[done:begin], put)
        else:
            before = raw[done:start].rstrip(_SPACE)
            if before.endswith(b","):
                before = before[:-1]
            else:  # the first member takes the comma behind it along
                after = _SPACES.match(raw, end)
                assert after is not None  # it matches nothing, too
                if raw.startswith(b",", after.end()):
                    end = after.end() + 1
            kept.append(before)
        done = end
        spans = _occurrences(raw, key, end)
    if next(spans, None) is not None:
        return None
    return b"".join((*kept, raw[done:]))


def _changed_once(raw: bytes, key: str, holder: Mapping[str, Any], put: bytes | None) -> bytes | None:
    """The same where one member is to be changed, in a text as servers write it: what each token of a stream costs."""
    name = _colons.get(key) or _with_colon(key)
    start = raw.find(name)
    # Once in all, as a key or as a text: so that this is the member.
    if start < 1 or raw[start - 1] == 0x5C or raw.find(name[:-1], start + 1) >= 0:
        return None
    begin = start + len(name)
    if raw[begin] == 0x20:
        begin += 1
    value = holder[key]
    if isinstance(value, list) and value and type(value[0]) is type(value[-1]) is int:  # token ids
        end = raw.find(b"]", begin) + 1
        if not end or raw.find(b'"', begin, end) >= 0 or raw.find(b"[", begin + 1, end) >= 0:
            return None
    else:
        end = _end(raw, begin, value, _next(holder, key))
    if not _is_whole(raw[begin:end]) and not _says(raw[begin:end], value):
        return None
    if put is not None:
        return raw[:begin] + put + raw[end:]
    before = raw[:start]
    if before.endswith(b","):
        return before[:-1] + raw[end:]
    if before.endswith(b", "):
        return before[:-2] + raw[end:]
    return None


# `"key":`, by key; keys are those of this package's modules.
_colons: dict[str, bytes] = {}


def _with_colon(key: str) -> bytes:
    return _colons.setdefault(key, b'"' + key.encode() + b'":')


def _occurrences(raw: bytes, key: str, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Where members of that name begin, and where their values do."""
    name = b'"' + key.encode() + b'"'
    while (start := raw.find(name, begin)) >= 0:
        begin = start + len(name)
        if start and raw[start - 1] == 0x5C:  # a backslash: the quote is part of a longer key
            continue
        if raw.startswith(b":", begin):  # nearly always: no call of the pattern
            colon = begin
        else:
            colon = _SPACES.match(raw, begin).end()  # type: ignore[union-attr]  # it matches nothing, too
            if not raw.startswith(b":", colon):
                continue  # a string that is a value
        after = colon + 1
        if raw[after] in _SPACE:
            after = _SPACES.match(raw, after).end()  # type: ignore[union-attr]  # the same
        yield start, after


def _next(holder: Mapping[str, Any], key: str) -> str:
    """The member behind `key`; "": it is the last one, or one of that name may be inside the value."""
    names = iter(holder)
    for name in names:
        if name == key:
            break
    following = next(names, "")
    return "" if following in _INSIDE else following


def _end(raw: bytes, begin: int, value: Any, following: str = "") -> int:
    """Where the value ends that begins there.

    Args:
        raw: the text.
        begin: of the value.
        value: what it says, to find its end faster.
        following: the member behind it, for the same.
    """
    first = raw[begin]
    if first not in b'[{"':
        scalar = _SCALAR.match(raw, begin)
        return scalar.end() if scalar is not None else begin
    if first == 0x5B and isinstance(value, list) and (not value or type(value[0]) is int):  # token ids
        end = raw.index(b"]", begin) + 1
        if raw.find(b'"', begin, end) < 0 and raw.find(b"[", begin + 1, end) < 0:
            return end
    if following:
        # Inside a string it would have a backslash before its second quote.
        behind = raw.find(b'"' + following.encode() + b'":', begin)
        before = raw[begin:behind].rstrip(_SPACE) if behind > 0 else b""
        if before.endswith(b","):
            return begin + len(before[:-1].rstrip(_SPACE))
    # Most servers write as one of these two does; C finds the end of what is the same.
    for write in (orjson.dumps, _spaced):
        try:
            text = write(value)
        except (TypeError, ValueError):
            continue
        if raw.startswith(text, begin):
            return begin + len(text)
    depth = 0
    for token in _BRACKET.finditer(raw, begin):
        depth += token[0] in (b"{", b"[")
        depth -= token[0] in (b"}", b"]")
        if not depth:
            return token.end()
    return begin  # no value of that kind stands there


def _is_whole(text: bytes) -> bool:
    """Whether a text that begins as an object or list ends as one, without parsing it once more."""
    return (
        text.startswith((b"{", b"["))
        and text.endswith((b"}", b"]"))
        and text.count(b"{") == text.count(b"}")
        and text.count(b"[") == text.count(b"]")
    )


def _says(text: bytes, value: Any) -> bool:
    return text == b"null" if value is None else load(text) == value


def _spaced(value: Any) -> bytes:
    return json.dumps(value).encode()


def with_members(raw: bytes, body: Mapping[str, Any], changes: Mapping[str, Any]) -> bytes:
    """The object `raw` with members set.

    Args:
        raw: the text of a JSON object that is not empty.
        body: what it says.
        changes: new values, by key.
    """
    added: list[bytes] = []
    for key, value in changes.items():
        if key not in body:
            added.append(dump(key) + b":" + dump(value))
            continue
        found = list(_occurrences(raw, key))
        if len(found) == 1:
            begin = found[0][1]
            end = _end(raw, begin, body[key])
        else:
            members = [(begin, end) for name, begin, end in _members(raw) if name == key]
            # Twice the same key: readers differ on which one counts.
            begin, end = members[0] if len(members) == 1 else (0, 0)
        if not _says(raw[begin:end], body[key]):
            return dump({**body, **changes})
        raw = raw[:begin] + dump(value) + raw[end:]
    if added:
        end = raw.rindex(b"}")
        raw = raw[:end] + b"," + b",".join(added) + raw[end:]
    return raw


def _members(raw: bytes) -> Iterator[tuple[str, int, int]]:
    """Key, begin and end of the value, of each member of the outermost object."""
    depth, key, begin = 0, "", -1
    last = b""
    for token in _TOKEN.finditer(raw):
        mark = token[0]
        if depth == 1 and begin >= 0 and mark in b",}":
            yield key, begin, begin + len(raw[begin : token.start()].rstrip(_SPACE))
            begin = -1
        if mark in b"{[":
            depth += 1
        elif mark in b"}]":
            depth -= 1
        elif depth == 1 and mark == b":" and begin < 0:
            key = str(json.loads(last))
            begin = _SPACES.match(raw, token.end()).end()  # type: ignore[union-attr]  # it matches nothing, too
        last = mark


def load(raw: bytes) -> Any:
    """JSON, or None where it is none. The slower parser takes what orjson refuses (NaN, integers over 64 bits)."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            # Decoded here: the parser itself would also take UTF-16, whose bytes nothing in here can edit.
            return json.loads(raw.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return None


def dump(document: Any) -> bytes:
    """JSON as bytes."""
    try:
        return orjson.dumps(document)
    except TypeError:  # an integer over 64 bits, or half a surrogate pair
        return json.dumps(document).encode()
