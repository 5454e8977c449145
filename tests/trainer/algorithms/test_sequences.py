"""Joining turns is exact, and the order of rows is a permutation that puts like lengths together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spanloop_trainer.algorithms.sequences import Call, build_sequences, training_order


def call(
    step: int, prompt: list[int], completion: list[int], episode: str = "e", advantage: float = 1.0
) -> Call:
    return Call(episode, step, 0, prompt, completion, [-1.0] * len(completion), advantage)


def test_a_call_that_continues_is_appended() -> None:
    (joined,) = build_sequences(
        [call(1, [1, 2, 3, 4, 5, 6], [7], advantage=2.0), call(0, [1, 2], [3, 4])], merge=True
    )
    assert joined.input_ids == [1, 2, 3, 4, 5, 6, 7]
    assert joined.loss_mask == [0, 0, 1, 1, 0, 0, 1]
    assert joined.advantages == [0, 0, 1, 1, 0, 0, 2]
    assert joined.logps == [0, 0, -1, -1, 0, 0, -1]
    assert joined.calls == 2
    assert joined.members == [1, 0]


def test_a_call_that_differs_by_one_token_is_not() -> None:
    assert len(build_sequences([call(0, [1, 2], [3, 4]), call(1, [1, 2, 3, 9, 5], [7])], merge=True)) == 2


def test_another_episode_is_never_continued() -> None:
    calls = [call(0, [1], [2], "a"), call(1, [1, 2, 3], [4], "b")]
    assert len(build_sequences(calls, merge=True)) == 2


def test_interleaved_sub_agents_each_continue_their_own() -> None:
    calls = [call(0, [1], [2]), call(1, [5], [6]), call(2, [1, 2, 3], [4]), call(3, [5, 6, 7], [8])]
    assert sorted(s.input_ids for s in build_sequences(calls, merge=True)) == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_a_branch_is_continued_once_only() -> None:
    calls = [call(0, [1], [2]), call(1, [1, 2, 3], [4]), call(2, [1, 2, 5], [6])]
    assert [s.input_ids for s in build_sequences(calls, merge=True)] == [[1, 2, 3, 4], [1, 2, 5, 6]]


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=200),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_every_row_is_read_once_an_epoch(lengths: list[int], batch: int, epochs: int, seed: int) -> None:
    order = training_order(lengths, batch_size=batch, epochs=epochs, seed=seed)
    assert sorted(order) == sorted(list(range(len(lengths))) * epochs)
    assert order == training_order(lengths, batch_size=batch, epochs=epochs, seed=seed)


def test_like_lengths_meet_in_a_batch() -> None:
    lengths = [1 + i % 64 for i in range(1024)]
    order = training_order(lengths, batch_size=16, epochs=1, seed=0)
    spans = [
        max(lengths[i] for i in order[at : at + 16]) - min(lengths[i] for i in order[at : at + 16])
        for at in range(0, 1024, 16)
    ]
    assert max(spans) <= 6
