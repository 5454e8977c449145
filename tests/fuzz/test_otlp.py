"""Mutated OTLP requests: every answer is one that a sender may get, and the tables hold what was acknowledged and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from bench.fuzz.drawn import check_drawn
from bench.fuzz.otlp import JSON, PROTOBUF, Export, Receivers, exports
from bench.fuzz.served import serving
from tests.helpers.examples import few

RUNS, EXAMPLES = 4, few(100)  # 100,000 of them: python -m bench.fuzz --n 100000


@pytest.fixture(scope="module")
def receivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receivers]:
    with serving(tmp_path_factory.mktemp("fuzz")) as served:
        receivers = Receivers(served)
        yield receivers
        receivers.close()


@pytest.mark.parametrize("run", range(RUNS))
def test_mutated_requests(receivers: Receivers, run: int) -> None:
    check_drawn(exports(), receivers.check, EXAMPLES, run)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON, b'{"resourceSpans": [{"scopeSpans": "\\ud800"}]}'),
        (JSON, b"[" * 100_000),
        (JSON, b"\xff\xfe"),
        (PROTOBUF, b"\x0a\xff\xff\xff\xff\x0f"),
        ("grpc", b"\x0a\xff\xff\xff\xff\x0f"),
        ("grpc", b"\xff"),
    ],
    ids=[
        "surrogate-for-a-list",
        "deep-json",
        "no-utf8",
        "length",
        "grpc-length",
        "grpc-key",
    ],
)
def test_what_fuzzing_found_is_refused_with_a_reason(receivers: Receivers, kind: str, body: bytes) -> None:
    before = receivers.answers.copy()
    receivers.check(Export("traces", kind, "", body, body))
    (answer,) = receivers.answers - before
    assert answer in ("HTTP 400", "gRPC INVALID_ARGUMENT")


def test_half_an_emoji_costs_nothing_but_itself(receivers: Receivers) -> None:
    """A JavaScript SDK that cuts a long text may leave one; the whole batch was refused for it."""
    ids = {"traceId": "5a" * 16, "spanId": "a5" * 8}
    text = (
        '{"resourceSpans": [{"scopeSpans": [{"spans": ['
        + json.dumps({**ids, "name": "cut \ud83d"})
        + "]}]}]}"
    )
    receivers.check(Export("traces", JSON, "", text.encode(), text.encode()))
    receivers.served.flush()
    assert receivers.served.query(f"SELECT SpanName FROM otel_traces WHERE TraceId = '{'5a' * 16}'") == [
        ("cut \ufffd",)
    ]


def test_a_span_among_broken_ones_is_kept(receivers: Receivers) -> None:
    spans = [{"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "good"}, {"traceId": "zz", "spanId": 3 * "0"}]
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode()
    receivers.check(Export("traces", JSON, "", body, body))
    assert receivers.spans[("ab" * 16, "cd" * 8)] >= 1


def test_the_tables_hold_what_was_acknowledged(receivers: Receivers) -> None:
    """The last test of this file: rows of a refused request would be too many, rows of an acknowledged one missing."""
    assert receivers.spans
    receivers.compare()
