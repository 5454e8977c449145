"""The split is what the demo's claim rests on: nothing held out may occur in training."""

from __future__ import annotations

import re

import plan
import pytest
import tasks as calculator


def numbers(task: calculator.Task) -> tuple[str, int, int]:
    """A task in normal form: operation and its two numbers without their order."""
    a, b = (int(text) for text in re.findall(r"\d+", task.prompt))
    return task.operation, min(a, b), max(a, b)


@pytest.mark.parametrize("seed", [0, 1, 4_000_000_000])
def test_no_normalised_task_is_in_both_splits(seed: int) -> None:
    demo = plan.DEMO
    count = sum(demo.yesterday.values()) + demo.nights * sum(demo.night.values()) // demo.samples
    training = calculator.generate(count, held_out=False, seed=seed)
    held_out = calculator.generate(420, held_out=True, seed=seed, unseen_share=0.2)
    assert len({task.prompt for task in training}) == len({task.id for task in training}) == count
    pairs = {numbers(task)[1:] for task in training}
    assert not pairs & {numbers(task)[1:] for task in held_out}, (
        "not even under another operation or in another order"
    )
    assert sum(task.wording == "unseen" for task in held_out) == 84
    assert {task.wording for task in training} == {"seen"}


def test_the_split_does_not_depend_on_the_seed() -> None:
    training = [
        numbers(task)[1:] for seed in range(3) for task in calculator.generate(900, held_out=False, seed=seed)
    ]
    held_out = [
        numbers(task)[1:] for seed in range(3) for task in calculator.generate(300, held_out=True, seed=seed)
    ]
    assert not set(training) & set(held_out)


@pytest.mark.parametrize("operation", sorted(calculator.OPERATIONS))
def test_wordings_are_30_and_10_and_every_part_occurs_in_training(operation: str) -> None:
    seen, unseen = (set(calculator.wordings(operation, seen=side)) for side in (True, False))
    assert (len(seen), len(unseen)) == (30, 10)
    assert not seen & unseen
    assert {frame for frame, _ in seen} == set(range(len(calculator.FRAMES)))
    assert {word for _, word in seen} == set(calculator.KEYWORDS[operation])


def test_training_never_uses_a_held_out_wording() -> None:
    for task in calculator.generate(4000, held_out=False, seed=5):
        question = calculator.parse(task.prompt)
        assert question is not None
        assert question.wording in calculator.wordings(question.operation, seen=True)


def test_held_out_wordings_are_refused_for_training() -> None:
    with pytest.raises(ValueError, match="held-out"):
        calculator.generate(10, held_out=False, seed=0, unseen_share=0.1)


def test_too_many_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be drawn"):
        calculator.generate(1_000_000, held_out=True, seed=0, largest=9)


def test_the_oracle_solves_everything_and_parse_inverts_the_wording() -> None:
    drawn = calculator.generate(500, held_out=True, seed=2, unseen_share=0.5)
    assert [calculator.oracle(task) for task in drawn] == [1.0] * 500
    for task in drawn:
        question = calculator.parse(task.prompt)
        assert question is not None
        frame, word = question.wording
        assert calculator.FRAMES[frame].format(word=word, a=question.a, b=question.b) == task.prompt
    assert calculator.parse("What is the meaning of 4 and 2?") is None


def test_no_wrong_tool_earns_the_reward() -> None:
    for task in calculator.generate(500, held_out=False, seed=3):
        question = calculator.parse(task.prompt)
        assert question is not None
        results = [str(function(question.a, question.b)) for function in calculator.OPERATIONS.values()]
        assert results.count(task.expected) == 1


def test_every_task_file_reads_back(tmp_path) -> None:
    drawn = calculator.generate(50, held_out=True, seed=0, unseen_share=0.2)
    calculator.write(tmp_path / "some" / "tasks.jsonl", drawn)
    assert calculator.read(tmp_path / "some" / "tasks.jsonl") == drawn
