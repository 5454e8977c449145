"""The gateway as the process that `spanloop up` starts: options, a real store, SIGTERM with answers in flight."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.helpers.openai_stub import openai_stub
from tests.helpers.otlp_receiver import otlp_receiver

import spanloop_store
from spanloop_collector.gateway.errors import GatewayConfigError
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import Snapshot, StoreReader
from spanloop_store import registry
from spanloop_store.errors import StoreUnavailable

MESSAGES: Any = [{"role": "user", "content": "2+2?"}]


@contextmanager
def gateway_process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running gateway and its base URL (/v1 included)."""
    command = [sys.executable, "-m", "spanloop_collector.gateway", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            log: list[str] = []
            for line in process.stderr:
                log.append(line)
                if found := re.search(r"listens on (\S+)", line):
                    break
            else:
                pytest.fail("".join(log))
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would block it
            yield process, found.group(1)
        finally:
            if process.poll() is None:
                process.kill()


def test_sigterm_finishes_answers_in_flight_and_sends_their_spans(tmp_path: Path) -> None:
    store = f"chdb://{tmp_path}/store"
    with otlp_receiver() as receiver, openai_stub(gate=threading.Event()) as stub:
        options = ("--store", store, "--otlp", receiver.url, "--upstream", stub.url)
        with gateway_process(*options) as (process, url), ThreadPoolExecutor(4) as pool:
            client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)

            def ask(_number: int) -> str:
                chunks = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
                return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

            answers = [pool.submit(ask, number) for number in range(4)]
            for _ in answers:
                assert stub.streaming.acquire(timeout=20)
            process.send_signal(signal.SIGTERM)
            assert stub.gate is not None
            stub.gate.set()
            assert [answer.result(20) for answer in answers] == ["two and two is four for m"] * 4
            assert process.wait(20) == 0
        # The process is gone: whatever it had to say has been said.
        assert len(receiver.spans) == 4
        assert all("spanloop.completion_logprobs" in span.attributes for span in receiver.spans)
    assert not (
        tmp_path / "store" / "engine"
    ).exists()  # it never opened the store that the collector must own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--upstream", "localhost:8000/v1"], "is not [NAME=]URL"),
        (["--upstream", "http://a/v1", "--upstream", "http://a/v1/"], "is given twice"),
        (["--host", "0.0.0.0"], "SPANLOOP_TOKEN is not set"),
        (["--config", "no-such.toml"], "no-such.toml cannot be read"),
    ],
)
def test_wrong_options_end_with_one_message_and_the_next_step(options: list[str], message: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SPANLOOP_TOKEN"}
    command = [sys.executable, "-m", "spanloop_collector.gateway", "--port", "0", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "next:" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_one_clear_message(tmp_path: Path) -> None:
    with gateway_process("--store", f"chdb://{tmp_path}/store") as (_, url):
        port = url.rsplit(":", 1)[1].removesuffix("/v1")
        command = [sys.executable, "-m", "spanloop_collector.gateway", "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_aliases_are_read_from_a_real_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"chdb://{tmp_path}/store"
    reader = StoreReader(url)
    assert reader() is None  # nobody owns it, and the gateway must not
    client = spanloop_store.connect(url)
    for _ in range(2):
        registry.register_model(client, "calculator", "/models/calculator")
    registry.point_alias(
        client,
        "calculator",
        "candidate",
        2,
        action="point",
        evaluation_id="",
        dataset_id="",
        who="me",
        why="test",
    )
    # The endpoint of a live owner is the collector's to test; here the same SQL runs on the engine itself.
    monkeypatch.setattr(spanloop_store, "read_owner", lambda _url: object())
    assert reader() == Snapshot({"calculator": frozenset({1, 2})}, {("calculator", "candidate"): 2})
    reader.close()
    client.close()


def test_a_collector_that_dies_between_two_looks_keeps_its_lock_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the engine open in the gateway, no collector could start again."""
    url = f"chdb://{tmp_path}/store"
    spanloop_store.connect(url).close()
    monkeypatch.setattr(spanloop_store, "read_owner", lambda _url: object())
    with pytest.raises(StoreUnavailable, match="nobody serves"):
        StoreReader(url)()
    assert spanloop_store.lock_holder(url) is None


def test_upstreams_are_found_by_name_and_else_by_default() -> None:
    found = Upstreams.parse(["calculator=http://a:1/v1/", "http://b:2/v1?key=x=y", "other=https://c/v1"])
    pools = [found.find(model) for model in ("calculator@3", "calculator", "other@x")]
    assert [backend.base for pool in pools if pool for backend in pool] == [
        "http://a:1/v1",
        "http://a:1/v1",
        "https://c/v1",
    ]
    assert found.find("gpt-x") is found.default
    assert found.names == ["calculator", "other"]
    with pytest.raises(GatewayConfigError, match="holds no '@'"):
        Upstreams.parse(["calculator@2=http://a/v1"])
