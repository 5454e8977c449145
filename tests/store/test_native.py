"""Native blocks: every boundary where the engine put it, every revision framed as its clients read it."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.stores import laid

from spanloop_store import OWNER_ROLE, Engine
from spanloop_store.errors import NativeError
from spanloop_store.native import Truncated, blocks, read_block, reframe

SCALARS = (
    "toInt8(number), toUInt16(number), number, toInt128(number), toUInt256(number), toFloat32(number), toFloat64(number),"
    " CAST(number, 'BFloat16'), number > 1 AS b, toDate(number), toDate32(number), toDateTime(number), now64(9),"
    " toUUID('00000000-0000-0000-0000-000000000001'), toIPv4('1.1.1.1'), toIPv6('::1'), toDecimal32(number, 2),"
    " toDecimal256(number, 2), CAST('x', 'Enum8(\\'x)(\\' = 2, \\'x\\' = 1)'), toFixedString('ab', 7), toIntervalDay(number),"
    " toString(number), repeat('long', number * 50), toTime64('10:00:00', 3), (1, 2)::Point"
)
COMPOSED = (
    "if(number % 2 = 0, NULL, number), NULL, [], [NULL, 'a'], range(number), [[number], []], map('k', [number]),"
    " toLowCardinality(toString(number % 3)), CAST(if(number = 1, NULL, 'x'), 'LowCardinality(Nullable(String))'),"
    " [toLowCardinality('x')], CAST([], 'Array(LowCardinality(String))'), tuple(), (number, 'x', [1]),"
    " CAST((1, [('a', 2)]), 'Tuple(`a b(` Int8, n Nested(x String, y UInt8))'),"
    " CAST(map('a', 'b'), 'Map(LowCardinality(String), String)'), [CAST(map(), 'Map(LowCardinality(String), String)')],"
    " CAST([[(1, 2)]], 'Polygon'), sumSimpleState(number) OVER ()"
)


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with Engine(laid(tmp_path_factory.mktemp("native") / "s")) as engine:
        handle = engine.handle(OWNER_ROLE)
        yield handle
        handle.close()


@pytest.mark.parametrize("columns", [SCALARS, COMPOSED], ids=["scalars", "composed"])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_boundaries(handle: Any, columns: str, rows: int) -> None:
    """A last column of a known value is found where the walk says, so every column before it was measured right."""
    sql = f"SELECT {columns}, toUInt64(4294967297) FROM numbers({rows})"
    data = bytes(handle.query(sql, "Native").bytes() or b"")
    if not rows:
        assert data == b""
        return
    (block,) = blocks(data)
    assert (block.rows, block.end) == (rows, len(data))
    last = block.columns[-1]
    assert data[last.data : last.end] == (b"\1\0\0\0\1\0\0\0" * rows)


def test_several_blocks(handle: Any) -> None:
    data = handle.query("SELECT toString(number) FROM numbers(200000)", "Native").bytes()
    found = list(blocks(data))
    assert len(found) > 1
    assert sum(block.rows for block in found) == 200_000


@pytest.mark.parametrize("cut", [0, 1, 5, 20, -1])
def test_a_cut_block_asks_for_more(handle: Any, cut: int) -> None:
    data = handle.query(
        "SELECT number, toString(number), [toLowCardinality('x')] FROM numbers(9)", "Native"
    ).bytes()
    with pytest.raises(Truncated):
        read_block(data[:cut])
    if cut:
        with pytest.raises(NativeError, match="ends inside"):
            list(blocks(data[:cut]))


@given(st.binary(max_size=60))
def test_any_bytes_end_in_a_word(data: bytes) -> None:
    try:
        block = read_block(data)
    except (Truncated, NativeError):
        return
    assert block.end <= len(data)


def test_revisions(handle: Any) -> None:
    data = handle.query("SELECT 1 AS a, 'x' AS b", "Native").bytes()
    assert reframe(data, 0) == data
    info = b"\x01\x00\x02\xff\xff\xff\xff\x00"
    assert reframe(data, 54453) == reframe(data, 54453, rows=1) == info + data
    assert reframe(data, 54454) == info + b"\x02\x01\x01a\x05UInt8\x00\x01\x01b\x06String\x00\x01x"
    assert reframe(b"", 54454) == b""


@pytest.mark.parametrize("revision", [1, 54404, 54485])
def test_revisions_that_are_not_served(revision: int) -> None:
    with pytest.raises(NativeError, match=str(revision)):
        reframe(b"", revision)


@pytest.mark.parametrize("column", ["sumState(number)", "CAST(1, 'Dynamic')", "CAST('{}', 'JSON')"])
def test_types_whose_size_only_the_engine_knows(handle: Any, column: str) -> None:
    data = handle.query(
        f"SELECT {column} FROM numbers(1)" + (" GROUP BY number" * ("State" in column)), "Native"
    ).bytes()
    with pytest.raises(NativeError, match=r"toString\(\)"):
        list(blocks(data))
