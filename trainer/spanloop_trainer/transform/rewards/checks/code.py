"""Answers that are a Python program: unit tests in a process of its own. Limits keep accidents small; this is no sandbox."""

from __future__ import annotations

import ast
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
    before = dict(space)
    with open(name) as file:
        exec(compile(file.read(), name, "exec"), space)
for name, test in list(space.items()):
    if name.startswith("test") and callable(test) and before.get(name) is not test:
        test()
sys.__stdout__.write(sys.__stdin__.readline())
sys.__stdout__.flush()
"""


def unit_tests(
    episode: Episode, *, tests: str = "", timeout_s: float = 10.0, memory_mb: int = 512
) -> float | None:
    """1 where the tests pass on the answer (or its last fenced block), a Python program; else 0.

    Both run in one namespace, in a fresh process and folder, with an empty environment; functions whose name begins with
    `test` are called, those of the tests alone. A program that takes too long, too much memory, or ends before the tests do is wrong.

    Args:
        tests: Python source; empty: the task's field `tests`.
        timeout_s: of the whole process, seconds; also its limit of CPU time.
        memory_mb: address space, MiB.

    Raises:
        ValueError: there are no tests, or they could not fail.
        OSError: no process can be started.
    """
    if episode.status != "ok" or episode.called:
        return None
    source = tests or episode.task.get("tests")
    if not source:
        raise ValueError("there are no tests: give the option `tests`, or the task a field `tests`")
    _check(source)
    with tempfile.TemporaryDirectory(prefix="spanloop-tests-") as folder:
        (Path(folder) / "solution.py").write_text(
            fenced(episode.answer or "", "python", "py", "python3"), encoding="utf-8"
        )
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


def _check(source: object) -> None:
    """Refuse tests that every answer would pass, or none.

    Raises:
        ValueError: they are no Python, or something of them would not run.
    """
    if not isinstance(source, str):
        raise ValueError(f"tests are one text of Python source, no {type(source).__name__}")
    try:
        body = ast.parse(source).body
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"tests are no Python: {error}") from error
    plain = functions = False
    idle = ""
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name, args=args) if name.startswith("test"):
                if len(args.posonlyargs) + len(args.args) > len(args.defaults) or None in args.kw_defaults:
                    raise ValueError(f"tests: {name} takes arguments, and nobody gives them")
                functions = True
            case ast.AsyncFunctionDef(name=name) if name.startswith("test"):
                idle = name
            case ast.ClassDef(name=name, body=inside) if any(
                isinstance(one, ast.FunctionDef) and one.name.startswith("test") for one in inside
            ):
                idle = name
            case (
                ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Import() | ast.ImportFrom()
            ):
                pass
            case ast.Assign() | ast.AnnAssign() | ast.Expr(value=ast.Constant()):
                pass
            case _:
                plain = True
    if plain:
        return
    if idle:
        raise ValueError(f"tests: {idle} would not run; functions `def test…()` and plain statements do")
    if not functions:
        raise ValueError(
            "tests check nothing: give functions `def test…()`, or statements such as `assert f(1) == 2`"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
