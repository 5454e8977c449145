"""Agents of several processes, unmodified: multiprocessing with fork and spawn, a pre-forking server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.agents import (
    LAUNCHER,
    agent_environment,
    assert_every_call_once,
    model_calls,
    run_agent,
    succeeded,
)
from tests.helpers.openai_stub import Stub, openai_stub
from tests.helpers.otlp_receiver import Receiver, otlp_receiver

AGENTS = Path(__file__).parent / "agents"
# Each of their many processes would import it.
WITHOUT_LANGCHAIN = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "langchain"}


def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": f"heard {request['messages'][0]['content']}"}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as running:
        yield running


@pytest.fixture
def stub() -> Iterator[Stub]:
    with openai_stub(respond=echo) as running:
        yield running


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_lose_no_call(method: str, stub: Stub, receiver: Receiver) -> None:
    ended = run_agent(AGENTS / "processes.py", method, stub=stub, receiver=receiver, **WITHOUT_LANGCHAIN)
    pooled = [f"pooled {number}" for number in range(4)]
    assert succeeded(ended).splitlines() == [f"heard {task}" for task in ["before", *pooled, "after"]]
    calls = model_calls(receiver.wait(lambda spans: len(model_calls(spans)) >= 7))
    assert_every_call_once(stub, calls)
    assert len({(call.trace_id, call.span_id) for call in calls}) == 7
    assert len({call.trace_id for call in calls}) == 7  # no process continues another's trace


def test_a_pre_forking_server_loses_no_call(stub: Stub, receiver: Receiver, tmp_path: Path) -> None:
    environment = agent_environment(stub, receiver, SPANLOOP_SPOOL=str(tmp_path), **WITHOUT_LANGCHAIN)
    command = [str(LAUNCHER), sys.executable, str(AGENTS / "prefork_server.py")]
    questions = [f"question {number}" for number in range(24)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        port = int(server.stdout.readline())

        def post(question: str) -> str:
            request = urllib.request.Request(f"http://127.0.0.1:{port}", data=question.encode())
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(answer.read().decode())

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(post, questions))
        os.kill(server.pid, signal.SIGTERM)
        errors = server.stderr.read()
        assert server.wait(60) == 0, errors
    assert [answer.partition(" ")[2] for answer in answers] == [f"heard {question}" for question in questions]
    calls = model_calls(receiver.wait(lambda spans: len(model_calls(spans)) >= 24))
    assert_every_call_once(stub, calls)
    assert "opentelemetry" not in errors.lower()
