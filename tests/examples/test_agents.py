"""Both example agents are anybody's: they run where Spanloop cannot be imported, against a plain OpenAI server."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.helpers.openai_stub import openai_stub, tool_call

HERE = Path(__file__).parent
CALCULATOR = HERE.parents[1] / "examples" / "calculator"
AGENTS = ("openai_agent.py", "langgraph_agent.py")

# Imported by Python itself at start: makes every package of ours unimportable, and tells at the end if one came in.
BLOCK = """
import atexit, sys

class NoSpanloop:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("spanloop"):
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, NoSpanloop())

@atexit.register
def report():
    ours = sorted(name for name in sys.modules if name.startswith(("spanloop", "opentelemetry.instrumentation")))
    print("ours:", ours)
"""

TASKS = {
    "right": "What is the sum of 2 and 3?",
    "wrong-tool": "What is the sum of 20 and 3?",
    "unknown-tool": "What is the sum of 4 and 5?",
    "bad-arguments": "What is the sum of 6 and 7?",
    "server-error": "What is the sum of 8 and 9?",
    "endless": "What is the sum of 10 and 11?",
    "words-only": "What is the sum of 12 and 13?",
}


def respond(body: dict[str, Any]) -> dict[str, Any]:
    """What the stub's model does with each of the tasks."""
    messages = body["messages"]
    prompt = messages[0]["content"]
    if prompt == TASKS["server-error"]:
        raise web.HTTPBadRequest  # not retried by clients, as a 500 would be
    if prompt == TASKS["words-only"]:
        return {"role": "assistant", "content": "twenty-five"}
    if messages[-1]["role"] == "tool" and prompt != TASKS["endless"]:
        return {"role": "assistant", "content": messages[-1]["content"]}
    first, second = prompt.rstrip("?").split(" of ")[1].split(" and ")
    name = {"wrong-tool": "sub", "unknown-tool": "divide"}.get(
        next(k for k, v in TASKS.items() if v == prompt), "add"
    )
    if prompt == TASKS["bad-arguments"]:
        return tool_call(name, '{"a": "six"}')
    return tool_call(name, json.dumps({"a": int(first), "b": int(second)}))


@pytest.mark.parametrize("agent", AGENTS)
def test_agent_runs_without_spanloop_and_survives_what_a_model_may_do(agent: str, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK)
    tasks, answers = tmp_path / "tasks.jsonl", tmp_path / "answers.jsonl"
    tasks.write_text(
        "".join(json.dumps({"id": key, "prompt": prompt}) + "\n" for key, prompt in TASKS.items())
    )
    with openai_stub(owned_by="openai", respond=respond) as stub:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(tmp_path / "site"),
            "OPENAI_BASE_URL": stub.url,
            "OPENAI_API_KEY": "none",
            "OPENAI_MODEL": "some-model",
        }
        command: list[str | Path] = [
            sys.executable,
            CALCULATOR / agent,
            "--tasks",
            tasks,
            "--answers",
            answers,
            "--concurrency",
            "3",
        ]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ours: []", "the agent must need nothing of ours"
    found = {line["id"]: line for line in map(json.loads, answers.read_text().splitlines())}
    assert list(found) == list(TASKS), "every task has an answer line, in order"
    assert found["right"]["answer"] == "5"
    assert found["wrong-tool"]["answer"] == "17"
    assert found["words-only"]["answer"] == "twenty-five"
    assert "error" in found["server-error"]
    assert found["unknown-tool"]["answer"] != "9"
    assert found["bad-arguments"]["answer"] != "13"
    calls_of_endless = [r for r in stub.requests if r["messages"][0]["content"] == TASKS["endless"]]
    assert len(calls_of_endless) == 3, "three turns at most"
    assert {request["model"] for request in stub.requests} == {"some-model"}
    assert {tool["function"]["name"] for tool in stub.requests[0]["tools"]} == {"add", "sub", "max", "min"}
    assert all(request["temperature"] == 1.0 for request in stub.requests)


@pytest.mark.parametrize("agent", AGENTS)
def test_agent_imports_nothing_of_ours(agent: str) -> None:
    tree = ast.parse((CALCULATOR / agent).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [
        name for name in imported if name.startswith(("spanloop", "opentelemetry", "tasks", "policy"))
    ]
