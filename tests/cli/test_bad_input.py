"""Bad input on the real command line: one clear message with the next step, a non-zero status, and no harm done."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest
from tests.collector.test_up import up
from tests.trainer.algorithms.datasets import model_folder, transitions, write

from spanloop_store import connect, registry

SPANLOOP = [sys.executable, "-m", "spanloop.main"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SPANLOOP_", "OTEL_"))
    }
    command = [*SPANLOOP, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def refused(*arguments: str | Path) -> str:
    """What the user reads: exactly one error with a next step, and nothing else that looks like a failure."""
    done = run(*arguments)
    said = done.stderr
    assert done.returncode == 1, (done.returncode, done.stdout, said)
    assert said.count("error: ") == 1, said
    assert said.count("\nnext: ") == 1, said
    assert "Traceback" not in said + done.stdout
    assert "Exception" not in said, said
    return said


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An embedded store with one model in its registry and no spans."""
    url = f"chdb://{tmp_path_factory.mktemp('store') / 's'}"
    with closing(connect(url)) as client:
        registry.register_model(client, "m", "/nowhere")
    return url


@pytest.fixture(autouse=True)
def unharmed(store: str) -> Iterator[None]:
    """Whatever a test did wrong, the store still opens and holds what it held."""
    yield
    with closing(connect(store)) as client:
        assert [version.id for version in registry.versions(client)] == ["m@1"]
        assert client.command("SELECT count() FROM otel_traces") == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgres://host/db", "no kind of store"),
        ("clickhouse://user:secret@127.0.0.1:1/db", "Connection refused"),
    ],
)
def test_a_wrong_url(url: str, words: str) -> None:
    said = refused("status", "--store", url)
    assert words in said
    assert "secret" not in said


def test_a_port_in_use(store: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        free = ["--otlp-grpc-port", "0", "--clickhouse-port", "0", "--gateway-port", "0"]
        said = refused("up", "--store", store, "--otlp-http-port", port, *free)
    assert port in said
    assert "--otlp-http-port" in said


def test_a_second_up_on_one_store_and_an_unreadable_body(tmp_path: Path) -> None:
    with up(tmp_path / "s") as (process, ready):
        free = [
            "--otlp-http-port",
            "0",
            "--otlp-grpc-port",
            "0",
            "--clickhouse-port",
            "0",
            "--gateway-port",
            "0",
        ]
        said = refused("up", "--store", f"chdb://{tmp_path / 's'}", *free)
        assert "up" in said
        traces = f"{ready['otlp_http']}/v1/traces"
        request = urllib.request.Request(
            traces, data=b"not OTLP at all", headers={"Content-Type": "application/x-protobuf"}
        )
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(request, timeout=30)
        assert answer.value.code == 400
        assert process.poll() is None


@pytest.mark.parametrize(
    "content",
    [b"plain words", b"", gzip.compress(b"{}" * 500, mtime=0)[:-9]],
    ids=["text", "empty", "cut gzip"],
)
def test_a_file_that_is_no_otlp(store: str, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.otlp"
    file.write_bytes(content)
    assert "file.otlp" in refused("import", file, "--store", store)


def test_an_empty_window(store: str, tmp_path: Path) -> None:
    said = refused(
        "build", "--out", tmp_path / "d", "--store", store, "--since", "2026-01-01", "--until", "2026-01-02"
    )
    assert "2026-01-01" in said
    assert not (tmp_path / "d" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[rewards]\n", "line 1"),
        ("[surprise]\n", "surprise"),
        ('[[tasks]]\nfile = "gone.jsonl"\nsplit = "train"\n', "gone.jsonl"),
    ],
)
def test_a_broken_configuration(store: str, tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "spanloop.toml"
    file.write_text(text)
    assert words in refused("build", "--out", tmp_path / "d", "--store", store, "--config", file)


def test_datasets_that_teach_nothing(store: str, tmp_path: Path) -> None:
    """Without rewards, and with rewards that are all the same: both say so, neither leaves a model."""
    model = model_folder(tmp_path / "model")
    frame = transitions(4)
    unscored = frame.with_columns(
        pl.lit(None, pl.Float64).alias(name) for name in ("reward", "return_", "advantage")
    )
    level = frame.with_columns(reward=pl.lit(1.0), advantage=pl.lit(1.0))
    for name, rows, words in (("unscored", unscored, "no rewards"), ("level", level, "no reward differs")):
        dataset, out = write(tmp_path / name, rows), tmp_path / f"{name}-out"
        tokens = rows.with_columns(
            prompt_ids=pl.lit([1]), completion_ids=pl.lit([2]), logprobs=pl.lit([-0.1])
        ).cast({"prompt_ids": pl.List(pl.Int32), "completion_ids": pl.List(pl.Int32)})
        write(dataset, tokens)
        said = refused(
            "train",
            "--dataset",
            dataset,
            "--model",
            model,
            "--out",
            out,
            "--algorithm",
            "reinforce",
            "--store",
            store,
        )
        assert words in said
        assert not (out / "training.json").exists()


def test_a_folder_that_is_no_model(store: str, tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", transitions(2))
    (tmp_path / "junk").mkdir()
    said = refused(
        "train", "--dataset", dataset, "--model", tmp_path / "junk", "--out", tmp_path / "o", "--algorithm", "sft", "--store", store
    )  # fmt: skip
    assert "junk" in said
    assert "config.json" in said
    assert "junk" in refused("serve", f"x={tmp_path / 'junk'}", "--port", "0", "--store", store)


def test_a_dataset_that_is_none(store: str, tmp_path: Path) -> None:
    assert "nowhere" in refused("show", "abc", "--dataset", tmp_path / "nowhere")
    assert "nowhere" in refused(
        "evaluate",
        "--dataset",
        tmp_path / "nowhere",
        "--baseline",
        "m@1",
        "--candidate",
        "m@2",
        "--store",
        store,
    )
    dataset = write(tmp_path / "d", transitions(2))
    (dataset / "transitions.parquet").write_bytes(b"PAR1 no more")
    assert "transitions.parquet" in refused("show", "--first", "--dataset", dataset)
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["id"]


def test_the_registry_and_the_gate(store: str) -> None:
    assert "no version 9" in refused("promote", "m@9", "--store", store)
    assert "no evaluation" in refused("promote", "m@1", "--store", store)
    assert "nobody" in refused("promote", "nobody@1", "--store", store)


def test_listening_beyond_this_machine_needs_a_token(store: str) -> None:
    assert "SPANLOOP_TOKEN" in refused("serve", "m=x", "--host", "0.0.0.0", "--port", "0", "--store", store)
