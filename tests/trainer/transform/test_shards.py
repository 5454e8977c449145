"""The same bytes however a window is cut: in parts, in buckets, in shards, on top of an earlier dataset."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from clickhouse_connect.driver.client import Client
from tests.helpers.stores import laid

from spanloop.main import cli
from spanloop_store import connect, erase
from spanloop_store.lineage import trace_lineage
from spanloop_store.subjects import Subject
from spanloop_trainer.config import Config
from spanloop_trainer.config.credit import Credit
from spanloop_trainer.config.rewards import RewardRule
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform import Manifest, build
from spanloop_trainer.transform.build import build_shard
from spanloop_trainer.transform.pieces.gather import Memory

from .conftest import Agent, Row, called, insert, recorded, result, said, user
from .test_build import gateway

DAY = 86_400
SECRET = "5ec7e7" + 26 * "0"
FIRST = datetime(2023, 11, 14, tzinfo=UTC)  # the day of `Agent.call(…, at=0)`, at 22:13
UNTIL = datetime(2040, 1, 1, tzinfo=UTC)
CONFIG = Config(
    rewards=(RewardRule(name="short", expression="CASE WHEN steps < 3 THEN 1.0 ELSE 0.5 END"),),
    credit=Credit(method="grpo"),
)
RECORDED = (
    "a_sync_multi_turn",
    "a_sync_n2",
    "b_stream_concurrent_runs",
    "c_langchain_multi_turn",
    "d_agents_chat_basic",
)


def day(number: int) -> list[Row]:
    """Conversations of one day: some go on over midnight, some under the gateway, one below an agent's span."""
    agents = [Agent(f"i{number}{letter}", prefix=f"{number}{letter}") for letter in "abc"]
    rows: list[Row] = []
    for place, agent in enumerate(agents):
        history = [user(f"task {place}")]
        for turn in range(4):
            at = number * DAY + 6_000 + turn * 200 + place
            answer = called("add", {"turn": turn}, f"c{turn}") if turn < 3 else said("done")
            row = agent.call(history, answer, *([said("else")] if place == 2 else []), at=at)
            if place == 1:
                row["ParentSpanId"] = f"agent-{number}"
                row["TraceId"] = f"trace-{number}"
            rows += [row, gateway(row)] if place != 1 else [row]
            history = [*history, answer, result(f"c{turn}", str(turn))]
    above = agents[1].call([], at=number * DAY)
    above |= {"SpanId": f"agent-{number}", "TraceId": f"trace-{number}"}
    above["SpanAttributes"] = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "solver"}
    # Sent twice, and a call that failed.
    again = agents[0].call([user("fails")], at=number * DAY + 9_000, **{"error.type": "Timeout"})
    return [*rows, above, again, rows[0]]


