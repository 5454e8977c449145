"""Credit through `build`: judgements of calls and of episodes, a file of values, what the manifest says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client

from spanloop_trainer.config import Config, load_config
from spanloop_trainer.errors import ConfigError

from .conftest import Agent, Build, Row, called, result, said, user

RULE = "[[rewards]]\nname = 'good'\nexpression = \"CAST(answer = 'done' AS DOUBLE)\"\n"


def episode() -> list[Row]:
    """Three calls: a tool, the same tool again, the answer."""
    agent, history, rows = Agent(), [user("p")], []
    for number in range(2):
        call = called("look", {"at": number}, f"c{number}")
        rows.append(agent.call(list(history), call, at=number))
        history += [call, result(f"c{number}", "seen")]
    return [*rows, agent.call(history, said("done"), at=2)]


def feedback(client: Client, row: Row, value: float) -> None:
    names = ["id", "time", "response_id", "name", "value", "source"]
    response = row["SpanAttributes"]["gen_ai.response.id"]
    client.insert(
        "rewards", [["f", datetime(2026, 1, 1, tzinfo=UTC), response, "thumb", value, "feedback"]], names
    )


def config(folder: Path, credit: str) -> Config:
    (folder / "spanloop.toml").write_text(f"{RULE}[credit]\n{credit}\n")
    return load_config(folder / "spanloop.toml")


def test_a_reward_of_a_call_and_one_of_the_episode(build_rows: Build, client: Client, tmp_path: Path) -> None:
    rows = episode()
    feedback(client, rows[1], -0.5)
    manifest, frame = build_rows(rows, config(tmp_path, "method = 'rewards_to_go'\ngamma = 0.5"))
    frame = frame.sort("step")
    assert manifest.credit == "rewards_to_go gamma=0.5"
    # What the row was judged with; and what came of each step: 1 at the end, -.5 in the middle.
    assert frame["reward"].to_list() == [1.0, 0.5, 1.0]
    assert frame["return_"].to_list() == frame["advantage"].to_list() == [0.0, 0.0, 1.0]
    _, alike = build_rows(None, config(tmp_path, "method = 'identical'"))
    assert alike["advantage"].to_list() == [0.5] * 3


def test_values_from_a_file(build_rows: Build, tmp_path: Path) -> None:
    _, frame = build_rows(episode(), config(tmp_path, "method = 'identical'"))
    keys = frame.sort("step").select("trace_id", "span_id", "choice")
    gae = "method = 'gae'\nlambda = 0\nvalues = 'values.parquet'"
    ids = []
    for value in ([0.25, 0.5, 0.75], [0.25, 0.5, 0.5]):
        keys.with_columns(value=pl.Series(value)).write_parquet(tmp_path / "values.parquet")
        manifest, valued = build_rows(None, config(tmp_path, gae))
        assert valued.sort("step")["advantage"].to_list() == [0.25, value[2] - 0.5, 1 - value[2]]
        ids.append(manifest.id)
    assert ids[0] != ids[1]
    assert manifest.credit == "gae gamma=1 lambda=0 values=values.parquet"
    pl.DataFrame({"trace_id": ["elsewhere"], "span_id": ["x"], "choice": [0], "value": [1.0]}).write_parquet(
        tmp_path / "values.parquet"
    )
    with pytest.raises(ConfigError, match="not one of 3 answers is among the 1 rows"):
        build_rows(None, config(tmp_path, gae))
