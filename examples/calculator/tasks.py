"""The calculator's tasks: which exist, how they are worded, and which are held out of training.

A task is an operation on two integers from 0 to 99, asked for in words. A wording is a frame ("What is the {word} of
{a} and {b}?") with a keyword ("sum"). Two splits are made here, before anything runs:

* Number combinations: a pair {a, b} belongs to training or to the held-out tasks, in either order and for every
  operation, so that no held-out task is a training task in other words.
* Wordings: 30 of the 40 of each operation occur in training, 10 never do, although each of their frames and each of
  their keywords does. A held-out task says which it is in its field `wording`: `seen` or `unseen`.

Run as a program it writes `train.jsonl` and `test.jsonl`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "max": max,
    "min": min,
}
KEYWORDS = {
    "add": ("sum", "total", "addition", "aggregate", "tally"),
    "sub": ("difference", "subtraction", "remainder", "gap", "deduction"),
    "max": ("maximum", "larger", "greater", "highest", "bigger"),
    "min": ("minimum", "smaller", "lesser", "lowest", "least"),
}
FRAMES = (
    "What is the {word} of {a} and {b}?",
    "Compute the {word} of {a} and {b}.",
    "Give me the {word} of {a} and {b}.",
    "Find the {word} of {a} and {b}.",
    "Please tell me the {word} of {a} and {b}.",
    "I need the {word} of {a} and {b}.",
    "Take {a} and {b}: what is the {word}?",
    "For {a} and {b}, report the {word}.",
)
LARGEST = 99
HELD_OUT_SHARE = 0.2  # of the number combinations
_OPERATION_OF = {word: operation for operation, words in KEYWORDS.items() for word in words}
_PATTERNS = tuple(
    re.compile(
        re.escape(frame)
        .replace(r"\{word\}", r"(?P<word>\w+)")
        .replace(r"\{a\}", r"(?P<a>\d+)")
        .replace(r"\{b\}", r"(?P<b>\d+)")
    )
    for frame in FRAMES
)


@dataclass(frozen=True)
class Task:
    """One line of a task file; agents read `id` and `prompt`, the reward rule reads `expected`."""

    id: str
    prompt: str
    expected: str  # the exact final answer
    operation: str  # add, sub, max or min
    wording: str  # seen: this frame with this keyword occurs in training; unseen: it does not


@dataclass(frozen=True)
class Question:
    """What a prompt asks for."""

    operation: str
    a: int
    b: int
    wording: tuple[int, str]  # (index of the frame, keyword)


def wordings(operation: str, *, seen: bool) -> list[tuple[int, str]]:
    """The (frame, keyword) combinations of an operation that training sees (30) or never sees (10)."""
    words = KEYWORDS[operation]
    # Keyword k loses frames k and k + 4: two of its eight, and no frame loses more than two of its five keywords.
    held_out = {(frame % len(FRAMES), word) for k, word in enumerate(words) for frame in (k, k + 4)}
    everything = itertools.product(range(len(FRAMES)), words)
    return [wording for wording in everything if (wording in held_out) != seen]


def is_held_out(a: int, b: int) -> bool:
    """Whether a number combination is kept out of training; the order of the two does not matter."""
    digest = hashlib.sha256(f"{min(a, b)},{max(a, b)}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def combinations(*, held_out: bool, largest: int = LARGEST) -> list[tuple[int, int]]:
    """Ordered pairs of one side of the split for which the four operations give four different results.

    Where two operations agree (add and max of 7 and 0) the wrong tool would earn the reward.
    """
    return [
        (a, b)
        for a, b in itertools.product(range(largest + 1), repeat=2)
        if is_held_out(a, b) == held_out and len({function(a, b) for function in OPERATIONS.values()}) == 4
    ]


def parse(prompt: str) -> Question | None:
    """The inverse of the wording, for a scripted policy and the oracle; None if the prompt is not one of ours."""
    for frame, pattern in enumerate(_PATTERNS):
        match = pattern.fullmatch(prompt)
        if match and match["word"] in _OPERATION_OF:
            return Question(
                _OPERATION_OF[match["word"]], int(match["a"]), int(match["b"]), (frame, match["word"])
            )
    return None


def oracle(task: Task) -> float:
    """The reward of an agent that makes no mistake: parse the prompt, apply the operation, compare."""
    question = parse(task.prompt)
    if question is None:
        return 0.0
    return float(str(OPERATIONS[question.operation](question.a, question.b)) == task.expected)


def generate(
    count: int, *, held_out: bool, seed: int, unseen_share: float = 0.0, largest: int = LARGEST
) -> list[Task]:
    """`count` distinct tasks of one side of the split, balanced over operations and wordings.

    Args:
        count: how many tasks.
        held_out: take the number combinations that training never has.
        seed: of the choice of numbers and of the order; the split does not depend on it.
        unseen_share: the share of tasks in wordings that training never has; 0 for training.
        largest: numbers are from 0 to this.

    Raises:
        ValueError: training tasks were asked for in held-out wordings, or more tasks than there are.
    """
    if unseen_share and not held_out:
        raise ValueError("unseen_share is for held-out tasks only: training must not see those wordings")
    rng = random.Random(f"{seed}/{held_out}")
    pairs = combinations(held_out=held_out, largest=largest)
    # Half of what there is at most: the numbers are drawn until a task is new.
    if count > len(pairs) * sum(len(wordings(operation, seen=True)) for operation in OPERATIONS) // 2:
        raise ValueError(f"{count} distinct tasks cannot be drawn from {len(pairs)} number combinations")
    unseen = round(count * unseen_share)
    wanted = itertools.chain(
        itertools.islice(_balanced(rng, seen=True), count - unseen),
        itertools.islice(_balanced(rng, seen=False), unseen),
    )
    tasks: dict[str, Task] = {}
    for operation, (frame, word), wording in wanted:
        while True:
            a, b = rng.choice(pairs)
            prompt = FRAMES[frame].format(word=word, a=a, b=b)
            if prompt not in tasks:
                break
        task_id = f"{operation}-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}"
        tasks[prompt] = Task(task_id, prompt, str(OPERATIONS[operation](a, b)), operation, wording)
    result = list(tasks.values())
    rng.shuffle(result)
    return result


def _balanced(rng: random.Random, *, seen: bool) -> Iterator[tuple[str, tuple[int, str], str]]:
    """Every operation with every wording once, in random order, over and over."""
    while True:
        one_round = [
            (operation, wording) for operation in OPERATIONS for wording in wordings(operation, seen=seen)
        ]
        rng.shuffle(one_round)
        for operation, wording in one_round:
            yield operation, wording, "seen" if seen else "unseen"


def write(path: Path, tasks: Iterable[Task]) -> None:
    """Write a task file: one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(task)) + "\n" for task in tasks), encoding="utf-8")


def read(path: Path) -> list[Task]:
    """Read a task file that `write` wrote."""
    return [Task(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Write both task files."""
    parser = argparse.ArgumentParser(description="Write train.jsonl and test.jsonl.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--train", type=int, default=8000, metavar="N")
    parser.add_argument("--test", type=int, default=420, metavar="N")
    parser.add_argument(
        "--unseen-share",
        type=float,
        default=0.2,
        help="share of the test tasks in wordings training never has",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.out / "train.jsonl", generate(options.train, held_out=False, seed=options.seed))
    held_out = generate(options.test, held_out=True, seed=options.seed, unseen_share=options.unseen_share)
    write(options.out / "test.jsonl", held_out)


if __name__ == "__main__":
    main()
