"""Bad input on the real command line: one clear message with the next step, a status that is not 0, and no harm done."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest
from tests.collector.test_up import PORTS, up
from tests.helpers.commands import spanloop
from tests.helpers.stores import laid
from tests.trainer.algorithms.datasets import model_folder, transitions, write

from spanloop.main import main
from spanloop_store import connect, read_owner, registry

FIXTURES = Path(__file__).parents[1] / "fixtures" / "otlp"
SPANLOOP = [sys.executable, "-m", "spanloop.main"]
# Our own progress lines; anything else before the message is a traceback, or what some library says beside it.
PROGRESS = ("window: ", "reading spans", "sft: as asked for", "reinforce: as asked for", "rloo: as asked for")
Refused = Callable[..., str]


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("SPANLOOP_", "OTEL_"))
    }
    command = [*SPANLOOP, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**inherited, **environment}, timeout=120, check=False
    )


def one_message(status: int | str | None, said: str) -> str:
    """What the user reads: exactly one error and, right behind it at the end, exactly one next step."""
    assert status == 1, (status, said)
    lines = said.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-2:-1], said
    assert [line for line in lines if line.startswith("next:  ")] == lines[-1:], said
    assert len(lines[-1]) > len("next:  ") + 5, said
    assert [line for line in lines[:-2] if not line.startswith(PROGRESS)] == [], said
    return said


def refused(*arguments: str | Path) -> str:
    """A command in a process of its own, which is what a person runs."""
    done = run(*arguments)
    assert done.stdout == ""
    return one_message(done.returncode, done.stderr)


@pytest.fixture
def refused_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """The same in this process, for commands that spend seconds on importing torch before they say no."""

    def call(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["spanloop", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, said = capfd.readouterr()
        assert out == ""
        return one_message(ended.value.code, said)

    return call


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An embedded store with a span and one model in its registry; whatever the tests did wrong, it holds just that in the end."""
    url = laid(tmp_path_factory.mktemp("store") / "s")
    with closing(connect(url)) as client:
        registry.register_model(client, "m", "/nowhere")
        client.command("INSERT INTO otel_traces (Timestamp, TraceId) VALUES (1, 't')")
    yield url
    with closing(connect(url, make=False)) as client:
        assert [version.id for version in registry.versions(client)] == ["m@1"]
        assert registry.aliases(client) == []
        assert client.query("SELECT TraceId FROM otel_traces").result_rows == [("t",)]
        assert client.command("SELECT count() FROM datasets") == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgres://host/db", "no kind of store"),
        ("chdb://relative/path", "no absolute path"),
        ("clickhouse://user:secret@127.0.0.1:1/db", "Connection refused"),
        ("clickhouse://:99999/db", "host and port are not HOST:PORT"),
        ("chdb:///dev/null", "there is no store at /dev/null"),
    ],
)
def test_a_wrong_url(url: str, words: str, refused_here: Refused) -> None:
    said = refused_here("status", "--store", url)
    assert words in said
    assert "secret" not in said


