"""Mutations of bytes and of JSON documents, as hypothesis strategies: what is drawn can be shrunk and repeated."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

# Varints at their edges, protobuf keys of lengths that lie, texts that are no UTF-8, zeros that end C strings.
_PIECES = (
    b"",
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x0a",
    b"\x0a\x00",
    b"\x0a\xff\xff\xff\xff\x07",
    b"\x0b\x0c",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x92\xa9",
    b"\x1f\x8b",
    b"{}",
    b"[",
    b'"',
    b"NaN",
    b"\r\n",
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    2**64,
    -(2**63) - 1,
    1e400,
    float("nan"),
    "",
    "0",
    "-1",
    "NaN",
    "Infinity",
    "18446744073709551616",
    "\x00",
    "\ud800",
    "é" * 40,
    [],
    [[]],
    {},
    {"": {}},
    {"stringValue": 1},
    {"arrayValue": {"values": [{}]}},
    {"kvlistValue": {"values": [{"key": "k"}, {"key": "k", "value": {"intValue": "1"}}]}},
    {"intValue": "9223372036854775808"},
    {"doubleValue": "-Infinity"},
    {"bytesValue": "not base64!"},
    "00" * 16,
    "zz" * 16,
    "0102",
)


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes], most: int = 6, pieces: Sequence[bytes] = ()) -> bytes:
    """A seed after up to `most` edits: bytes changed, cut out, doubled, moved, put in; or the end cut off."""
    data = bytearray(draw(st.sampled_from(seeds)))
    # Half of the drafts keep their length: lengths stay right, and what is inside of them is read.
    kinds = ("set", "flip") if draw(st.booleans()) else ("set", "cut", "double", "insert", "replace", "end")
    insertable = st.one_of(st.sampled_from((*_PIECES, *pieces)), st.binary(max_size=12))
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, min(64, len(data) - start)))
        kind = draw(st.sampled_from(kinds))
        if kind == "set" and start < len(data):
            data[start] = draw(st.integers(0, 255))
        elif kind == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[start : start + length]
        elif kind == "double":
            data[start:start] = data[start : start + length]
        elif kind == "insert":
            data[start:start] = draw(insertable)
        elif kind == "replace":
            data[start : start + length] = draw(insertable)
        elif kind == "end":
            del data[start:]
    return bytes(data)


@st.composite
def mutated_document(draw: st.DrawFn, seeds: Sequence[Any], most: int = 4) -> Any:
    """A JSON document after up to `most` edits at random places."""
    document = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, most))):
        holder: Any = document
        key: Any = None
        # Down from the root, a random way, and to a random depth.
        for _ in range(draw(st.integers(1, 14))):
            below = holder if key is None else holder[key]
            if isinstance(below, dict) and below:
                holder, key = below, draw(st.sampled_from(sorted(below)))
            elif isinstance(below, list) and below:
                holder, key = below, draw(st.integers(0, len(below) - 1))
            else:
                break
        if key is None:
            return copy.deepcopy(draw(st.sampled_from(_VALUES)))
        kind = draw(st.sampled_from(("value", "value", "delete", "rename", "double", "nest")))
        if kind == "value":
            holder[key] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
        elif kind == "delete":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[
                draw(st.sampled_from(("spans", "traceId", "trace_id", "value", "kind", "unknown", "")))
            ] = holder.pop(key)
        elif kind == "double" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == "nest":
            for _ in range(draw(st.sampled_from((1, 3, 40, 110)))):
                holder[key] = {"arrayValue": {"values": [holder[key]]}}
    return document
