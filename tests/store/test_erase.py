"""A trace, session or user is gone from every table and from the disk, and does not come back."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.stores import laid

from spanloop_store import Engine, audit, erase, lineage, prompts, registry
from spanloop_store.errors import AuditError, EraseError
from spanloop_store.otlp.queries import quote
from spanloop_store.subjects import ATTRIBUTES, FIELDS, RESOURCE, Subject

MARKER = "Zebra-Marmalade-4711"
OTHER = "keep-this-one"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    with Engine(laid(tmp_path / "s")) as engine:
        yield engine.client(), tmp_path / "s"


def trace(number: int) -> str:
    return f"{number:032x}"


def span(
    client: Any, number: int, *, name: str = "chat", age_s: int = 0, resource: str = "", **given: str
) -> None:
    attributes = {key.replace("__", "."): value for key, value in given.items()}
    pairs = ", ".join(f"{quote(key)}, {quote(value)}" for key, value in attributes.items())
    client.command(
        "INSERT INTO otel_traces (Timestamp, TraceId, SpanId, SpanName, SpanAttributes, ResourceAttributes)"
        f" VALUES (now64(9) - {age_s}, '{trace(number)}', '{number:016x}', {quote(name)}, map({pairs}), map({resource}))"
    )


def ids(client: Any, table: str = "otel_traces", column: str = "TraceId") -> list[int]:
    rows = client.query(f"SELECT DISTINCT {column} FROM {table} ORDER BY 1").result_rows
    return [int(row[0] or "0", 16) for row in rows]


def run(client: Any, kind: str, id: str) -> tuple[erase.Found, erase.Deleted]:
    found = erase.find(client, Subject.of(kind, id))
    erase.mark(client, found, "a test")
    return found, erase.delete(client, found)


def grep(folder: Path, text: str) -> list[str]:
    done = subprocess.run(["grep", "-rlaF", text, str(folder)], capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_the_bytes_are_off_the_disk(store: tuple[Any, Path]) -> None:
    client, folder = store
    # As they are, so that grep can see them.
    for table, columns in (
        (
            "otel_traces",
            {"SpanName": "LowCardinality(String)", "SpanAttributes": "Map(LowCardinality(String), String)"},
        ),
        ("otel_logs", {"Body": "String"}),
    ):
        for column, kind in columns.items():
            client.command(f"ALTER TABLE {table} MODIFY COLUMN {column} {kind} CODEC(NONE)")
    client.command("ALTER TABLE rewards MODIFY COLUMN explanation String CODEC(NONE)")
    for number in range(6):
        text = MARKER if number % 2 else OTHER
        span(client, number, name=text, **{text: text, "session__id": f"s{number % 2}"})
        client.command(
            f"INSERT INTO otel_logs (Timestamp, TraceId, Body) VALUES (now64(9), '{trace(number)}', '{text}')"
        )
        client.command(
            f"INSERT INTO rewards (id, time, trace_id, explanation) VALUES ('{number}', now64(9), '{trace(number)}', '{text}')"
        )
    client.command("OPTIMIZE TABLE otel_traces FINAL")  # the parts before the merge stay for a while, too
    assert len(grep(folder, MARKER)) > 2
    found, deleted = run(client, "session", "s1")
    assert found.rows == {"rewards": 3, "otel_logs": 3, "otel_traces_trace_id_ts": 3, "otel_traces": 3}
    assert deleted.left == ()
    assert grep(folder, MARKER) == []
    assert grep(folder, OTHER)
    assert (
        ids(client)
        == [0, 2, 4]
        == ids(client, "otel_traces_trace_id_ts")
        == ids(client, "rewards", "trace_id")
    )
    assert client.query(
        "SELECT count() FROM system.parts WHERE NOT active AND table LIKE 'otel%'"
    ).result_rows == [(0,)]


def test_every_attribute_that_names_a_session_or_user(store: tuple[Any, Path]) -> None:
    client, _ = store
    for kind, keys in ATTRIBUTES.items():
        for number, key in enumerate(keys):
            span(client, 100 + number, **{key: f"{kind}-1"})
            span(client, 200 + number, **{key: f"{kind}-12"})
        expected = tuple(trace(100 + number) for number in range(len(keys)))
        assert erase.find(client, Subject(kind, f"{kind}-1")).traces == expected


def test_resources_json_and_logs_name_them_too(store: tuple[Any, Path]) -> None:
    client, _ = store
    for kind in ATTRIBUTES:
        number = 1
        for key in RESOURCE[kind]:
            span(client, number, resource=f"'{key}', '{kind}-1'")
            number += 1
        for key, name in FIELDS[kind]:
            span(client, number, **{key: f'{{"{name}": "{kind}-1"}}'})
            number += 1
        client.command(
            "INSERT INTO otel_logs (Timestamp, TraceId, LogAttributes) VALUES"
            f" (now64(9), '{trace(number)}', map('{kind}.id', '{kind}-1')), (now64(9), '', map('{kind}.id', '{kind}-1'))"
        )
        found = erase.find(client, Subject(kind, f"{kind}-1"))
        assert found.traces == tuple(trace(each) for each in range(1, number + 1))
        assert found.rows["otel_logs"] == 2
        run(client, kind, f"{kind}-1")
        assert ids(client) == ids(client, "otel_logs") == []


def test_copies_of_a_call_in_other_traces_go_with_it(store: tuple[Any, Path]) -> None:
    client, _ = store
    span(client, 1, gen_ai__response__id="r1")
    span(client, 2, gen_ai__response__id="r1", spanloop__gateway="true")
    span(client, 3, gen_ai__response__id="r2")
    span(client, 4, gen_ai__response__id="r1", age_s=86_400)  # another call, of a server that gives ids twice
    client.command(
        "INSERT INTO rewards (id, time, response_id) VALUES ('a', now64(9), 'r1'), ('b', now64(9), 'r2')"
    )
    client.command(
        "INSERT INTO otel_logs (Timestamp, LogAttributes) VALUES (now64(9), map('gen_ai.response.id', 'r1'))"
    )
    found, _ = run(client, "trace", trace(1))
    assert found.copies == (trace(2),)
    assert found.rows["rewards"] == found.rows["otel_logs"] == 1
    assert ids(client) == [3, 4]
    assert client.query("SELECT id FROM rewards").result_rows == [("b",)]
    assert ids(client, "otel_logs") == []


def test_an_id_that_many_share_is_not_followed(store: tuple[Any, Path]) -> None:
    client, _ = store
    for number in range(1, 8):
        span(client, number, gen_ai__response__id="chatcmpl-stub")
    found, _ = run(client, "trace", trace(1))
    assert found.copies == ()
    assert "chatcmpl-stub" in found.notes[0]
    assert ids(client) == [2, 3, 4, 5, 6, 7]


def test_an_erasure_that_was_killed_goes_on(store: tuple[Any, Path]) -> None:
    client, _ = store
    for number in range(1, 4):
        span(client, number, user__id="u", gen_ai__response__id=f"r{number}")
        client.command(
            f"INSERT INTO rewards (id, time, response_id) VALUES ('{number}', now64(9), 'r{number}')"
        )
    found = erase.find(client, Subject("user", "u"))
    erase.mark(client, found, "a test")
    # Killed when the spans were gone, and nothing else was.
    client.command("ALTER TABLE otel_traces DELETE WHERE 1 SETTINGS mutations_sync = 2")
    again, _ = run(client, "user", "u")
    assert again.traces == found.traces
    assert again.rows == {"rewards": 3, "otel_logs": 0, "otel_traces_trace_id_ts": 3, "otel_traces": 0}
    assert ids(client, "otel_traces_trace_id_ts") == []
    assert client.query("SELECT count() FROM rewards").result_rows == [(0,)]
    tombstones = client.query(
        "SELECT count(), countDistinct(kind, id) FROM erasures WHERE kind != 'user'"
    ).result_rows
    assert tombstones == [(6, 6)]


def test_what_arrives_late_is_known_and_removed(store: tuple[Any, Path]) -> None:
    client, _ = store
    span(client, 1, session__id="s", gen_ai__response__id="r1")
    run(client, "session", "s")
    span(client, 1)  # of an erased trace
    span(client, 2, session__id="s", age_s=60)  # of the session, from before
    span(client, 3, session__id="s", age_s=-60)  # of the session, which goes on
    span(client, 4, gen_ai__response__id="r1")  # the gateway's report of an erased call
    span(client, 5, session__id="t")
    client.command(
        "INSERT INTO otel_logs (Timestamp, LogAttributes) VALUES"
        " (now64(9) - 60, map('session.id', 's')), (now64(9) + 60, map('session.id', 's'))"
    )
    late = [trace(1), trace(2), trace(4)]
    assert erase.erased_traces(client, 0, 2**62) == late
    assert erase.erased_traces(client, 0, 1) == [
        trace(1),
        trace(4),
    ]  # a window cuts off what is looked for by session
    rows = erase.sweep(client)
    assert rows == {"otel_logs": 1, "otel_traces_trace_id_ts": 3, "otel_traces": 3}
    assert ids(client) == [3, 5]
    assert client.query("SELECT count() FROM otel_logs").result_rows == [(1,)]
    assert erase.sweep(client) == {}
    assert erase.erased_traces(client, 0, 2**62) == []


def test_parts_put_aside_on_those_days_go_unseen(store: tuple[Any, Path]) -> None:
    client, folder = store
    for number, age in ((1, 0), (2, 0), (3, 10 * 86_400)):
        span(client, number, age_s=age)
        part = client.query(
            "SELECT name FROM system.parts WHERE table = 'otel_traces' AND active"
        ).result_rows
        if number != 2:
            client.command(f"ALTER TABLE otel_traces DETACH PART '{part[0][0]}'")
    span(client, 3, age_s=10 * 86_400)
    assert len(list(folder.glob("engine/store/*/*/detached/*"))) == 2
    _, deleted = run(client, "trace", trace(2))
    assert len(deleted.detached) == 1
    assert len(list(folder.glob("engine/store/*/*/detached/*"))) == 1


@pytest.mark.parametrize("text", ["", "abc", "0" * 32, "g" * 32], ids=["empty", "short", "zeros", "letters"])
def test_a_trace_id_is_one(text: str) -> None:
    with pytest.raises(EraseError, match="is no trace id"):
        Subject.of("trace", text)


def test_a_trace_id_in_other_spellings() -> None:
    assert Subject.of("trace", " 4BF92F35-77B34DA6A3CE929D0E0E4736 ").id == "4bf92f3577b34da6a3ce929d0e0e4736"


def test_an_id_is_never_read_as_sql(store: tuple[Any, Path]) -> None:
    client, _ = store
    odd = "a' OR 1=1 --\\"
    span(client, 1, user__id=odd)
    span(client, 2, user__id="b")
    client.command(
        f"INSERT INTO otel_logs (Timestamp, LogAttributes) VALUES (now64(9), map('user.id', {quote(odd)}))"
    )
    found, _ = run(client, "user", odd)
    assert found.rows["otel_logs"] == 1
    assert ids(client) == [2]
    assert ids(client, "otel_logs") == []


def test_rewards_without_a_trace_that_name_a_user_or_session(store: tuple[Any, Path]) -> None:
    """A judgement that came before its span, or without one: the reward made of it goes as the record does."""
    client, _ = store
    for kind, key in (("user", "user.id"), ("session", "langfuse.session.id")):
        client.command(
            "INSERT INTO otel_logs (Timestamp, EventName, LogAttributes) SELECT now64(9), 'gen_ai.evaluation.result',"
            " map('gen_ai.evaluation.name', 'helpful', 'gen_ai.evaluation.score.value', '1',"
            f" 'gen_ai.evaluation.explanation', 'said {MARKER}', '{key}', concat('{kind}-', toString(number + 1)))"
            " FROM numbers(2)"
        )
        found, deleted = run(client, kind, f"{kind}-1")
        assert (found.rows["rewards"], found.rows["otel_logs"]) == (1, 1)
        assert deleted.left == ()
        left = client.query(f"SELECT attributes['{key}'] FROM rewards WHERE mapContains(attributes, '{key}')")
        assert left.result_rows == [(f"{kind}-2",)]
    client.command(
        "INSERT INTO rewards (id, time, trace_id, attributes) VALUES"
        f" ('r', now64(9), '{trace(7)}', map('user.id', 'user-2'))"
    )
    assert erase.find(client, Subject("user", "user-2")).traces == (trace(7),)


def test_the_trail_of_late_arrivals_is_written_first(store: tuple[Any, Path]) -> None:
    client, _ = store
    span(client, 1, user__id="u")
    run(client, "user", "u")
    span(client, 1)
    client.command("RENAME TABLE audit TO elsewhere")
    with pytest.raises(AuditError):
        erase.sweep(client)
    assert ids(client) == [1]
    client.command("RENAME TABLE elsewhere TO audit")
    assert erase.sweep(client, "a collector") == {"otel_traces_trace_id_ts": 1, "otel_traces": 1}
    (entry,) = audit.entries(client)
    assert (entry.who, entry.subject, entry.details["rows"]["otel_traces"]) == (
        "a collector",
        "late arrivals",
        1,
    )


def test_a_tables_own_lifetime_of_old_parts_stays(store: tuple[Any, Path]) -> None:
    client, _ = store
    for own, after in (("900", "old_parts_lifetime = 900"), ("0", "")):
        client.command(f"ALTER TABLE otel_traces MODIFY SETTING old_parts_lifetime = {own}")
        span(client, 1)
        run(client, "trace", trace(1))
        (definition,) = client.query(
            "SELECT engine_full FROM system.tables WHERE name = 'otel_traces'"
        ).result_rows[0]
        assert (after in definition) if after else ("old_parts_lifetime" not in definition)


def test_prompts_that_may_hold_a_persons_text(store: tuple[Any, Path]) -> None:
    client, _ = store
    for name, content, origin in (
        ("a", "You help user-4711.", ""),
        ("b", "Be kind.", "agent"),
        ("c", "Be brief.", "agent"),
        ("d", "Be kind.", ""),
    ):
        prompts.register_prompt(client, name, content, metadata={"origin": origin})
    prompts.register_prompt(client, "e", "Answer.", examples=[{"role": "user", "content": "I am user-4711"}])
    for number, user in ((1, "user-4711"), (2, "user-4711"), (3, "other")):
        prompt = "b@1" if number < 3 else "c@1"
        span(client, number, user__id=user, spanloop__prompt__version=prompt)
    span(client, 4, user__id="user-4711", spanloop__prompt__version="c@1")
    subject = Subject("user", "user-4711")
    found = erase.find(client, subject)
    told = lineage.trace_lineage(client, subject, found.traces, first=found.first, reads_files=True)
    assert [hit.id for hit in told.prompts] == ["a@1", "e@1", "b@1"]
    # Killed once the spans were gone: what was found then is in the trail.
    audit.record(client, "erase", str(subject), {"prompts": [hit.id for hit in told.prompts]})
    run(client, "user", "user-4711")
    again = lineage.trace_lineage(client, subject, found.traces, first=None, reads_files=True)
    assert [hit.id for hit in again.prompts] == ["a@1", "e@1", "b@1"]
    assert lineage.trace_lineage(client, Subject("user", "x"), (), first=None, reads_files=True).prompts == ()


def test_a_dataset_older_than_what_is_left_of_a_killed_run(store: tuple[Any, Path], tmp_path: Path) -> None:
    """A session's first spans are gone, by a run that was killed or by the retention: the dataset still holds them."""
    client, _ = store
    client.command(
        f"INSERT INTO FUNCTION file('{tmp_path}/transitions.parquet', Parquet,"
        " 'trace_id String, episode_id String') VALUES ('t1', 's@x')"
    )
    registry.record_dataset(client, registry.Dataset("here", str(tmp_path), "", 1, 1, {}))
    registry.record_dataset(client, registry.Dataset("elsewhere", "/nowhere/on/this/machine", "", 1, 1, {}))
    later = datetime.now(UTC) + timedelta(days=1)
    subject = Subject("session", "s")
    found = lineage.trace_lineage(client, subject, (), first=later, reads_files=True)
    assert [hit.id for hit in found.datasets] == ["here"]
    span(client, 1, session__id="s", age_s=-86_400)
    assert erase.find(client, subject).first is not None
    erase.mark(client, erase.find(client, subject), "a test")
    assert erase.find(client, subject).first is None
    found = lineage.trace_lineage(client, subject, (), first=None, reads_files=True)
    assert {hit.id for hit in found.datasets} == {"here", "elsewhere"}