def test_a_mistyped_path_is_not_made_a_store(tmp_path: Path, refused_here: Refused) -> None:
    url = f"chdb://{tmp_path / 'typo'}"
    for command in (["status"], ["build", "--out", tmp_path / "d"], ["promote", "m@1"]):
        assert f"spanloop up --store {url}" in refused_here(*command, "--store", url)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_begun(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    said = refused("up", "--store", f"chdb://{tmp_path / 'file'}", *PORTS)
    assert "cannot be made" in said
    assert (tmp_path / "file").read_text() == "kept"


def test_a_port_in_use(store: str) -> None:
    option = "--clickhouse-port"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused("up", "--store", store, *PORTS, option, str(port))
    assert f"127.0.0.1:{port}" in said
    assert f"take another one: {option} {port + 1}" in said
    assert read_owner(store) is None


def test_a_port_in_use_by_a_policy_server(tmp_path: Path, refused_here: Refused) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refused_here("serve", "--port", port, "--store", f"chdb://{tmp_path}")


@pytest.mark.parametrize("upstream", ["nonsense", "m=ftp://host/v1", "m@1=http://host/v1"])
def test_a_wrong_upstream(store: str, upstream: str, refused_here: Refused) -> None:
    said = refused_here("up", "--store", store, *PORTS, "--upstream", upstream)
    assert repr(upstream) in said
    assert "--upstream" in said.splitlines()[-1]


def test_listening_beyond_this_machine_needs_a_token(store: str, refused_here: Refused) -> None:
    assert "SPANLOOP_TOKEN" in refused("up", "--store", store, *PORTS, "--host", "0.0.0.0")
    assert "SPANLOOP_TOKEN" in refused_here(
        "serve", "m=x", "--host", "0.0.0.0", "--port", "0", "--store", store
    )


def test_a_running_store_takes_no_harm(tmp_path: Path, refused_here: Refused) -> None:
    """A second `up`, bodies that nobody can read, a wrong password; then a good request as if nothing had been."""
    url = f"chdb://{tmp_path / 's'}"
    with up(tmp_path / "s") as (process, ready):
        owner = read_owner(url)
        assert owner is not None
        assert f"process {owner.pid}" in refused("up", "--store", url, *PORTS)
        address = ready["clickhouse"].removeprefix("http://")
        said = refused_here("status", "--store", f"clickhouse://{owner.user}:wrong@{address}/default")
        assert "refuses user" in said
        assert "wrong@" not in said
        assert "holds no spans" in refused_here("build", "--out", tmp_path / "d", "--store", url)
        for content_type, body in (
            ("application/x-protobuf", b"not OTLP at all"),
            ("application/json", b'{"resourceSpans": 5}'),
            ("application/json", b'{"resourceSpans": ['),
            ("application/json", b""),
        ):
            assert post(ready["otlp_http"], body, content_type) == 400
        assert post(ready["otlp_http"], b"hello", "text/plain") == 415
        good = FIXTURES / "a_sync_basic.json"
        assert post(ready["otlp_http"], good.read_bytes(), "application/json") == 200
        assert process.poll() is None
        done = run("status", "--json", "--store", url)
        assert done.returncode == 0
        assert done.stderr == ""
    with closing(connect(url)) as client:
        assert client.command("SELECT count() > 0 FROM otel_traces") == 1


def post(otlp: str, body: bytes, content_type: str) -> int:
    """The status of a traces request; an error's body names its reason."""
    request = urllib.request.Request(f"{otlp}/v1/traces", data=body, headers={"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code if error.read() else 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"plain words", "neither OTLP JSON nor OTLP protobuf"),
        (b"", "is empty"),
        (gzip.compress(b"{}" * 500)[:-9], "cut off"),
        (b'{"not": "OTLP"}', "no OTLP request"),
        (b'{"resourceSpans": [\n', "no valid JSON"),
        (b'{"resourceSpans": []}\n{"\xff"}\n', "line 2"),
        (b'{"resourceSpans":' + b"[" * 100_000, "no valid JSON"),
        (None, "cannot be read"),
    ],
    ids=["text", "empty", "cut-gzip", "other-json", "cut-json", "bad-line", "deep", "missing"],
)
def test_a_file_that_is_no_otlp(
    store: str, tmp_path: Path, content: bytes | None, words: str, refused_here: Refused
) -> None:
    """With a good file before it, of which nothing may be stored either."""
    file = tmp_path / "file.otlp"
    if content is not None:
        file.write_bytes(content)
    said = refused_here("import", FIXTURES / "a_sync_basic.json", file, "--store", store)
    assert words in said
    assert "file.otlp" in said


def test_a_window_without_spans(store: str, tmp_path: Path, refused_here: Refused) -> None:
    build: list[str | Path] = ["build", "--out", tmp_path / "d", "--store", store]
    said = refused_here(*build, "--since", "2026-01-01", "--until", "2026-01-02")
    assert "2026-01-01" in said
    assert "1 spans are from 1970-01-01" in said
    done = spanloop(*build, "--since", "yesterday")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "'yesterday' is neither ISO 8601" in done.stderr
    for age, words in (("99999999w", "longer ago than there are dates"), ("²d", "is neither ISO 8601")):
        done = spanloop(*build, "--since", age)
        assert (done.exit_code, words in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[rewards]\n", "line 1"),
        ("[credit]\nmetod = 'identical'\n", "credit.metod: there is no such setting"),
        ("[[tasks]]\nfile = 'gone.jsonl'\nsplit = 'train'\n", "gone.jsonl"),
        ("[[tasks]]\nfile = 'bad.jsonl'\nsplit = 'train'\n", "bad.jsonl is not JSON lines: line 2, column 8"),
        ("[[tasks]]\nfile = 'empty.jsonl'\nsplit = 'train'\n", "is empty"),
        (None, "cannot be read"),
    ],
    ids=["toml", "setting", "no-tasks", "bad-task", "empty-tasks", "missing"],
)
def test_a_broken_configuration(
    store: str, tmp_path: Path, text: str | None, words: str, refused_here: Refused
) -> None:
    file = tmp_path / "spanloop.toml"
    if text is not None:
        file.write_text(text)
    (tmp_path / "bad.jsonl").write_text('{"id": "1", "prompt": "a"}\n{"id": oops}\n')
    (tmp_path / "empty.jsonl").touch()
    assert words in refused_here("build", "--out", tmp_path / "d", "--store", store, "--config", file)
    assert not (tmp_path / "d").exists()


def captured(frame: pl.DataFrame) -> pl.DataFrame:
    """As if the gateway had recorded tokens; which ones does not matter to who refuses them."""
    tokens = {"prompt_ids": [1], "completion_ids": [2], "logprobs": [-0.1]}
    types = {name: frame.schema[name] for name in tokens}
    return frame.with_columns(pl.lit(value).cast(types[name]).alias(name) for name, value in tokens.items())


