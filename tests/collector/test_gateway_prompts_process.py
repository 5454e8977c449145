"""A promoted prompt reaches an unmodified agent in its next call, and rolls back: agent, gateway and store as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.collector.test_up import up
from tests.helpers.commands import report
from tests.helpers.openai_stub import Stub, openai_stub
from tests.helpers.waiting import until

from spanloop_store import connect, flush, registry

AGENT = """
import sys
from openai import OpenAI

client = OpenAI(api_key="x", max_retries=0)
for line in sys.stdin:
    client.chat.completions.create(
        model="small",
        messages=[
            {"role": "system", "content": f"You are the support agent of a bakery, and kind. Today is {line.strip()}."},
            {"role": "user", "content": "Is there rye bread?"},
        ],
    )
    print("done", flush=True)
"""
SENT = "You are the support agent of a bakery, and kind. Today is {}."
BETTER = "You sell bread. Date: {{variable_1}}. Braces stay: \\{{variable_1}}.\n"
SHOTS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good day, it is {{variable_1}}."},
]


class Agent:
    """A process of the user's, which knows nothing but its base URL."""

    def __init__(self, gateway: str) -> None:
        environment = {**os.environ, "OPENAI_BASE_URL": f"{gateway}/v1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", AGENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def call(self, day: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(day + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0


def spanloop(store: str, *words: str) -> Any:
    return report("prompt", *words, "--store", store)


def messages(stub: Stub) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stub.requests[-1]["messages"]
    return found


def snapshot_reaches(gateway: str, agent: Agent, stub: Stub, day: str, first: str) -> list[dict[str, Any]]:
    """The messages of the first call after the gateway's next look at the registry."""

    def called() -> list[dict[str, Any]] | None:
        agent.call(day)
        return messages(stub) if messages(stub)[0]["content"] == first else None

    found: list[dict[str, Any]] = until(
        called, lambda: f"{gateway} never sent {first!r}: {messages(stub)[0]}"
    )
    return found


def test_a_promoted_prompt_reaches_an_unmodified_agent_and_rolls_back(tmp_path: Path) -> None:
    store = f"chdb://{tmp_path}/store"
    file, shots = tmp_path / "better.txt", tmp_path / "shots.jsonl"
    file.write_text(BETTER, encoding="utf-8")
    shots.write_text("\n".join(map(json.dumps, SHOTS)), encoding="utf-8")
    with openai_stub() as stub, up(tmp_path / "store", "--upstream", stub.url) as (_, addresses):
        gateway = addresses["gateway"]
        with Agent(gateway) as agent, closing(connect(store, served=True)) as client:
            agent.call("2026-03-01")
            until(lambda: registry.prompts(client), lambda: "the prompt was not learnt")
            agent.call("2026-03-02")
            until(
                lambda: registry.prompts(client)[0].template.names, lambda: "the date was not seen as a place"
            )
            assert messages(stub)[0]["content"] == SENT.format("2026-03-02")
            (listed,) = spanloop(store, "list")
            assert (listed["id"], listed["places"], listed["aliases"]) == ("small@1", ["variable_1"], [])
            assert listed["content"] == SENT.format("{{variable_1}}")

            added = spanloop(store, "add", "small", "--file", str(file), "--examples", str(shots))
            assert (added["id"], added["parent"], added["unknown_places"]) == ("small@2", "small@1", [])
            agent.call("2026-03-03")
            assert messages(stub)[0]["content"] == SENT.format("2026-03-03")  # recorded, not promoted

            moved = spanloop(
                store, "point", "small@2", "--without-evaluation", "--why", "it is shorter", "--who", "me"
            )
            assert (moved["version"], moved["previous_version"]) == (2, 0)
            first = "You sell bread. Date: 2026-03-04. Braces stay: {{variable_1}}."
            assert snapshot_reaches(gateway, agent, stub, "2026-03-04", first) == [
                {"role": "system", "content": first},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Good day, it is 2026-03-04."},
                {"role": "user", "content": "Is there rye bread?"},
            ]
            back = spanloop(store, "rollback", "small", "--why", "too short")
            assert (back["version"], back["previous_version"], back["action"]) == (0, 2, "rollback")
            sent = SENT.format("2026-03-05")
            assert len(snapshot_reaches(gateway, agent, stub, "2026-03-05", sent)) == 2
        urllib.request.urlopen(urllib.request.Request(f"{gateway}/flush", method="POST"), timeout=30).close()
        assert flush(store) is not None
        with closing(connect(store, served=True)) as client:
            rows = client.query(
                "SELECT DISTINCT SpanAttributes['spanloop.prompt.version'], SpanAttributes['spanloop.prompt.requested']"
                " FROM otel_traces WHERE SpanAttributes['spanloop.gateway'] = 'true' ORDER BY 1, 2"
            ).result_rows
            trail = registry.promotions(client, kind="prompt")
        assert set(map(tuple, rows)) - {("", "")} == {("small@1", ""), ("small@2", "small@1")}
        assert [(row.action, row.version, row.who, row.why) for row in trail[:1]] == [
            ("point", 2, "me", "it is shorter")
        ]
        assert [row.action for row in trail] == ["point", "rollback"]
