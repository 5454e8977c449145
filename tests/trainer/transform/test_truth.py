"""All recordings of real SDKs, through the collector's own insert, against what the servers received and answered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client

from spanloop_store import connect
from spanloop_store.otlp.check import check_json
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal
from spanloop_trainer.config import Config
from spanloop_trainer.transform import Manifest, build, load_dataset

from .truth import FIXTURES, Said, calls, said

RECORDINGS = {
    path.stem: path
    for path in sorted(FIXTURES.glob("*/*.json"))
    if path.name != "MANIFEST.json" and not path.name.endswith(".logs.json")
}


class Expected(NamedTuple):
    """What a recording holds; counted by hand from what the server received.

    Args:
        rows: transitions: one an answered choice, and one a call that has none.
        episodes: runs.
        ok: transitions that may be learnt from.
        states: how many prompts are compared with what the server received: all that are known.
        answers: how many answers.
        limits: what the framework does not record, as docs/flavours.md says it; then the rest is compared.
    """

    rows: int
    episodes: int
    ok: int
    states: int = 0
    answers: int = 0
    limits: tuple[str, ...] = ()


# LlamaIndex sends the text `None` where an assistant's message has only tool calls, and records that it has no content.
TEXT_BESIDE_CALLS = "text beside tool calls"

EXPECTED = {
    "a_group7_rollout1": Expected(4, 1, 4, 4),
    "a_group7_rollout2": Expected(4, 1, 4, 4),
    "a_group7_rollout3": Expected(4, 1, 4, 4),
    "a_group7_rollout4": Expected(4, 1, 4, 4),
    "a_sync_attr_len_limit": Expected(2, 2, 0),
    "a_sync_basic": Expected(2, 1, 2, 2),
    "a_sync_err429": Expected(1, 1, 0, 1),
    "a_sync_logprobs_tokenids": Expected(2, 1, 2, 2),
    "a_sync_multi_turn": Expected(7, 1, 7, 7),
    "a_sync_n2": Expected(2, 1, 2, 2),
    "a_sync_parallel_tools": Expected(2, 1, 2, 2),
    "a_sync_reasoning": Expected(2, 1, 2, 2),
    "a_sync_tool_exception": Expected(4, 1, 4, 4),
    "anthropic_stream": Expected(2, 1, 2, 2, 2),
    "anthropic_tools": Expected(2, 1, 2, 2, 2),
    "autogen_single_multi_turn": Expected(6, 2, 6, 6, 6),
    "autogen_team_ollm": Expected(4, 1, 4, 4, 4),
    "autogen_team_tool_exception": Expected(4, 1, 4, 4, 4),
    "b_async_stream_basic": Expected(2, 1, 2, 2),
    "b_stream_concurrent_runs": Expected(8, 3, 8, 8),
    "b_stream_cut": Expected(1, 1, 0, 1),
    "b_stream_logprobs_tokenids": Expected(2, 1, 2, 2),
    "c_langchain_async_stream": Expected(2, 1, 2),
    "c_langchain_basic": Expected(2, 1, 2, 2),
    "c_langchain_multi_turn": Expected(6, 1, 6, 6),
    "c_langchain_tool_exception": Expected(2, 1, 2, 2),
    "crew_oi_tools": Expected(2, 1, 2, 2, 2),
    "crew_oi_two_agents": Expected(5, 2, 5, 5, 5),
    "crew_ollm_tools": Expected(2, 1, 2, 2, 2),
    "d_agents_chat_basic": Expected(3, 1, 3, 3),
    "d_agents_responses_basic": Expected(3, 1, 3),
    "d_agents_tool_exception": Expected(3, 1, 3),
    "dspy_adapter_fallback": Expected(4, 1, 4, 4, 4),
    "dspy_tools": Expected(3, 1, 3, 3, 3),
    "e_threads_fork_default": Expected(5, 5, 5),
    "f_responses_sync": Expected(4, 1, 4),
    "genai_a_sync": Expected(4, 1, 4),
    "langfuse_tools": Expected(3, 1, 3, 3, 3),
    "langsmith_tools": Expected(3, 1, 3, 3, 3),
    "legacy_a_sync": Expected(4, 1, 4, 4),
    "llama_multi_turn": Expected(6, 2, 6, 6, 6, (TEXT_BESIDE_CALLS,)),
    "llama_tools": Expected(2, 1, 2, 2, 2, (TEXT_BESIDE_CALLS,)),
    "mlflow_tools": Expected(3, 1, 3, 3, 3),
    "oainode_otel_multi_turn": Expected(6, 1, 6, 6, 6),
    "oainode_otel_tools": Expected(2, 1, 2, 2, 2),
    "oainode_tl_tool_exception": Expected(2, 1, 2, 2, 2),
    "oainode_tl_tools": Expected(2, 1, 2, 2, 2),
    "oi_a_sync": Expected(4, 1, 4, 4, 4),
    "oi_a_sync_logprobs_tokenids": Expected(2, 1, 2, 2, 2),
    "oi_c_langchain": Expected(2, 1, 2, 2, 2),
    "pydantic_multi_turn": Expected(7, 1, 7, 7, 7),
    "pydantic_stream_cut": Expected(1, 1, 0, 1),
    "pydantic_subagent": Expected(6, 2, 6, 6, 6),
    "pydantic_tools": Expected(2, 1, 2, 2, 2),
    "smol_code": Expected(2, 1, 2, 2, 2),
    "smol_toolcalling": Expected(2, 1, 2, 2, 2),
    "vercel_multi_turn": Expected(6, 1, 6, 6, 6),
    "vercel_stream": Expected(4, 1, 4, 4, 4),
    "vercel_tools": Expected(2, 1, 2, 2, 2),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    opened = connect(f"chdb://{tmp_path_factory.mktemp('truth')}/store")
    yield opened
    opened.close()


def fill(client: Client, folder: Path, *names: str) -> None:
    """Replaces what the store holds by recordings, with their log records."""
    inserter = SegmentInserter(client, embedded=True, quarantine=folder / "quarantine")
    for signal in Signal:
        client.command(f"TRUNCATE TABLE {signal.table}")
    for name in names:
        path = RECORDINGS[name]
        for signal, file in ((Signal.TRACES, path), (Signal.LOGS, path.with_suffix(".logs.json"))):
            if file.exists():
                segment = folder / f"{signal.value}-{name}.otlp"
                segment.write_bytes(frame(check_json(signal, file.read_bytes()).payload))
                inserter.insert(segment, signal)


def built(client: Client, folder: Path, *names: str) -> tuple[Manifest, pl.DataFrame]:
    """A dataset of recordings."""
    fill(client, folder, *names)
    build(client, folder / "dataset", config=Config())
    return load_dataset(folder / "dataset")


@pytest.mark.parametrize("name", EXPECTED)
def test_recording(client: Client, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, frame = built(client, tmp_path, name)
    expected = EXPECTED[name]
    known = calls(name)
    by_span = {call.span_id: call for call in known if call.span_id}
    by_answer = {call.response_id: call for call in known if call.response_id}
    states = answers = 0
    rows = frame.sort("start", "choice").to_dicts()
    of_rows = [by_answer.get(row["response_id"] or "") or by_span.get(row["span_id"]) for row in rows]
    # Where neither side names the other (DSPy has no id of an answer, and sends no traceparent), the order of time does.
    rest = [call for call in known if not call.span_id and not any(call is other for other in of_rows)]
    if len(rest) == of_rows.count(None):
        of_rows = [call or rest.pop(0) for call in of_rows]
    for row, call in zip(rows, of_rows, strict=True):
        if call is None:
            continue
        if row["state"] is not None:
            assert limited(read(row["state"]), expected) == limited(call.messages, expected), row["span_id"]
            states += 1
        if row["tools"] is not None and call.offered is not None:
            assert tuple(tool["function"]["name"] for tool in json.loads(row["tools"])) == call.offered
        if call.answer is not None and row["action"] is not None:
            assert said(json.loads(row["action"])) == call.answer, row["span_id"]
            answers += 1
    # What the environment answered is what the next request brought back behind this one and its answer.
    of_spans = {row["span_id"]: call for row, call in zip(rows, of_rows, strict=True)}
    for row, call in zip(rows, of_rows, strict=True):
        following = of_spans.get(row["next_span_id"])
        if call is None or following is None:
            continue
        length = len(call.messages)
        brought = following.messages[length + 1 :]
        goes_on = following.messages[:length] == call.messages
        # smolagents sends its answers back as other texts.
        same = brought and (call.answer is None or following.messages[length] == call.answer)
        if row["status"] == "ok" and goes_on and same:
            assert row["observation"] is not None, row["span_id"]
        if row["observation"] is not None:
            assert limited(read(row["observation"]), expected) == limited(brought, expected), row["span_id"]
    ok = frame.filter(pl.col("status") == "ok").height
    with capsys.disabled():
        print(
            f"\n{name}: {frame.height} transitions, {frame['episode_id'].n_unique()} episodes, {ok} ok, "
            f"{states}/{len(known)} prompts and {answers} answers equal; lost: {manifest.counts['lost']}"
        )
    assert (frame.height, frame["episode_id"].n_unique(), ok, states, answers) == expected[:5]


def limited(messages: Sequence[Said], expected: Expected) -> list[Said]:
    """Without what the framework does not record."""
    dropped = TEXT_BESIDE_CALLS in expected.limits
    return [(role, "" if calls and dropped else text, calls) for role, text, calls in messages]


def read(state: str) -> list[Said]:
    """The messages of a prompt."""
    return [said(message) for message in json.loads(state)]


def test_answers_from_a_cache_are_flagged(client: Client, tmp_path: Path) -> None:
    """DSPy leaves its own spans for a run that it answers from its cache, and no client's below them."""
    path = RECORDINGS["dspy_tools"]
    again = json.loads(path.read_text())
    for resources in again["resourceSpans"]:
        for scope in resources["scopeSpans"]:
            scope["spans"] = [span for span in scope["spans"] if span["name"] != "completion"]
            for span in scope["spans"]:
                span["traceId"] = span["traceId"][::-1]
                for moment in ("startTimeUnixNano", "endTimeUnixNano"):
                    span[moment] = str(int(span[moment]) + 60 * 10**9)
    fill(client, tmp_path, "dspy_tools")
    segment = tmp_path / "again.otlp"
    segment.write_bytes(frame(check_json(Signal.TRACES, json.dumps(again).encode()).payload))
    SegmentInserter(client, embedded=True, quarantine=tmp_path / "quarantine").insert(segment, Signal.TRACES)
    build(client, tmp_path / "dataset", config=Config())
    manifest, transitions = load_dataset(tmp_path / "dataset")
    assert manifest.counts["answered_from_a_cache"] == 3
    flags = [row["flags"] for row in transitions.sort("start").to_dicts()]
    assert flags == [[]] * 3 + [["cached", "end_not_recorded"]] * 3