def test_datasets_that_teach_nothing(tmp_path: Path, refused_here: Refused) -> None:
    """Without rewards, with rewards that are all the same, with none to train on: each says so, none leaves a model."""
    model, out = model_folder(tmp_path / "model"), tmp_path / "out"
    frame = captured(transitions(4))
    unscored = frame.with_columns(
        pl.lit(None, pl.Float64).alias(name) for name in ("reward", "return_", "advantage")
    )
    level = frame.with_columns(reward=pl.lit(1.0), advantage=pl.lit(1.0))
    held_out = frame.with_columns(split=pl.lit("test"))
    for name, rows, words in (
        ("unscored", unscored, "has no rewards"),
        ("level", level, "no reward differs"),
        ("held-out", held_out, "no transition to train on"),
    ):
        dataset = write(tmp_path / name, rows)
        for algorithm in ("reinforce", "rloo"):
            said = refused_here(
                "train", "--dataset", dataset, "--model", model, "--out", out, "--algorithm", algorithm
            )
            assert words in said
            assert str(dataset) in said
    assert "no reward differs" in refused_here(
        "train", "--dataset", tmp_path / "level", "--model", model, "--out", out
    )
    assert not out.exists()


def test_a_folder_that_is_no_model(store: str, tmp_path: Path, refused_here: Refused) -> None:
    dataset, junk = write(tmp_path / "d", transitions(2)), tmp_path / "junk"
    junk.mkdir()
    train: list[str | Path] = ["train", "--dataset", dataset, "--out", tmp_path / "o", "--store", store]
    train += ["--algorithm", "sft"]
    # This one in a process of its own: it must not spill what the libraries print at import either.
    assert "junk is not a model folder: it has no config.json" in refused(*train, "--model", junk)
    assert "there is no folder" in refused_here(*train, "--model", tmp_path / "gone")
    assert "no version 7" in refused_here(*train, "--model", "m@7")
    assert "junk" in refused_here("serve", f"x={junk}", "--port", "0", "--store", store)
    assert "m@7" in refused_here("serve", "m@7", "--port", "0", "--store", store)
    for text in ("{}", '{"model_type": "unheard-of"}', "{oops"):
        (junk / "config.json").write_text(text)
        assert "no model can be loaded from" in refused_here(*train, "--model", junk)
    assert not (tmp_path / "o" / "config.json").exists()


def test_a_folder_that_holds_something_else(tmp_path: Path, refused_here: Refused) -> None:
    dataset, full = write(tmp_path / "d", transitions(2)), tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("kept")
    train = ["train", "--dataset", dataset, "--model", model_folder(tmp_path / "model"), "--algorithm", "sft"]
    assert "is not empty" in refused_here(*train, "--out", full)
    assert "is a file" in refused_here(*train, "--out", full / "thesis.txt")
    assert [(path.name, path.read_text()) for path in full.iterdir()] == [("thesis.txt", "kept")]


def test_a_dataset_that_is_none(store: str, tmp_path: Path, refused_here: Refused) -> None:
    versions = ["--baseline", "m@1", "--candidate", "m@2", "--store", store]
    assert "there is no folder" in refused_here("show", "abc", "--dataset", tmp_path / "nowhere")
    assert "there is no folder" in refused_here("evaluate", "--dataset", tmp_path / "nowhere", *versions)
    dataset = write(tmp_path / "d", transitions(2))
    assert "no episode begins with 'abc'" in refused_here("show", "abc", "--dataset", dataset)
    assert "held-out" in refused_here("evaluate", "--dataset", dataset, *versions)
    (dataset / "transitions.parquet").write_bytes(b"PAR1 no more")
    assert "transitions.parquet changed" in refused_here("show", "--first", "--dataset", dataset)
    manifest = dataset / "manifest.json"
    for text in ("{oops", "[]", json.dumps({"id": "x"})):
        manifest.write_text(text)
        assert "is not a manifest" in refused_here("show", "--first", "--dataset", dataset)
    manifest.unlink()
    assert "not a finished dataset" in refused_here("show", "--first", "--dataset", dataset)


def test_the_registry_and_the_gate(store: str, refused_here: Refused) -> None:
    assert "no version 9" in refused_here("promote", "m@9", "--store", store)
    assert "nobody" in refused_here("promote", "nobody@1", "--store", store)
    assert "no evaluation" in refused_here("promote", "m@1", "--store", store)
    assert "nope" in refused_here("promote", "m@1", "--evaluation", "nope", "--store", store)


def test_a_run_without_a_result(tmp_path: Path, refused_here: Refused) -> None:
    assert "result.json" in refused_here("report", "--run", tmp_path)
    (tmp_path / "result.json").write_text("{}")
    assert "result.json: gain" in refused("report", "--run", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
