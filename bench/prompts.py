"""What recognising system prompts costs a call, and what learning one costs beside the calls: `python bench/prompts.py`."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from typing import Any

from spanloop_collector.gateway.prompts import Book, Prompts
from spanloop_collector.gateway.prompts.known import Caller
from spanloop_collector.gateway.prompts.learning import Learner
from spanloop_collector.gateway.versions import Snapshot
from spanloop_store.prompts import PromptVersion

KB = 1024


class Memory:
    """A registry without a store: only our own work is measured."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, int], PromptVersion] = {}
        self._numbers = count(1)

    def register(self, name: str, content: str, parent: str, metadata: dict[str, Any]) -> PromptVersion:
        made = PromptVersion(name, next(self._numbers), content, parent, (), metadata, datetime.now(UTC))
        self.versions[name, made.version] = made
        return made

    def revise(
        self, version: PromptVersion, *, content: str | None = None, same_as: str = ""
    ) -> PromptVersion:
        metadata = {**version.metadata, "revision": version.revision + 1, "same_as": same_as}
        made = PromptVersion(
            version.name,
            version.version,
            content or version.content,
            version.parent,
            (),
            metadata,
            version.created,
        )
        self.versions[version.name, version.version] = made
        return made


def prose(chars: int, rng: random.Random) -> str:
    words = ["".join(rng.choices("abcdefghijklmnoprstuvwyz", k=rng.randint(2, 9))) for _ in range(2000)]
    return " ".join(rng.choice(words) for _ in range(chars // 6))


def microseconds(work: Callable[[], object], repeats: int = 2000) -> float:
    """Median of single runs."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def body(text: str) -> dict[str, Any]:
    # As from the parser of a new request: the text's hash is not known yet.
    return {
        "model": "m",
        "messages": [{"role": "system", "content": text}, {"role": "user", "content": "Hi"}],
    }


def calls(size: int, others: int) -> None:
    rng = random.Random(size)
    text = prose(size, rng)
    date = text[: size // 2] + " Today is {}. " + text[size // 2 :]
    memory = Memory()
    learner = Learner(memory)
    for number in range(others):
        learner.learn(prose(2 * KB, random.Random(number)) + " Today is 2026-01-01.", Caller("", "m"))
    learner.learn(text, Caller("", "m"))
    for day in range(1, 4):
        learner.learn(date.format(f"2026-03-0{day}"), Caller("", "m"))
    names = {version.content: version for version in memory.versions.values()}
    template = next(
        version for content, version in names.items() if "{{variable_1}}" in content and len(content) > size
    )
    better = memory.register(template.name, text + " {{variable_1}}", "", {})
    now = datetime.now(UTC)
    book = Book(memory.versions)
    promoted = Book(memory.versions, {(template.name, "production"): (better.version, now)})
    prompts = Prompts(memory)
    encoded, dated = text.encode(), date.format("2026-04-01").encode()
    cases = {
        "exact text": (encoded, book),
        "template, one value": (dated, book),
        "template, replaced": (dated, promoted),
        "unknown, already waiting": (b"Unknown. " + encoded, book),
    }
    for name, (raw, known) in cases.items():
        snapshot = Snapshot(prompts=known)
        prompts.apply(body(raw.decode()), snapshot)
        bare = microseconds(lambda raw=raw: body(raw.decode()))  # type: ignore[misc]  # bound for this turn
        whole = microseconds(lambda raw=raw, snapshot=snapshot: prompts.apply(body(raw.decode()), snapshot))  # type: ignore[misc]  # the same
        print(f"| {name}, {size // KB} KB, {others} other prompts | {whole - bare:.1f} µs |")


def learning(size: int) -> None:
    rng = random.Random(size)
    texts = [f"{prose(size // 2, rng)} {{}} {prose(size // 2, rng)}"]
    learner = Learner(Memory())
    learner.learn(texts[0].format("2026-01-01"), Caller("", "m"))
    steps = {
        "a date that changed": texts[0].format("2026-01-02"),
        "an edited sentence": texts[0].replace(texts[0][100:200], prose(100, rng)).format("2026-01-02"),
        "another prompt": prose(size, rng),
    }
    for name, text in steps.items():
        began, cpu = time.perf_counter(), time.thread_time()
        learner.learn(text, Caller("", "m"))
        took, used = time.perf_counter() - began, time.thread_time() - cpu
        print(f"| learning {name}, {size // KB} KB | {took * 1e3:.0f} ms, {used * 1e3:.0f} ms of CPU |")


def beside() -> None:
    """How late a thread wakes that wants to run every millisecond, as the event loop does, while another one learns."""
    rng = random.Random(1)
    learner = Learner(Memory())
    texts = [prose(100 * KB, rng) for _ in range(4)]
    for label, busy in (("idle", False), ("learning 100 KB prompts", True)):
        stop = threading.Event()

        def learn() -> None:
            for text in texts:
                learner.learn(text, Caller("", "m"))
            stop.set()  # noqa: B023  # ends before the next turn

        thread = threading.Thread(target=learn if busy else lambda: stop.wait(1) or stop.set())  # noqa: B023
        thread.start()
        late = []
        while not stop.is_set():
            began = time.perf_counter()
            time.sleep(0.001)
            late.append(time.perf_counter() - began - 0.001)
        thread.join()
        late.sort()
        p50, p99 = late[len(late) // 2] * 1e3, late[len(late) * 99 // 100] * 1e3
        print(f"| a call's thread wakes late, {label} | {p50:.2f} ms median, {p99:.2f} ms p99 |")


if __name__ == "__main__":
    print("| what | cost |\n|---|---|")
    for size in (2 * KB, 100 * KB):
        calls(size, 50)
    for size in (2 * KB, 100 * KB):
        learning(size)
    beside()
