"""From real agents into the store: a tool step or a call that ours recorded is read like one of a framework."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from tests.helpers.agents import run_agent, succeeded
from tests.helpers.openai_stub import openai_stub, tool_call
from tests.helpers.otlp_receiver import otlp_receiver

from spanloop_collector.importing import import_files
from spanloop_store import connect
from spanloop_trainer.config import Config
from spanloop_trainer.transform import build, load_dataset

AGENTS = Path(__file__).parent / "agents"
PROGRAMS = {
    "plain": ("openai_tools.py",),
    "framework": ("langchain_agent.py",),
    "own": ("api_agent.py", "manual"),
}


class Stored(NamedTuple):
    """What is in the store."""

    steps: list[tuple[Any, ...]]  # service, tool, span name, whether its parent is there
    transitions: pl.DataFrame


def respond(request: dict[str, Any]) -> dict[str, Any]:
    if request.get("tools") and request["messages"][-1]["role"] == "user":
        return tool_call("add", '{"a": 2, "b": 2}')
    return {"role": "assistant", "content": "four"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    folder = tmp_path_factory.mktemp("stored")
    paths = []
    with openai_stub(respond=respond) as stub:  # one server, since its answers' ids must differ
        for service, (script, *arguments) in PROGRAMS.items():
            variables = {"OTEL_SERVICE_NAME": service}
            if service != "framework":  # whose instrumentation alone takes longer than the other programs
                variables["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = "langchain"
            with otlp_receiver() as receiver:
                succeeded(run_agent(AGENTS / script, *arguments, stub=stub, receiver=receiver, **variables))
            for number, body in enumerate(receiver.bodies):
                paths.append(folder / f"{service}-{number}.binpb")
                paths[-1].write_bytes(body)
    store = f"chdb://{folder}/store"
    import_files(store, paths, lambda _: None)
    client = connect(store)
    try:
        rows = client.query("""
            SELECT steps.ServiceName, steps.SpanAttributes['gen_ai.tool.name'], steps.SpanName,
                parents.SpanId != '' AS has_parent
            FROM otel_traces AS steps
            LEFT JOIN otel_traces AS parents ON steps.ParentSpanId = parents.SpanId AND steps.TraceId = parents.TraceId
            WHERE steps.SpanAttributes['gen_ai.operation.name'] = 'execute_tool'
            ORDER BY steps.ServiceName
        """).result_rows
        build(client, folder / "dataset", config=Config())
        yield Stored([tuple(row) for row in rows], load_dataset(folder / "dataset")[1])
    finally:
        client.close()


def test_tables_show_a_plain_loops_step_as_a_frameworks(stored: Stored) -> None:
    # The own loop's tool call stands at the root, since nothing was around it.
    assert stored.steps == [
        ("framework", "add", "execute_tool add", True),
        ("own", "add", "execute_tool add", False),
        ("plain", "add", "execute_tool add", True),
    ]


@pytest.mark.parametrize("service", PROGRAMS)
def test_transitions_show_what_the_tool_gave(stored: Stored, service: str) -> None:
    agent = "adder" if service == "framework" else service  # the framework names it
    steps = stored.transitions.filter(pl.col("agent") == agent)
    steps = steps.filter(~pl.col("state").str.contains("outside")).sort("step")
    assert steps["status"].to_list() == ["ok", "ok"]
    assert steps["episode_id"].n_unique() == 1
    first = steps.row(0, named=True)
    (call,) = json.loads(first["action"])["tool_calls"]
    assert call["function"]["name"] == "add"
    observation = json.loads(first["observation"])
    assert [message["role"] for message in observation] == ["tool"]
    assert observation[0]["tool_call_id"] == call["id"]
    assert steps["next_span_id"].to_list() == [steps["span_id"][1], None]


def test_a_session_is_an_episode_of_its_task(stored: Stored) -> None:
    own = stored.transitions.filter(pl.col("task_id") == "t-manual")
    assert own["episode_id"].unique().to_list()[0].startswith("s-manual@")
    assert own.height == 2
