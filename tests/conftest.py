"""Every test has a spool of its own: what one test's agent leaves must not be sent by the next test's agent. No row expires."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported anywhere: two threads on two busy cores run many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_numbers = count()
# pytest --hypothesis-profile nightly
settings.register_profile("nightly", max_examples=1000, deadline=None)
# No test asserts a time, and a busy machine is slow.
settings.register_profile("usual", deadline=None)
settings.load_profile("usual")


# What takes longest comes first (with `--no-loadscope-reorder`): else a worker begins it when the others have nothing left.
_LONG = (
    "e2e/test_loop.py",
    "packaging/",
    "faults/",
    "exporter/test_calls_client.py",
    "exporter/test_zero_code.py",
    "exporter/test_spool_processes.py",
    "store/test_upgrade.py",
    "store/test_backup.py",
    "store/otlp/",
    "fuzz/",
    "cli/",
    "trainer/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        path = item.nodeid.removeprefix("tests/")
        return next((number for number, start in enumerate(_LONG) if path.startswith(start)), len(_LONG))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _spool_of_the_session() -> Iterator[None]:
    """For processes that are started by fixtures of a wider scope."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPANLOOP_SPOOL", folder)
        # Recordings keep their dates: a store that lets rows go after a year would one day let go of them.
        patch.setenv("SPANLOOP_RETENTION_DAYS", "0")
        yield


@pytest.fixture(autouse=True)
def _spool_of_the_test(_spool_of_the_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ["SPANLOOP_SPOOL"])
    monkeypatch.setenv("SPANLOOP_SPOOL", str(folder / f"test-{next(_numbers)}"))
