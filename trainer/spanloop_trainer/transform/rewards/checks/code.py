"""Answers that are a Python program: unit tests in a process of its own. Limits keep accidents small; this is no sandbox."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from spanloop_trainer.transform.rewards.checks.documents import fenced
from spanloop_trainer.transform.rewards.episode import Episode

_FILE_BYTES = 16 << 20
_OPEN_FILES = 64
# Limits are set by the child itself: code between fork and exec would run in a process with the threads of Polars and the engine.
# It says the word only behind the tests, so that `sys.exit(0)` in an answer passes nothing.
_HARNESS = """
import resource, sys
cpu, memory, size, files = map(int, sys.argv[1:5])
for limit, value in ((resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, size),
                     (resource.RLIMIT_NOFILE, files), (resource.RLIMIT_CORE, 0)):
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
space = {"__name__": "solution"}
for name in ("solution.py", "tests.py"):
    with open(name) as file:
        exec(compile(file.read(), name, "exec"), space)
for name, test in list(space.items()):
    if name.startswith("test") and callable(test):
        test()
sys.__stdout__.write(sys.__stdin__.readline())
sys.__stdout__.flush()
"""


def unit_tests(
    episode: Episode, *, tests: str = "", timeout_s: float = 10.0, memory_mb: int = 512
) -> float | None:
    """1 where the tests pass on the answer (or its last fenced block), a Python program; else 0.

    Both run in one namespace, in a fresh process and folder, with an empty environment; functions whose name begins with
    `test` are called. A program that takes too long, too much memory, or ends before the tests do is wrong.

    Args:
        tests: Python source; empty: the task's field `tests`.
        timeout_s: of the whole process, seconds; also its limit of CPU time.
        memory_mb: address space, MiB.

    Raises:
        ValueError: there are no tests.
        OSError: no process can be started.
    """
    if episode.status != "ok":
        return None
    source = tests or str(episode.task.get("tests") or "")
    if not source:
        raise ValueError("there are no tests: give the option `tests`, or the task a field `tests`")
    with tempfile.TemporaryDirectory(prefix="spanloop-tests-") as folder:
        (Path(folder) / "solution.py").write_text(fenced(episode.answer or ""), encoding="utf-8")
        (Path(folder) / "tests.py").write_text(source, encoding="utf-8")
        word = secrets.token_hex(16)
        limits = (int(timeout_s) + 1, memory_mb << 20, _FILE_BYTES, _OPEN_FILES)
        # To a file, since a program that writes without end would fill memory; its size is limited.
        with (Path(folder) / "output").open("w+b") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-X", "utf8", "-c", _HARNESS, *map(str, limits)],
                cwd=folder, env={}, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            try:
                process.communicate(word.encode() + b"\n", timeout=timeout_s)
            except subprocess.TimeoutExpired:
                return 0.0
            finally:
                # Whatever it started, too.
                _end(process)
            output.seek(-min(output.seek(0, os.SEEK_END), len(word) + 1), os.SEEK_END)
            passed = output.read().strip() == word.encode()
    return float(process.returncode == 0 and passed)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
