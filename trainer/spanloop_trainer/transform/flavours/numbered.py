"""Attributes with numbers in their keys (`llm.input_messages.0.message.role`), which some conventions have instead of JSON.

The engine puts one message's attributes into one JSON object, keys shortened by the prefix and the number and in the order of the
alphabet, and messages in the order of their numbers: 10 comes after 9. Python meets each distinct object once.
"""

from __future__ import annotations


class Unreadable(ValueError):
    """A message of which a part is missing, or of a shape that is not known."""


def numbered(name: str, prefix: str) -> str:
    """SQL columns for the attributes `PREFIX.N.KEY`.

    Returns:
        `_NAME` (Array(Array(Tuple(number, key, value)))): one array a number, in order; `_NAME_json` (Array(String)): the same as
        JSON objects; `_NAME_whole` (Bool): the numbers are 0, 1, … without a hole.
    """
    start = len(prefix) + 2  # of the number, counted from 1
    number = f"substringIndex(substring(t.1, {start}), '.', 1)"
    return f"""
    arraySort(arrayFilter(t -> t.1 >= 0, arrayMap(
        t -> (toInt32OrDefault({number}, toInt32(-1)), substring(t.1, {start + 1} + length({number})), t.2),
        CAST(mapFilter((k, v) -> startsWith(k, '{prefix}.'), SpanAttributes), 'Array(Tuple(String, String))')
    ))) AS _{name}_pairs,
    arraySplit((t, step) -> step != 0, _{name}_pairs, arrayDifference(arrayMap(t -> t.1, _{name}_pairs))) AS _{name},
    arrayMap(
        of_one -> toJSONString(CAST(arrayMap(t -> (t.2, t.3), of_one), 'Map(String, String)')), _{name}
    ) AS _{name}_json,
    (empty(_{name}) OR _{name}[-1][1].1 + 1 = length(_{name})) AS _{name}_whole
"""


def value_of(key: str, of_one: str = "of_one") -> str:
    """SQL: the value under a shortened key, '' where there is none."""
    return f"arrayFirst(t -> t.2 = '{key}', {of_one}).3"


def listed(flat: dict[str, str], prefix: str) -> list[dict[str, str]]:
    """What stands under `PREFIX.N.KEY`, one dict a number, in order.

    Raises:
        Unreadable: a number is missing, and with it a part of the message.
    """
    found: dict[int, dict[str, str]] = {}
    for key, value in flat.items():
        if key.startswith(prefix + "."):
            number, _, rest = key[len(prefix) + 1 :].partition(".")
            if number.isdecimal():
                found.setdefault(int(number), {})[rest] = value
    if sorted(found) != list(range(len(found))):
        raise Unreadable(f"a number is missing under `{prefix}`")
    return [found[number] for number in range(len(found))]
