"""Values are cut at a character boundary, and what was cut is marked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanloop_exporter.limits import cut, mark


def test_short_values_of_every_kind_stay_as_they_are() -> None:
    attributes: dict[str, Any] = {
        "a": "héllo",
        "b": 7,
        "c": [1.5, 2.5],
        "d": True,
        "e": b"\xff",
        "f": ("x", "y"),
    }
    kept, keys = cut(attributes, 100)
    assert (kept, keys) == (attributes, [])


@pytest.mark.parametrize(
    ("value", "room", "expected"),
    [
        ("abcdef", 3, "abc"),
        ("aé", 2, "a"),  # é is two bytes and straddles the limit
        ("€€", 3, "€"),
        ("x😀", 4, "x"),
        ("abc", 0, ""),
        (b"\xf0\x9f\x98", 2, b"\xf0\x9f"),
        (["abc", "def", "ghi"], 5, ["abc", "de"]),
        (("abc", "def"), 3, ["abc"]),
        ({"deep": "abcdef"}, 4, {"deep": "abcd"}),
    ],
    ids=["ascii", "two-bytes", "three-bytes", "four-bytes", "nothing", "bytes", "list", "tuple", "mapping"],
)
def test_long_values_are_cut_and_named(value: Any, room: int, expected: Any) -> None:
    assert cut({"other": 1, "key": value}, room) == ({"other": 1, "key": expected}, ["key"])


@given(st.text(), st.integers(0, 40))
def test_cut_text_is_the_longest_beginning_that_fits(text: str, room: int) -> None:
    kept, keys = cut({"key": text}, room)
    short = kept["key"]
    size = len(text.encode("utf-8", "replace"))
    assert keys == (["key"] if size > room else [])
    assert len(short.encode("utf-8", "replace")) <= room or not keys
    if keys:
        # A lone surrogate is sent as "?", so the beginning is compared as it is sent.
        whole = text.encode("utf-8", "replace").decode()
        assert whole.startswith(short)
        assert len(whole[: len(short) + 1].encode()) > room
    else:
        assert short == text


@given(
    st.recursive(st.text() | st.integers() | st.binary(), lambda inner: st.lists(inner)), st.integers(0, 30)
)
def test_nothing_that_was_cut_is_over_the_limit(value: Any, room: int) -> None:
    kept, keys = cut({"key": value}, room)
    assert _size(kept["key"]) <= room
    assert bool(keys) == (_size(value) > room)


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, bytes):
        return len(value)
    return sum(map(_size, value)) if isinstance(value, list) else 0


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes is -1"):
        cut({}, -1)


def test_marks_say_what_is_not_whole() -> None:
    assert mark({"a": "x"}, [], dropped=0) == {"a": "x"}
    assert mark({"a": "x"}, ["a"], dropped=3) == {
        "a": "x",
        "spanloop.cut": ["a"],
        "spanloop.dropped_attributes": 3,
    }


def test_text_of_exactly_the_sdks_limit_counts_as_cut() -> None:
    attributes = {"full": "12345", "short": "1234", "list": ["1", "12345"], "number": 12345}
    assert mark(attributes, [], sdk_length=5)["spanloop.cut"] == ["full", "list"]


def test_marks_of_an_earlier_stage_are_kept() -> None:
    assert mark({"spanloop.cut": ["a"]}, ["b"])["spanloop.cut"] == ["a", "b"]
    # As the plugin for other collectors may see it.
    assert mark({"spanloop.cut": "a"}, ["b"])["spanloop.cut"] == ["a", "b"]
