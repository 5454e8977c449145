"""Feedback by every door, through a real collector that is killed, into what is learnt."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from tests.collector.capture_process import Capture, running
from tests.helpers.agents import run_agent, succeeded
from tests.helpers.openai_stub import openai_stub
from tests.helpers.otlp_receiver import Receiver

from spanloop.main import cli
from spanloop_store import connect
from spanloop_trainer.config import Config
from spanloop_trainer.transform import build, load_dataset

# Two calls of a session, `manual-1` and `manual-2`, the second of which it judges itself with spanloop.reward.
AGENT = Path(__file__).parents[1] / "exporter" / "agents" / "api_agent.py"


class Learnt(NamedTuple):
    """What is in the store, and what `build` made of it."""

    rewards: list[tuple[Any, ...]]  # name, value, source, evaluator
    transitions: pl.DataFrame


def post(capture: Capture, path: str, body: bytes, kind: str) -> Any:
    request = urllib.request.Request(f"{capture.otlp_http}{path}", data=body, headers={"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read()) if kind == "application/json" else None


def judge(capture: Capture, **judgement: Any) -> Any:
    return post(capture, "/v1/feedback", json.dumps(judgement).encode(), "application/json")


def log_event(**attributes: Any) -> bytes:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "judge"
    record = resource.scope_logs.add().log_records.add(event_name="gen_ai.evaluation.result")
    record.time_unix_nano = 1_795_000_000_000_000_000
    for key, value in attributes.items():
        found = record.attributes.add(key=key.replace("__", ".")).value
        if isinstance(value, float):
            found.double_value = value
        else:
            found.string_value = value
    return request.SerializeToString()


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learnt]:
    folder = tmp_path_factory.mktemp("feedback")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPANLOOP_RETENTION_DAYS", "0")
        with running(folder / "s") as capture:
            # Before anything of the session is there, and killed as soon as it is answered.
            assert (
                judge(capture, session_id="s-manual", name="user", value=True, id="k")["status"] == "stored"
            )
            capture.kill()
        with running(folder / "s") as capture, openai_stub() as stub:
            variables = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "langchain"}
            succeeded(
                run_agent(AGENT, "manual", stub=stub, receiver=Receiver(capture.otlp_http), **variables)
            )
            events = {"gen_ai__evaluation__name": "judge", "gen_ai__response__id": "manual-2"}
            for score in (0.25, float("nan")):
                body = log_event(
                    gen_ai__evaluation__score__value=score, spanloop__evaluator__version="2", **events
                )
                post(capture, "/v1/logs", body, "application/x-protobuf")
            capture.flush()
            (folder / "late.csv").write_text(
                "response_id,name,value,evaluator\nmanual-1,late,-1,ann\nmanual-1,late,?,ann\n"
            )
            done = CliRunner().invoke(
                cli, ["feedback", "import", "--store", f"chdb://{folder}/s", str(folder / "late.csv")]
            )
            assert done.exit_code == 1, done.output
            capture.kill()
        with contextlib.closing(connect(f"chdb://{folder}/s")) as client:
            rows = client.query(
                "SELECT name, value, source, evaluator, evaluator_version FROM rewards"
            ).result_rows
            build(client, folder / "dataset", config=Config())
        status = CliRunner().invoke(cli, ["status", "--store", f"chdb://{folder}/s"])
        assert "1 log records" in status.output, status.output
        yield Learnt([tuple(row) for row in rows], load_dataset(folder / "dataset")[1])


def test_every_door_ends_in_one_table_once(learnt: Learnt) -> None:
    assert Counter(learnt.rewards) == Counter(
        [
            ("user", 1.0, "feedback", "feedback", ""),
            ("quality", 0.5, "event", "calculator", ""),
            ("judge", 0.25, "event", "judge", "2"),
            ("late", -1.0, "feedback", "ann", ""),
        ]
    )


def test_each_judges_what_it_names(learnt: Learnt) -> None:
    parts = {
        response_id: {part["name"]: part["value"] for part in parts}
        for response_id, parts in learnt.transitions.select("response_id", "reward_parts").iter_rows()
    }
    assert parts["manual-1"] == {"user": 1.0, "late": -1.0}
    assert parts["manual-2"] == {"user": 1.0, "quality": 0.5, "judge": 0.25}
    assert sum(not found for found in parts.values()) == 1  # the call outside of the session
