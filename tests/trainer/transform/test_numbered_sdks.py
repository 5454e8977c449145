"""What instrumentations record of real SDKs under numbered keys, against what their server received and answered."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple
from unittest.mock import ANY

import polars as pl
import pytest
from tests.helpers.stores import laid

from spanloop_store import connect
from spanloop_trainer.config import Config
from spanloop_trainer.transform import build, load_dataset

from .conftest import insert
from .test_truth import read
from .truth import FIXTURES, Json, Said, arguments, of_anthropic, said


def scenarios() -> dict[str, Json]:
    """By name; the stub numbered its answers from 0 in each file, and all are built together here."""
    found = {}
    for path in sorted((FIXTURES / "numbered").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            number = str(1 + len(found))
            scenario = json.loads(
                re.sub(r"\b(chatcmpl-|cmpl-|resp_|msg_)(\d+)", rf"\g<1>{number}0\g<2>", line)
            )
            name = f"{path.stem}-{scenario['scenario']}"
            for row in scenario["rows"]:
                row["ResourceAttributes"]["service.instance.id"] = name
            found[name] = scenario
    return found


SCENARIOS = scenarios()


class Expected(NamedTuple):
    """Args:
    status: of every transition; `error_type` where it is none of the server's.
    prompts: of the calls, which are equal to what was sent; None: all.
    """

    rows: int
    episodes: int
    status: str = "ok"
    flags: tuple[str, ...] = ()
    prompts: tuple[int, ...] | None = None


EXPECTED = {
    "openinference-agents_chat": Expected(2, 1, flags=("unknown_tools",)),
    "openinference-agents_responses": Expected(2, 1, flags=("unknown_tools",)),
    "openinference-anthropic": Expected(2, 1),
    "openinference-completion": Expected(2, 1),
    "openinference-cut": Expected(1, 1, "truncated", ("unknown_tools",)),
    "openinference-err": Expected(1, 1, "error"),
    "openinference-n2": Expected(2, 1),
    "openinference-parts": Expected(1, 1),
    "openinference-refuse": Expected(1, 1),
    "openinference-responses": Expected(2, 1),
    "openinference-responses_bare": Expected(2, 2, flags=("unknown_tools",)),
    "openinference-stream": Expected(1, 1, flags=("unknown_tools",)),
    "openinference-tools": Expected(2, 1, flags=("unknown_tools",)),
    "openinference_others-agents_chat_picture": Expected(1, 1),
    "openinference_others-agents_chat_refusal": Expected(1, 1),
    "openinference_others-anthropic_cut": Expected(1, 1, "truncated"),
    "openinference_others-anthropic_js": Expected(1, 1),
    "openinference_others-langchain_js": Expected(2, 1),
    "openinference_others-langchain_js_picture": Expected(1, 1),
    "openinference_others-langchain_thoughts": Expected(1, 1),
    "openinference_others-litellm_tools": Expected(2, 1),
    "openinference_others-mistral_picture": Expected(1, 1),
    "openinference_others-no_arguments": Expected(1, 1, flags=("unknown_tools",)),
    "openinference_others-responses_refusal": Expected(1, 1),
    "openinference_others-responses_request": Expected(2, 1, flags=("end_not_recorded",)),
    # Several calls of a stream run together in one.
    "openinference_others-stream_js": Expected(1, 1, "invalid", prompts=()),
    "traceloop_0.47-anthropic": Expected(2, 1),
    "traceloop_0.47-completion": Expected(2, 1),
    "traceloop_0.47-cut": Expected(1, 1, "truncated", ("unknown_tools",)),
    "traceloop_0.47-err": Expected(1, 1, "error"),
    # A result that was a list of parts was written as JSON, which a result of text may be too.
    "traceloop_0.47-langchain": Expected(2, 1, prompts=(0,)),
    "traceloop_0.47-n2": Expected(2, 1),
    "traceloop_0.47-parts": Expected(1, 1),
    "traceloop_0.47-refuse": Expected(1, 1),
    # Calls of functions and their results, items of their own in this API, are not recorded as part of a prompt.
    "traceloop_0.47-responses": Expected(2, 2, flags=("paired_by_order", "partial_prompt"), prompts=(0,)),
    "traceloop_0.47-responses_bare": Expected(2, 2, flags=("paired_by_order", "unknown_tools")),
    "traceloop_0.47-stream": Expected(1, 1, flags=("unknown_tools",)),
    "traceloop_0.47-tools": Expected(2, 1, flags=("unknown_tools",), prompts=(0,)),
}


@pytest.fixture(scope="module")
def transitions(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    folder = tmp_path_factory.mktemp("sdks")
    client = connect(laid(folder / "store"))
    insert(client, [row for scenario in SCENARIOS.values() for row in scenario["rows"]])
    build(client, folder / "dataset", config=Config())
    client.close()
    return load_dataset(folder / "dataset")[1]


def sent(call: Json) -> list[Said]:
    """The messages of a request to any of the APIs."""
    body = call["request"]
    if call["path"].endswith("/messages"):
        return of_anthropic(body)
    if "messages" in body:
        return [said(message) for message in body["messages"]]
    if "prompt" in body:
        return [("user", body["prompt"], ())]
    first = [("system", body["instructions"], ())] if body.get("instructions") else []
    items = body["input"]
    return [*first, *of_items([{"role": "user", "content": items}] if isinstance(items, str) else items)]


def of_items(items: list[Json]) -> list[Said]:
    """Items of the Responses API as messages: what the assistant said and called in a row is one."""
    found: list[Said] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "function_call_output":
            found.append(("tool", item["output"], ()))
            continue
        role, text = item.get("role", "assistant"), ""
        called: tuple[tuple[str, str], ...] = ()
        if kind == "message":
            content = item["content"]
            text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        elif kind == "function_call":
            called = ((item["name"], arguments(item["arguments"])),)
        elif kind == "reasoning":
            continue
        if role == "assistant" and found and found[-1][0] == "assistant":
            text, called = found[-1][1] + text, found[-1][2] + called
            found.pop()
        found.append((role, text, called))
    return found


def answered(call: Json) -> list[Said]:
    """The answers; none of a stream or a failed call."""
    response = call["response"]
    if response is None or call["status"] != 200:
        return []
    if call["path"].endswith("/messages"):
        return [(role, text, calls) for role, text, calls in of_anthropic({"messages": [response]})]
    if "output" in response:
        return of_items(response["output"])
    return [
        said(choice["message"]) if "message" in choice else ("assistant", choice["text"], ())
        for choice in response["choices"]
    ]


@pytest.mark.parametrize("name", EXPECTED)
def test_sdk(transitions: pl.DataFrame, name: str) -> None:
    scenario, expected = SCENARIOS[name], EXPECTED[name]
    frame = transitions.filter(pl.col("trace_id").is_in({row["TraceId"] for row in scenario["rows"]}))
    rows = frame.sort("start", "choice").to_dicts()
    assert {row["status"] for row in rows} == {expected.status}
    assert {flag for row in rows for flag in row["flags"]} == set(expected.flags)
    assert (len(rows), frame["episode_id"].n_unique()) == (expected.rows, expected.episodes)
    of_calls: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        of_calls.setdefault(row["span_id"], []).append(row)
    assert len(of_calls) == len(scenario["calls"])
    equal = []
    for number, (choices, call) in enumerate(zip(of_calls.values(), scenario["calls"], strict=True)):
        if all(row["state"] and read(row["state"]) == sent(call) for row in choices):
            equal.append(number)
        if answers := answered(call):
            assert [said(json.loads(row["action"])) for row in choices] == answers
            if not re.search("agents_chat|litellm", name):  # which name no answer
                assert {row["response_id"] for row in choices} == {call["response"]["id"]}
    assert equal == list(range(len(scenario["calls"])) if expected.prompts is None else expected.prompts)


def test_every_scenario_is_expected() -> None:
    assert set(EXPECTED) == set(SCENARIOS)


PICTURES = [name for name in EXPECTED if name.endswith("_picture")]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_in_the_prompt(transitions: pl.DataFrame, name: str) -> None:
    (row,) = SCENARIOS[name]["rows"]
    (state,) = transitions.filter(pl.col("span_id") == row["SpanId"])["state"]
    (call,) = SCENARIOS[name]["calls"]
    (address,) = re.findall(r"data:image/png;base64,[^\"]*", json.dumps(call["request"]))
    assert json.loads(state)[-1]["content"][1] == {"type": "image_url", "image_url": ANY}
    assert address in state


@pytest.mark.parametrize(
    "name",
    [
        "openinference-refuse",
        "openinference_others-agents_chat_refusal",
        "openinference_others-responses_refusal",
        "traceloop_0.47-refuse",
    ],
)
def test_a_refusal_is_in_the_answer(transitions: pl.DataFrame, name: str) -> None:
    (row,) = SCENARIOS[name]["rows"]
    (action,) = transitions.filter(pl.col("span_id") == row["SpanId"])["action"]
    assert json.loads(action)["refusal"].startswith("I cannot")
