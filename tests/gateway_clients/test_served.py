"""`spanloop serve` as the upstream: a model that really decodes, asked straight and through the gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from bench.gateway.process import gateway
from tests.gateway_clients.conftest import sync_client
from tests.helpers.otlp_receiver import Receiver, otlp_receiver
from tests.trainer.serve.conftest import LEARNED, build

TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SAY_IT: Any = [{"role": "user", "content": "say it"}]
GREEDY: Any = {"model": "tiny", "temperature": 0.0, "max_tokens": 40}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Receiver]]:
    """Base URLs of the server and of the gateway before it, and where the gateway's spans go."""
    folder = tmp_path_factory.mktemp("tiny")
    build(folder, 0, LEARNED)
    command = [sys.executable, "-m", "spanloop.main", "serve", f"tiny={folder}", "--port", "0", "--json"]
    command += ["--store", f"chdb://{folder}/store"]
    environment = {name: value for name, value in os.environ.items() if "_TOKEN" not in name}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            lines = ""
            while not lines.endswith("}\n"):
                lines += process.stdout.readline()
            ready = json.loads(lines)
            assert ready["models"] == ["tiny"]
            url = ready["url"].removesuffix("/v1") + "/v1"
            with (
                otlp_receiver() as receiver,
                gateway(
                    "--upstream", url, "--otlp", receiver.url, "--store", f"chdb://{folder}/store"
                ) as run,
            ):
                yield url, run.url + "/v1", receiver
        finally:
            process.terminate()
            assert process.wait(30) == 0


def without_names(value: Any) -> Any:
    """Answers' ids, tool calls' ids and times are drawn anew for each call."""
    if isinstance(value, dict):
        return {name: without_names(inner) for name, inner in value.items() if name not in ("id", "created")}
    return [without_names(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "options",
    [{}, {"n": 2}, {"logprobs": True}, {"tools": [TOOL]}, {"return": True}],
    ids=["plain", "n", "logprobs", "tools", "token-ids"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_answers_are_equal(served: tuple[str, str, Receiver], options: dict[str, Any], stream: bool) -> None:
    messages: Any = SAY_IT if "tools" not in options else [{"role": "user", "content": "use the tool"}]
    asked = {**GREEDY, **options}
    if asked.pop("return", False):
        asked["extra_body"] = {"return_token_ids": True}

    def ask(base_url: str) -> Any:
        with sync_client(base_url) as client:
            answer: Any = client.chat.completions.create(messages=messages, stream=stream, **asked)
            found = [chunk.model_dump() for chunk in answer] if stream else answer.model_dump()
            return without_names(found)

    direct, through = ask(served[0]), ask(served[1])
    if stream:
        # How many tokens a chunk holds depends on when the server woke; what they say together does not.
        direct, through = joined(direct), joined(through)
    else:
        assert direct["choices"][0]["finish_reason"] in ("stop", "tool_calls", "length")
    assert through == direct


def joined(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """A stream's choices with their deltas put together."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            whole = found.setdefault(
                choice["index"], {"text": "", "tools": "", "end": [], "logprobs": [], "ids": []}
            )
            whole["text"] += choice["delta"]["content"] or ""
            for call in choice["delta"]["tool_calls"] or []:
                whole["tools"] += (call["function"]["name"] or "") + (call["function"]["arguments"] or "")
            whole["end"] += [choice["finish_reason"]] if choice["finish_reason"] else []
            whole["logprobs"] += (choice["logprobs"] or {}).get("content") or []
            whole["ids"] += choice.get("token_ids") or []
    assert found
    return found


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_span_has_the_tokens_that_were_decoded(served: tuple[str, str, Receiver], stream: bool) -> None:
    direct, through, receiver = served
    with sync_client(direct) as client:
        own: Any = client.chat.completions.create(
            messages=SAY_IT, logprobs=True, extra_body={"return_token_ids": True}, **GREEDY
        )
    with sync_client(through) as client:
        answer: Any = client.chat.completions.create(messages=SAY_IT, stream=stream, **GREEDY)
        response_id = next(iter(list(answer))).id if stream else answer.id
    spans = receiver.wait(
        lambda spans: any(span.attributes.get("gen_ai.response.id") == response_id for span in spans)
    )
    (span,) = (span for span in spans if span.attributes.get("gen_ai.response.id") == response_id)
    choice = own.choices[0]
    assert span.json("spanloop.completion_token_ids") == [choice.token_ids]
    assert span.json("spanloop.prompt_token_ids") == own.prompt_token_ids
    assert choice.logprobs is not None
    expected = [entry.logprob for entry in choice.logprobs.content]
    assert span.json("spanloop.completion_logprobs")[0] == pytest.approx(expected, abs=1e-4)
