"""Mutated requests to the ClickHouse endpoint: none fails inside, touches a file, or changes anything without leave."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import lz4.block
import pytest
from bench.fuzz.drawn import check_drawn
from bench.fuzz.endpoint import Ask, Endpoint, asks
from bench.fuzz.served import Served, serving
from tests.helpers.examples import few

RUNS, EXAMPLES = 3, few(100)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("fuzz")) as served:
        yield served


@pytest.fixture(scope="module")
def endpoint(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    endpoint = Endpoint(served, tmp_path_factory.mktemp("outside"))
    yield endpoint
    endpoint.close()


@pytest.mark.parametrize("run", range(RUNS))
def test_mutated_requests(endpoint: Endpoint, run: int) -> None:
    check_drawn(asks(), endpoint.check, EXAMPLES, run)
    assert endpoint.answers["200"] > EXAMPLES * (run + 1) // 30, (
        "hardly a request is answered: nothing is tried"
    )


def frame(method: int, block: bytes, plain: int) -> bytes:
    return bytes(16) + struct.pack("<BII", method, len(block) + 9, plain) + block


def ask(
    body: bytes = b"", *, user: str = "writer", header: tuple[str, bytes] | None = None, **parameters: str
) -> Ask:
    headers = (header,) if header else ()
    return Ask(user, "POST", tuple(parameters.items()), body, headers, insert=b"INSERT" in body)


QUERY = b"SELECT 1"


@pytest.mark.parametrize(
    ("case", "status"),
    [
        (ask(QUERY, header=("Host", b"[::1")), 403),
        (ask(QUERY, header=("Origin", b"http://[")), 403),
        (ask(QUERY, user="none", header=("X-ClickHouse-User", b"\xff")), 401),
        (ask(QUERY, query_id="a\r\nX-Evil: 1"), 400),
        (ask(b"SELECT toInt32(unhex('ff8a'))"), 400),
        (ask(b"SELECT '\xff'"), 400),
        (ask(b'INSERT INTO fuzz (a, b) FORMAT JSONEachRow\n{"a":1,"b":"x"}\n\x03":2,"b":"\xaa"}'), 400),
        (ask(frame(0x82, b"\xff" * 20, 100), decompress="1"), 400),
        (ask(frame(0x82, lz4.block.compress(b"x" * 9, store_size=False), 1 << 29), decompress="1"), 400),
        (ask(frame(0x90, b"\xff" * 20, 100), decompress="1"), 400),
    ],
    ids=[
        *("host", "origin", "user", "query-id", "error-no-utf8", "query-no-utf8", "insert-no-utf8"),
        *("lz4-broken", "lz4-claims-too-much", "zstd-broken"),
    ],
)
def test_what_fuzzing_found(endpoint: Endpoint, case: Ask, status: int) -> None:
    before = endpoint.answers.copy()
    endpoint.check(case)
    (answer,) = endpoint.answers - before
    assert answer.startswith(str(status))


def test_the_watch_sees_a_leak(endpoint: Endpoint, served: Served) -> None:
    """Without this the tests above would show nothing: the owner may read the file, and it shows."""
    served.query(f"SELECT * FROM file('{endpoint.secret_file}', 'LineAsString', 'x String')")
    with pytest.raises(AssertionError, match=r"secret\.txt"):
        endpoint.check(ask(QUERY))
