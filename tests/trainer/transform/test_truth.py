"""All recordings of real SDKs, through the collector's own insert, against what the servers received and answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


# Recordings whose flavour is read; the others have their turn when it is.
EXPECTED = {
    "a_group7_rollout1": Expected(4, 1, 4, 4),
    "a_sync_attr_len_limit": Expected(2, 2, 0),
    "a_sync_basic": Expected(2, 1, 2, 2),
    "a_sync_err429": Expected(1, 1, 0, 1),
    "a_sync_multi_turn": Expected(7, 1, 7, 7),
    "a_sync_n2": Expected(2, 1, 2, 2),
    "b_stream_concurrent_runs": Expected(8, 3, 8, 8),
    "b_stream_cut": Expected(1, 1, 0, 1),
    "c_langchain_multi_turn": Expected(6, 1, 6, 6),
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
    for row in frame.iter_rows(named=True):
        call = by_answer.get(row["response_id"] or "") or by_span.get(row["span_id"])
        if call is None:
            continue
        if row["state"] is not None:
            assert read(row["state"]) == list(call.messages), row["span_id"]
            states += 1
        if call.answer is not None and row["action"] is not None:
            assert said(json.loads(row["action"])) == call.answer, row["span_id"]
            answers += 1
    ok = frame.filter(pl.col("status") == "ok").height
    with capsys.disabled():
        print(
            f"\n{name}: {frame.height} transitions, {frame['episode_id'].n_unique()} episodes, {ok} ok, "
            f"{states}/{len(known)} prompts and {answers} answers equal; lost: {manifest.counts['lost']}"
        )
    assert (frame.height, frame["episode_id"].n_unique(), ok, states, answers) == expected[:5]


def read(state: str) -> list[Said]:
    """The messages of a prompt."""
    return [said(message) for message in json.loads(state)]