def test_datasets_and_models_that_learnt_from_it(store: tuple[Any, Path], tmp_path: Path) -> None:
    client, _ = store
    for name, rows in (
        ("a", "('t1', 's@x', 1)"),
        ("b", "('t2', 'u@x', 1)"),
        ("c", "('t9', 's1@x', 1), ('t9', 's@y', 1)"),
    ):
        (tmp_path / name).mkdir()
        client.command(
            f"INSERT INTO FUNCTION file('{tmp_path / name}/transitions.parquet', Parquet,"
            f" 'trace_id String, episode_id String, step UInt8') VALUES {rows}"
        )
        registry.record_dataset(client, registry.Dataset(f"id-{name}", str(tmp_path / name), "", 1, 1, {}))
    registry.record_dataset(client, registry.Dataset("id-d", str(tmp_path / "d"), "id-a", 1, 1, {}))
    registry.register_model(client, "m", "/m1", dataset_id="id-a")
    registry.register_model(client, "m", "/m2", parent="m@1", dataset_id="id-b")
    registry.register_model(client, "m", "/m3", dataset_id="id-b")
    registry.point_alias(client, "m", "candidate", 2, action="point")
    for reads_files in (True, False):
        found = lineage.trace_lineage(
            client, Subject("session", "s"), {"t1"}, first=None, reads_files=reads_files
        )
        assert {hit.id: hit.rows for hit in found.datasets} == {"id-a": 1, "id-c": 1, "id-d": None}
        assert [(hit.id, hit.why, hit.aliases) for hit in found.models] == [
            ("m@1", "trained on dataset id-a", ()),
            ("m@2", "trained from m@1", ("candidate",)),
        ]
