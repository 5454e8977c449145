"""`spanloop build`, `show` and `status` as a user runs them."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from spanloop.main import cli
from spanloop_store import connect, registry
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform.reading.read import END_OF_TIME_NS, Window

from .conftest import Agent, Build, called, insert, recorded, result, said, user
from .test_build import gateway


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with recordings, closed, so that the command opens it itself."""
    url = f"chdb://{tmp_path}/store"
    client = connect(url)
    insert(client, recorded("a_sync_multi_turn", "b_stream_cut"))
    agent = Agent()
    history = [user("2+3?"), called("add", {"a": 2, "b": 3}, "c"), result("c", "5")]
    insert(client, [agent.call(history[:1], history[1], at=0), agent.call(history, said("five"), at=1)])
    tool = {**agent.call([], at=2), "SpanName": "a tool", "SpanAttributes": {}}
    insert(client, [tool, tool])  # sent twice
    embedded = {"spanloop.gateway": "true", "gen_ai.operation.name": "embeddings"}
    insert(client, [{**tool, "SpanId": "embed", "SpanName": "embed", "SpanAttributes": embedded}])
    registry.register_model(client, "calculator", "models/1")
    client.close()
    return url


def test_build_then_show_then_status(store: str, tmp_path: Path) -> None:
    run = CliRunner()
    out = str(tmp_path / "dataset")
    (tmp_path / "spanloop.toml").write_text(
        '[[rewards]]\nname = "five"\nexpression = "CAST(answer = \'five\' AS DOUBLE)"\n'
    )
    built = run.invoke(
        cli, ["build", "--out", out, "--store", store, "--config", str(tmp_path / "spanloop.toml")]
    )
    assert built.exit_code == 0, built.output
    assert "status truncated: the stream was cut" in built.output
    # The command that is printed works as it is: spans that no build reads are asked of this store, not of the default one.
    (printed,) = [line for line in built.output.splitlines() if "spanloop dataset lost" in line]
    lost = printed.partition("(which: spanloop ")[2].removesuffix(")").replace("NUMBER", "1").split()
    shown = run.invoke(cli, lost)
    assert shown.exit_code == 0, shown.exception
    assert "no model call (tools, agents, HTTP, …): 2, of which 2 are shown" in shown.output
    assert (shown.output.count("agent a tool"), shown.output.count("agent embed")) == (1, 1)
    again = run.invoke(
        cli, ["build", "--out", out, "--store", store, "--config", str(tmp_path / "spanloop.toml"), "--json"]
    )
    manifest = json.loads(again.stdout)
    assert manifest["counts"]["episodes"] == 3

    shown = run.invoke(cli, ["show", "t-i1-1", "--dataset", out])
    assert shown.exit_code == 0, shown.output
    for text in ("2+3?", '→ add({"a": 2, "b": 3})', "five", "five = 1", "reward 1"):
        assert text in shown.output
    assert shown.output.count("2+3?") == 1  # a message is printed once, not once a step

    status = json.loads(run.invoke(cli, ["status", "--store", store, "--json"]).stdout)
    assert status["traces"]["spans"] == 12
    assert [model["id"] for model in status["models"]] == ["calculator@1"]
    assert status["datasets"][0]["id"] == manifest["id"]
    assert "calculator@1" in run.invoke(cli, ["status", "--store", store]).output


def test_an_age_is_a_time_and_nonsense_is_not(store: str, tmp_path: Path) -> None:
    run = CliRunner()
    wrong = run.invoke(
        cli, ["build", "--out", str(tmp_path / "d"), "--store", store, "--since", "yesterdayish"]
    )
    assert wrong.exit_code == 2
    assert "ISO 8601" in wrong.output
    built = run.invoke(
        cli, ["build", "--out", str(tmp_path / "d"), "--store", store, "--since", "9999w", "--json"]
    )
    assert built.exit_code == 0, built.output