def judgement(row: Row, value: float) -> list[Any]:
    return [f"judged-{row['SpanId']}", FIRST, row["TraceId"], row["SpanId"], "judge", value, "event"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with closing(connect(laid(tmp_path_factory.mktemp("store") / "store"))) as opened:
        yield opened


def fill(client: Client, rows: list[Row]) -> None:
    """Replace the store's rows."""
    for table in ("otel_traces", "otel_logs", "erasures", "rewards"):
        client.command(f"TRUNCATE TABLE {table}")
    insert(client, rows)
    names = ["id", "time", "trace_id", "span_id", "name", "value", "source"]
    client.insert("rewards", [judgement(row, 0.25) for row in rows[:9:4]], column_names=names)


def rows_of_all() -> list[Row]:
    return recorded(*RECORDED) + day(0) + day(1) + day(2)


Built = tuple[Manifest, Path]


def same(one: Built, other: Built) -> None:
    """Counts, rows and the rows that were lost, byte for byte."""
    assert one[0].counts == other[0].counts
    assert one[0].id == other[0].id
    for path in sorted(other[1].glob("*.parquet")):
        assert (one[1] / path.name).read_bytes() == path.read_bytes(), path.name


def built(client: Client, out: Path, **options: Any) -> Built:
    if not options.get("merge"):
        options = {"until": UNTIL, **options}
    return build(client, out, config=CONFIG, **options), out


@pytest.fixture(scope="module")
def at_once(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Of `rows_of_all`, in memory."""
    fill(client, rows_of_all())
    manifest, out = built(client, tmp_path_factory.mktemp("whole") / "out")
    assert manifest.counts["transitions"] > 50
    assert manifest.counts["usable_with_token_ids"] > 10
    assert manifest.counts["episodes_scored"] > 0
    return manifest, out


@pytest.fixture
def whole(client: Client, at_once: Built) -> Built:
    """The same; the store holds what it was made from, whatever the last test left there."""
    expected = len(rows_of_all())
    if client.query("SELECT count() FROM otel_traces").result_rows != [(expected,)]:
        fill(client, rows_of_all())
    return at_once


def read_of(lines: list[str]) -> int:
    """How many parts of the window were read."""
    return sum(line.startswith("reading part") for line in lines)


def left(folder: Path) -> set[str]:
    """What is in a dataset's folder beside the dataset."""
    return {path.name for path in folder.iterdir() if path.is_dir()}


@pytest.mark.parametrize(("parts", "bucket_bytes"), [(3, 1 << 30), (1, 2_000), (7, 2_000), (4, 1)])
def test_parts_and_buckets(
    client: Client, whole: Built, tmp_path: Path, parts: int, bucket_bytes: int
) -> None:
    lines: list[str] = []
    cut = built(client, tmp_path, memory=Memory(parts, bucket_bytes), progress=lines.append)
    same(cut, whole)
    assert read_of(lines) == 0 if parts == 1 else 1 < read_of(lines) <= parts
    assert left(tmp_path) == set()


@pytest.mark.parametrize("shards", [1, 3])
def test_shards(client: Client, whole: Built, tmp_path: Path, shards: int) -> None:
    spans = 0
    for shard in reversed(range(shards)):
        parts = build_shard(client, tmp_path, shard, shards, until=UNTIL)
        spans += sum(part.header.counts["spans"] for part in parts)
    assert spans == whole[0].counts["spans"]
    merged = built(client, tmp_path, merge=True, memory=Memory(bucket_bytes=5_000))
    same(merged, whole)
    assert merged[0].query == whole[0].query
    assert left(tmp_path) == set()


def test_a_missing_shard(client: Client, whole: Built, tmp_path: Path) -> None:
    build_shard(client, tmp_path, 0, 2, until=UNTIL)
    with pytest.raises(TransformError, match="lacks shard 2/2"):
        built(client, tmp_path, merge=True)
    # Neither that nor a mistyped command costs what was read.
    with pytest.raises(TransformError, match="wait for a merge"):
        built(client, tmp_path)
    build_shard(client, tmp_path, 1, 2, until=UNTIL)
    # A disk that was full, a copy that broke off.
    damaged = next((tmp_path / "pieces").glob("*-1of2")) / "calls.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(TransformError, match="lacks shard 2/2"):
        built(client, tmp_path, merge=True)
    build_shard(client, tmp_path, 1, 2, until=UNTIL)
    same(built(client, tmp_path, merge=True), whole)


def test_shards_of_another_number(client: Client, whole: Built, tmp_path: Path) -> None:
    """What an earlier attempt left is named: no shard that is read again would remove it."""
    build_shard(client, tmp_path, 0, 3, until=UNTIL)
    for shard in range(2):
        build_shard(client, tmp_path, shard, 2, until=UNTIL)
    with pytest.raises(TransformError, match="shards 2 and 3") as refused:
        built(client, tmp_path, merge=True)
    assert f"remove {tmp_path / 'pieces'}" in str(refused.value)


def test_the_order_of_the_store(client: Client, whole: Built, tmp_path: Path) -> None:
    rows = rows_of_all()
    random.Random(7).shuffle(rows)
    client.command("TRUNCATE TABLE otel_traces")
    for begin in range(0, len(rows), 40):
        insert(client, rows[begin : begin + 40])
    same(built(client, tmp_path / "a"), whole)
    same(built(client, tmp_path / "b", memory=Memory(3, 4_000)), whole)


def test_spans_that_came_after_a_shard_was_read(client: Client, whole: Built, tmp_path: Path) -> None:
    for shard in range(2):
        build_shard(client, tmp_path / "shards", shard, 2, until=UNTIL)
    insert(client, [Agent("late", prefix="late").call([user("task 0")], said("late"), at=DAY)])
    merged = built(client, tmp_path / "shards", merge=True)
    same(merged, built(client, tmp_path / "again"))
    assert merged[0].id != whole[0].id


def test_a_days_build_reads_a_day(client: Client, tmp_path: Path) -> None:
    def until(days: int, name: str, parent: str | None = None) -> tuple[Built, int]:
        lines: list[str] = []
        found = built(
            client, tmp_path / name, until=FIRST + timedelta(days=days), parent=tmp_path / parent if parent else None,
            memory=Memory(bucket_bytes=3_000), progress=lines.append,
        )  # fmt: skip
        return found, read_of(lines)

    fill(client, day(0))  # 14 and, after midnight, 15 November
    first, _ = until(2, "first")
    second, read = until(2, "second", "first")
    assert read == 2  # the first kept no pieces
    same(second, first)
    insert(client, day(1))  # 15 and 16 November
    third, read = until(3, "third", "second")
    assert read == 2
    same(third, until(3, "plain")[0])
    # 16 and 17 November, and a call of the 14th that comes only now; the 15th is not read again.
    late = Agent("late", prefix="late")
    insert(client, [*day(2), late.call([user("task 0")], said("late"), at=20)])
    fourth, read = until(4, "fourth", "third")
    assert read == 3
    same(fourth, until(4, "plain")[0])
    assert (second[0].parent, third[0].parent, fourth[0].parent) == (first[0].id, second[0].id, third[0].id)
    # The same again, in place: nothing is read.
    again, read = until(4, "fourth", "fourth")
    assert (again[0].id, read) == (fourth[0].id, 0)
    assert len(list((tmp_path / "fourth" / "pieces").iterdir())) == 4


def test_what_came_late_elsewhere(client: Client, tmp_path: Path) -> None:
    """An agent's span of another day than its calls, and a log record of a call: what was read of the call is known to be old."""
    rows = day(1)
    above = next(row for row in rows if row["SpanId"] == "agent-1")
    fill(client, [row for row in rows if row is not above])
    built(client, tmp_path / "a")
    built(client, tmp_path / "b", parent=tmp_path / "a")
    insert(client, [{**above, "Timestamp": above["Timestamp"] - DAY * 1_000_000_000}])
    late = built(client, tmp_path / "c", parent=tmp_path / "b")
    same(late, built(client, tmp_path / "d"))
    assert pl.read_parquet(tmp_path / "c" / "transitions.parquet")["agent"].is_in(["solver"]).any()
    record = {"Timestamp": rows[0]["Timestamp"], "TraceId": rows[0]["TraceId"], "SpanId": rows[0]["SpanId"]}
    client.insert("otel_logs", [list(record.values())], column_names=list(record))
    lines: list[str] = []
    built(client, tmp_path / "e", parent=tmp_path / "c", progress=lines.append)
    assert read_of(lines) == 1
    # A span of a tool in another service, after the day of the calls in its trace: their days are read again, as the next is.
    lines = []
    last = max(row["Timestamp"] for row in rows if row["TraceId"] == above["TraceId"])
    until = datetime.fromtimestamp(last / 1e9, UTC) + timedelta(seconds=1)
    for name, parent in (("f", "e"), ("g", "f")):
        built(client, tmp_path / name, parent=tmp_path / parent, until=until, progress=lines.append)
    assert read_of(lines) == 1
    tool = {
        **above,
        "SpanId": "tool",
        "Timestamp": last + 120_000_000_000,
        "ServiceName": "tools",
        "SpanAttributes": {},
    }
    insert(client, [tool])
    lines = []
    built(client, tmp_path / "h", parent=tmp_path / "g", until=until, progress=lines.append)
    assert read_of(lines) > 0


def texts_of(folder: Path) -> str:
    """Everything in the pieces of a dataset."""
    return "".join(str(pl.read_parquet(path).rows()) for path in (folder / "pieces").rglob("*.parquet"))


def test_what_was_erased_is_in_no_piece(client: Client, tmp_path: Path) -> None:
    fill(client, day(0) + day(1))
    row = Agent("x", prefix="x").call([user("my secret")], said("kept"), at=50)
    insert(client, [{**row, "TraceId": SECRET}])
    built(client, tmp_path / "a")
    built(client, tmp_path / "b", parent=tmp_path / "a")
    build_shard(client, tmp_path / "shards", 0, 1, until=UNTIL)
    assert "my secret" in texts_of(tmp_path / "b")
    subject = Subject.of("trace", SECRET)
    found = erase.find(client, subject)

    def named(*, reads_files: bool) -> set[tuple[str, int | None, str]]:
        lineage = trace_lineage(client, subject, found.traces, first=found.first, reads_files=reads_files)
        hits = [hit for hit in lineage.datasets if Path(hit.uri).parent == tmp_path]
        return {(Path(hit.uri).name, hit.rows, hit.why) for hit in hits}

    # The report names the folder with the pieces, whatever became of the rows beside them.
    dataset = tmp_path / "b" / "transitions.parquet"
    pl.read_parquet(dataset).clear().write_parquet(dataset)
    expected = {("a", 1, "1 transitions"), ("b", 0, "what it was made from (pieces/)")}
    assert named(reads_files=True) == named(reads_files=False) == expected
    # Marked and not deleted, as what comes late.
    erase.mark(client, found, "test")
    merged = built(client, tmp_path / "shards", merge=True)
    same(built(client, tmp_path / "c", parent=tmp_path / "b"), merged)
    assert "my secret" not in texts_of(tmp_path / "c")
    # In place: the piece that held it is gone.
    built(client, tmp_path / "b", parent=tmp_path / "b")
    assert "my secret" not in texts_of(tmp_path / "b")
    # A dataset that was built again without it is not said to hold it, whatever its parent held.
    assert named(reads_files=True) == {("a", 1, "1 transitions")}


def test_a_build_that_fails_leaves_no_texts(client: Client, whole: Built, tmp_path: Path) -> None:
    wrong = Config(rewards=(RewardRule(name="wrong", expression="no_such_column"),))
    with pytest.raises(TransformError, match="no_such_column"):
        build(client, tmp_path, config=wrong, until=UNTIL, memory=Memory(3))
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--shard", "3/2", "--until", "1h"], "is no shard", id="no such shard"),
        pytest.param(["--shard", "1/2"], "needs --until", id="open end"),
        pytest.param(["--shard", "1/2", "--until", "1h", "--agent", "a"], "at --merge", id="agent"),
        pytest.param(["--merge", "--since", "1d"], "from the shards", id="merge of a window"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, arguments: list[str], message: str) -> None:
    wrong = CliRunner().invoke(cli, ["build", "--out", str(tmp_path / "out"), *arguments])
    assert wrong.exit_code == 2
    assert message in wrong.output
