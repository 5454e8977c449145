"""What the exporter recorded on a call's span goes to the twins of that call, and to no other call."""

from __future__ import annotations

import polars as pl
import pytest

from spanloop_trainer.transform.calls.distinct import distinct_calls
from spanloop_trainer.transform.calls.tree import read_tree
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.pieces.piece import canonical

from .trees import Recorder, said, user

Span = tuple[str | None, list[int], str]  # version, completion tokens, answer
Kept = tuple[str | None, list[int]]


def kept(*spans: Span) -> list[Kept]:
    """Version and tokens of the calls that are left of spans with one response id, a tenth of a second after another."""
    recorder = Recorder()
    for number, (version, tokens, answer) in enumerate(spans):
        recorder.call(
            f"t{number}", [user("p")], *([said(answer)] if answer else []), at=number / 10, response_id="chatcmpl-123",
            own_served_version=version, own_prompt_ids=[1] if tokens else [],
            own_completion_ids=[tokens] if tokens else [], own_logprobs=[[-0.5] * len(tokens)] if tokens else [],
        )  # fmt: skip
    piece = canonical(recorder.spans())
    left = []
    for row in distinct_calls(*read_tree(piece.slim.calls, piece.slim.ancestors), Funnel()).to_dicts():
        found = piece.tokens.filter(pl.col("tokens").eq_missing(pl.lit(row["own_tokens"]))).to_dicts()
        tokens = found[0]["completion_ids"][0] if found else []
        if found:
            assert (found[0]["prompt_ids"], found[0]["logprobs"]) == ([1], [[-0.5] * len(tokens)])
        left.append((row["own_served_version"], tokens))
    return left


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
    assert kept(*spans) == [("m@1", [7, 8])]


@pytest.mark.parametrize(
    "spans",
    [
        (("m@1", [], "a"), ("m@2", [7, 8], "b")),
        ((None, [5], "a"), ("m@2", [7, 8], "b")),
        (("m@1", [5], "a"), ("m@1", [7, 8], "b")),
    ],
    ids=["versions", "tokens", "tokens of one version"],
)
def test_an_id_that_a_server_gave_twice_mixes_nothing(spans: tuple[Span, ...]) -> None:
    """Ollama numbers its answers with three digits."""
    assert kept(*spans) == [(version, tokens) for version, tokens, _ in spans]
