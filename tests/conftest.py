"""Every test has a spool of its own: what one test's agent leaves must not be sent by the next test's agent. No row expires."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

_numbers = count()


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
