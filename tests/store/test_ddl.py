"""The cluster's schema: every statement parses, and on an engine that is a cluster's only node everything of ours works."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spanloop_store import Engine, SchemaError
from spanloop_store.ddl import LOCAL_SUFFIX, Layout, cluster_ddl
from spanloop_store.migrate import Migration, migrations
from spanloop_store.tables import REGISTRY, SHARD_KEYS, TIME_COLUMNS, read_columns, read_tables

LAYOUTS = [Layout("production", "otel", days=30), Layout("{cluster}", path="/keeper/tables")]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with Engine(f"chdb://{tmp_path_factory.mktemp('ddl')}/s") as engine:
        yield engine.client()


@pytest.fixture(scope="module")
def columns(client: Any) -> dict[str, dict[str, str]]:
    return {name: read_columns(client, name) for name in read_tables(client)}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, columns: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: an engine reads its configuration once. `columns` first: one store at a time is the rule here."""
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("cluster_of_one.py")),
            str(tmp_path_factory.mktemp("node")),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=["named", "macro"])
def test_every_statement_parses_as_written(client: Any, layout: Layout) -> None:
    statements = cluster_ddl(layout)
    for statement in statements:
        once = client.query("SELECT formatQuery({sql:String})", parameters={"sql": statement}).result_rows[0][
            0
        ]
        assert client.query("SELECT formatQuery({sql:String})", parameters={"sql": once}).result_rows == [
            (once,)
        ]
        assert (
            f"ON CLUSTER {'production' if layout.cluster == 'production' else ''}" in once or "INSERT" in once
        )
    text = "\n".join(statements)
    assert f"{layout.path}/{{shard}}/{layout.database}/otel_traces_local" in text
    assert f"{layout.path}/all/{layout.database}/promotions', '{{shard}}-{{replica}}'" in text
    assert ("TTL" in text) is (layout.days is not None)


def test_every_table_of_a_store_is_there(columns: dict[str, Any], node: dict[str, Any]) -> None:
    for name, expected in columns.items():
        assert node["columns"][name] == expected, name
        if name in SHARD_KEYS:
            assert node["columns"][name + LOCAL_SUFFIX] == expected, name
    assert set(node["columns"]) == set(columns) | {name + LOCAL_SUFFIX for name in SHARD_KEYS}


def test_what_is_sharded_and_what_is_not(node: dict[str, Any]) -> None:
    assert {name for name, engine in node["engines"].items() if engine == "Distributed"} == set(SHARD_KEYS)
    for name in (*REGISTRY, "ingest_segments", "spanloop_schema"):
        assert node["engines"][name] == "MergeTree"


def test_segments_go_through_the_distributed_table_once(node: dict[str, Any]) -> None:
    counts = node["counts"]
    assert counts["otel_traces"] == counts["otel_traces_local"] == 20
    assert counts["otel_traces_trace_id_ts"] == 19  # one of the ids is zero, which is none
    assert counts["rewards"] == counts["rewards_local"] == 2  # one of them of an event
    assert (node["model"], node["join"]) == ("m@1", 19)
    assert node["evaluation events"] == [["n", "n"]] * 4


def test_migrations_know_a_cluster(node: dict[str, Any]) -> None:
    assert node["version"] == node["migrate"] == len(migrations())
    assert "spanloop store ddl --cluster one --since" in node["later"]


def test_retention_reaches_the_local_tables(node: dict[str, Any]) -> None:
    assert dict(node["kept"]) == dict.fromkeys(TIME_COLUMNS, 30)
    assert dict(node["kept after"]) == dict.fromkeys(TIME_COLUMNS, 7)


def test_an_upgrade_is_only_what_is_new() -> None:
    newest = len(migrations())
    assert cluster_ddl(Layout("c"), since=newest) == []
    later = cluster_ddl(Layout("c"), since=2)
    assert later == cluster_ddl(Layout("c"))[-len(later) :]
    assert not any("CREATE TABLE IF NOT EXISTS `default`.`promotions`" in statement for statement in later)


@pytest.mark.parametrize(
    "layout",
    [
        Layout("a'b"),
        Layout(""),
        Layout("c", "d; DROP"),
        Layout("c", "{database}"),
        Layout("c", path="/a'b"),
        Layout("c", path="tables"),
        Layout("c", path="/a/"),
    ],
    ids=["quote", "empty", "more", "macro", "quote in path", "relative path", "slash at the end"],
)
def test_names_that_are_none(layout: Layout) -> None:
    with pytest.raises(SchemaError, match=r"is no (name|path)"):
        cluster_ddl(layout)


def test_a_statement_that_nobody_taught_it_is_refused() -> None:
    with pytest.raises(SchemaError, match="not known"):
        cluster_ddl(Layout("c"), steps=[Migration(1, "x", ("DROP TABLE otel_traces",))])