def test_show_names_the_prompt_that_ran_and_the_call_that_was_judged(tmp_path: Path) -> None:
    url, agent, run = f"chdb://{tmp_path}/store", Agent(), CliRunner()
    ask = {"role": "system", "parts": [{"type": "text", "content": "Be kind."}]}
    history = [ask, user("2+3?"), called("add", {"a": 2, "b": 3}, "c"), result("c", "5")]
    rows = [agent.call(history[:2], history[2], at=0), agent.call(history, said("five"), at=1)]
    stamps = {"spanloop.prompt.version": "bot@2", "spanloop.prompt.requested": "bot@1"}
    with closing(connect(url)) as client:
        insert(client, [*rows, gateway(rows[0], **stamps)])
        client.insert(
            "rewards",
            [["1", rows[0]["SpanAttributes"]["gen_ai.response.id"], "thumb", 0.5, "feedback", "users"]],
            column_names=["id", "response_id", "name", "value", "source", "evaluator"],
        )
    out = str(tmp_path / "d")
    assert run.invoke(cli, ["build", "--out", out, "--store", url]).exit_code == 0
    shown = run.invoke(cli, ["show", "--first", "--dataset", out]).output.splitlines()
    # `state` is what the agent said; what the model saw is named beside it. A hash says nothing to a reader.
    assert [line for line in shown if "prompt" in line and "task" not in line] == [
        "  prompt bot@2, where the agent sent bot@1"
    ]
    assert shown[-2:] == ["  thumb = 0.5   feedback users   step 0", "  reward 0.5   advantage 0.5000"]


def test_show_names_what_there_is(store: str, tmp_path: Path) -> None:
    run = CliRunner()
    out = str(tmp_path / "d")
    run.invoke(cli, ["build", "--out", out, "--store", store])
    missing = run.invoke(cli, ["show", "zzz", "--dataset", out])
    assert missing.exception is not None
    assert "no episode begins with 'zzz'" in str(missing.exception)
    assert run.invoke(cli, ["show", "--first", "--dataset", out]).exit_code == 0


def test_shards_then_merge_then_a_dataset_on_top(store: str, tmp_path: Path) -> None:
    def built(name: str, *options: str) -> dict[str, object]:
        arguments = ["build", "--out", str(tmp_path / name), "--store", store, "--json", *options]
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    until = ("--until", "2040-01-01")
    shards = [built("merged", *until, "--shard", f"{number}/2") for number in (1, 2)]
    assert sum(int(str(shard["spans"])) for shard in shards) == 12
    merged = built("merged", "--merge")
    whole = built("whole", *until)
    assert merged == {**whole, "dataset": merged["dataset"]}
    again = built("again", *until, "--parent", str(tmp_path / "merged"))
    assert (again["id"], again["parent"]) == (merged["id"], merged["id"])
    assert (tmp_path / "again" / "pieces").is_dir()
    assert not (tmp_path / "merged" / "pieces").exists()


def test_a_window_beyond_the_stores_time_ends_with_it() -> None:
    """Nanoseconds of the year 9999 do not fit into 64 bits, and would come out as a time long ago."""
    first, last = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
    assert Window(first, last).bounds() == (0, END_OF_TIME_NS)
    assert Window(last, None).bounds() == (END_OF_TIME_NS, END_OF_TIME_NS)


def test_what_no_span_has_is_answered_with_what_some_have(build_rows: Build) -> None:
    rows = [Agent(service=name, prefix=name).call([user("a")], said("b"), at=0) for name in ("one", "two")]
    with pytest.raises(TransformError, match="no span of these services") as wrong:
        build_rows(rows, services=["three"])
    assert wrong.value.hint == "--service, one of: 'one', 'two'"
    with pytest.raises(TransformError, match="no call of these agents") as wrong:
        build_rows(None, agents=["three"])
    assert wrong.value.hint == "--agent, one of: 'one', 'two'"


def test_no_time_between_since_and_until_is_a_mistake(tmp_path: Path) -> None:
    wrong = CliRunner().invoke(cli, ["build", "--out", str(tmp_path / "d"), "--since", "1d", "--until", "2d"])
    assert wrong.exit_code == 2
    assert "is not after --since" in wrong.output
