"""What the exporter recorded on a call's span goes to the twins of that call, and to no other call."""

from __future__ import annotations

from datetime import datetime

import polars as pl
import pytest

from spanloop_trainer.transform.calls import distinct_calls
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.pieces import set_apart

Span = tuple[str | None, list[int], str]  # version, completion tokens, answer


def kept(*spans: Span) -> tuple[str | None, list[int]]:
    """Version and tokens of the call that is left of spans with one response id, an hour after another."""
    rows = [
        {
            "start": datetime(2026, 1, 1, hour),
            "trace_id": f"t{hour}",
            "span_id": f"s{hour}",
            "parent_span_id": "",
            "response_id": "chatcmpl-123",
            "has_content": True,
            "answers": [answer] if answer else [],
            "own_served_version": version,
            "own_prompt_ids": [1] if tokens else [],
            "own_completion_ids": [tokens] if tokens else [],
            "own_logprobs": [[-0.5] * len(tokens)] if tokens else [],
        }
        for hour, (version, tokens, answer) in enumerate(spans)
    ]
    calls = pl.DataFrame(
        rows,
        schema_overrides={
            "own_served_version": pl.String,
            "answers": pl.List(pl.String),
            "own_prompt_ids": pl.List(pl.Int32),
            "own_completion_ids": pl.List(pl.List(pl.Int32)),
            "own_logprobs": pl.List(pl.List(pl.Float64)),
        },
    )
    slim, lists = set_apart(calls, "own_")
    (row,) = distinct_calls(slim, Funnel()).to_dicts()
    found = lists.filter(pl.col("tokens").eq_missing(pl.lit(row["own_tokens"]))).to_dicts()
    if not found:
        return row["own_served_version"], []
    ((tokens,),) = [one["completion_ids"] for one in found]
    assert found == [
        {
            "tokens": row["own_tokens"],
            "prompt_ids": [1],
            "completion_ids": [tokens],
            "logprobs": [[-0.5] * len(tokens)],
        }
    ]
    return row["own_served_version"], tokens


@pytest.mark.parametrize(
    "spans",
    [
        (("m@1", [7, 8], "a"),),
        ((None, [], "a"), ("m@1", [7, 8], "")),
        (("m@1", [7, 8], ""), (None, [], "a")),
        (("m@1", [], "a"), (None, [7, 8], "")),
        (("m@1", [7, 8], "a"), ("m@1", [7, 8], "a")),
    ],
    ids=["one span", "on the wrapper", "on the first", "on both in part", "on both"],
)
def test_twins_share(spans: tuple[Span, ...]) -> None:
    assert kept(*spans) == ("m@1", [7, 8])


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ((("m@1", [], "a"), ("m@2", [7, 8], "b")), ("m@1", [])),
        (((None, [5], "a"), ("m@2", [7, 8], "b")), (None, [5])),
        ((("m@1", [5], "a"), ("m@1", [7, 8], "b")), ("m@1", [5])),
    ],
    ids=["versions", "tokens", "tokens of one version"],
)
def test_an_id_that_a_server_gave_twice_mixes_nothing(
    spans: tuple[Span, ...], expected: tuple[str | None, list[int]]
) -> None:
    """Ollama numbers its answers with three digits."""
    assert kept(*spans) == expected
