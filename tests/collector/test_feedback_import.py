"""`spanloop feedback import`: each format, rows that are wrong, a file twice; with a collector and without."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from tests.collector.capture_process import running

from spanloop.main import cli
from spanloop_collector.errors import ImportFailed
from spanloop_collector.feedback.files import read_rows
from spanloop_collector.feedback.importing import _BATCH_ROWS
from spanloop_collector.feedback.judgement import (
    FIELDS,
    MAX_TEXT,
    FeedbackRefused,
    export_request,
    read_feedback,
)
from spanloop_collector.http_receiver import MAX_BODY_BYTES
from spanloop_store import connect
from spanloop_store.errors import SpanloopError

TRACE, SPAN = "0123456789abcdef" * 2, "fedcba9876543210"
CHANGED = 1_795_000_000  # when the files were written, in Unix seconds


@pytest.fixture(autouse=True)
def kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """CHANGED will be more than a year ago one day."""
    monkeypatch.setenv("SPANLOOP_RETENTION_DAYS", "0")


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    os.utime(path, (CHANGED, CHANGED))
    return path


def import_(store: str, *files: Path) -> Result:
    return CliRunner().invoke(
        cli, ["feedback", "import", "--store", store, *map(str, files)], catch_exceptions=False
    )


def rewards(store: str, columns: str = "name, value") -> list[tuple[Any, ...]]:
    with contextlib.closing(connect(store)) as client:
        return [
            tuple(row) for row in client.query(f"SELECT {columns} FROM rewards ORDER BY name").result_rows
        ]


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Of each row its place and fields, or the fields at fault."""
    for row in read_rows(path):
        where = row.where.removeprefix(f"{path}, ")
        yield (
            where,
            [p.field for p in row.fields.problems] if isinstance(row.fields, FeedbackRefused) else row.fields,
        )


CSV = f"""\ufeffname,value,trace_id,response_id,comment,time
a,1,{TRACE},,"two
lines, and a comma",2026-11-20T10:00:00Z
b,nan,,r1,,
c,much,,r1,,
d,1,{TRACE[1:]},,,
e,true,,r1,,1795000001.5
f,1
g,-0.5,,r1,,
"""


def test_wrong_rows_are_named_and_stop_no_other(tmp_path: Path) -> None:
    store = f"chdb://{tmp_path}/s"
    done = import_(store, written(tmp_path / "ratings.csv", CSV))
    assert done.exit_code == 1
    assert "imported 3 judgements" in done.output
    told = [
        line.strip().removeprefix(f"{tmp_path}/")
        for line in done.output.splitlines()
        if "ratings.csv, line" in line
    ]
    assert [line.split(":")[:2] for line in told] == [
        ["ratings.csv, line 4", " value"],
        ["ratings.csv, line 5", " value"],
        ["ratings.csv, line 6", " trace_id"],
        ["ratings.csv, line 8", " has 2 cells, and the first line names 6 columns"],
    ]
    assert rewards(store, "name, value, explanation, toUnixTimestamp64Milli(time), source") == [
        ("a", 1.0, "two\nlines, and a comma", 1_795_168_800_000, "feedback"),
        ("e", 1.0, "", 1_795_000_001_500, "feedback"),
        ("g", -0.5, "", CHANGED * 1000, "feedback"),
    ]


@pytest.mark.parametrize("collector", [False, True], ids=["alone", "collector"])
def test_a_file_twice_is_stored_once_and_corrected_it_is_one_fact_a_row(
    tmp_path: Path, collector: bool
) -> None:
    store = f"chdb://{tmp_path}/s"
    lines = [json.dumps({"response_id": f"r{n}", "name": f"n{n:04}", "value": n}) for n in range(1500)]
    file = written(tmp_path / "f.jsonl", "\n".join([*lines, "", "nonsense"]))
    with running(tmp_path / "s") if collector else contextlib.nullcontext():
        first, second = import_(store, file), import_(store, file)
        assert "imported 1500 judgements" in first.output
        assert "line 1502: no valid JSON" in first.output
        assert "imported 0 judgements" in second.output
        assert "left out 1500 that were stored before" in second.output
        assert len(rewards(store)) == 1500
        last = json.dumps({"response_id": "r1500", "name": "n1500", "value": 1500})
        assert import_(store, written(file, "\n".join([*lines, last]))).exit_code == 0
        assert len({row[0] for row in rewards(store, "id, name")}) == 1501


def test_parquet_as_data_frames_write_it(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    pl.DataFrame(
        {
            "name": ["a", "b", "c", "d"],
            "value": [1.5, None, float("nan"), 2.0],
            "label": [None, "good", None, ""],
            "span_id": [SPAN] * 4,
            "time": [datetime(2026, 11, 20, 10, 0, 0, 123456, tzinfo=UTC)] * 4,
        },
        schema_overrides={"time": pl.Datetime("ns", "UTC"), "name": pl.Categorical},
    ).write_parquet(path)
    assert [fields if where != "row 3" else where for where, fields in rows(path)] == [
        {"name": "a", "value": 1.5, "span_id": SPAN, "time": "2026-11-20T10:00:00.123456000Z"},
        {"name": "b", "label": "good", "span_id": SPAN, "time": "2026-11-20T10:00:00.123456000Z"},
        "row 3",
        {"name": "d", "value": 2.0, "span_id": SPAN, "time": "2026-11-20T10:00:00.123456000Z"},
    ]
    done = import_(f"chdb://{tmp_path}/s", path)
    assert "row 3: value: is nan" in done.output
    assert rewards(f"chdb://{tmp_path}/s") == [("a", 1.5), ("b", None), ("d", 2.0)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series("value", [True, False]), [True, False]),
        (pl.Series("value", [1, 2], dtype=pl.Int8), [1, 2]),
        (pl.Series("value", [Decimal("0.5"), Decimal("2")]), [0.5, 2.0]),
        (pl.Series("value", ["1", "x"]), ["1", "x"]),
    ],
    ids=["bool", "int8", "decimal", "text"],
)
def test_kinds_of_parquet_columns(tmp_path: Path, values: pl.Series, expected: list[object]) -> None:
    path = tmp_path / "f.parquet"
    pl.DataFrame([pl.Series("name", ["n", "n"]), values]).write_parquet(path)
    assert [fields["value"] for _, fields in rows(path)] == expected


def test_days_and_times_beyond_nanoseconds_in_parquet_cost_no_other_row(tmp_path: Path) -> None:
    """A day was refused as no time, and the year 2999 ended the file."""
    names = pl.Series("name", ["n", "n"])
    pl.DataFrame([names, pl.Series("time", [date(2026, 11, 20), date(9999, 1, 1)])]).write_parquet(
        tmp_path / "days"
    )
    assert [fields["time"] for _, fields in rows(tmp_path / "days")] == ["2026-11-20", "9999-01-01"]
    for unit in ("ms", "us"):
        times = pl.Series("time", [datetime(2026, 11, 20), datetime(2999, 1, 1)], dtype=pl.Datetime(unit))
        pl.DataFrame([names, times]).write_parquet(tmp_path / unit)
        assert [fields["time"] for _, fields in rows(tmp_path / unit)] == [
            "2026-11-20T00:00:00.000000000Z",
            "2999-01-01T00:00:00.000000000Z",
        ]


def test_blanks_in_csv_are_no_part_of_an_id_and_make_no_row(tmp_path: Path) -> None:
    """`thumb, 1, r1` was stored for ` r1`, an answer that nobody gives."""
    path = written(tmp_path / "f.csv", "name, value, response_id\nthumb, 1, r1 \n , ,\n,,\n\n")
    assert list(rows(path)) == [("line 2", {"name": "thumb", "value": 1, "response_id": "r1"})]


def test_lines_within_a_long_cell_are_no_rows(tmp_path: Path) -> None:
    """Python's limit of 131,072 characters ended the cell, and a line of the comment was stored as a judgement."""
    content = f'name,value,response_id,comment\na,1,r,"{"x" * 140_000}\nb,1,r,"\nc,1,r,ok\n'
    found = [(where, fields["name"]) for where, fields in rows(written(tmp_path / "f.csv", content))]
    assert found == [("line 2", "a"), ("line 4", "c")]


def test_lines_that_an_open_quote_takes_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "f.csv", 'name,value,response_id\na,1,r\nb,1,"r\nc,1,r\nd,1,r\n')
    assert list(rows(path))[1:] == [("lines 3 to 5", [""])]


def test_a_name_that_no_terminal_shows(tmp_path: Path) -> None:
    """`--json` broke off in the middle with UnicodeEncodeError, after the rest had been stored."""
    file = written(tmp_path / "f.jsonl", '{"response_id": "r", "name": "n", "value": 1}\n{"\\ud83d": 1}\n')
    command = [sys.executable, "-m", "spanloop.main", "feedback", "import", "--json"]
    done = subprocess.run(
        [*command, "--store", f"chdb://{tmp_path}/s", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["stored"] == 1


def test_the_longest_texts_fit_into_a_request() -> None:
    row = {name: "🙂" * length for name, length in MAX_TEXT.items()} | {"value": 1, "trace_id": TRACE}
    assert len(export_request([read_feedback(row, now_ns=CHANGED)])) * _BATCH_ROWS < MAX_BODY_BYTES


def test_a_file_that_is_too_old_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANLOOP_RETENTION_DAYS", "30")
    file = written(tmp_path / "f.csv", "name,value,response_id,time\na,1,r,\nb,1,r,2020-01-01\n")
    os.utime(file, (10**9, 10**9))
    told = import_(f"chdb://{tmp_path}/s", file).output
    assert "line 2: time: the file has a time before" in told
    assert "line 3: time: has a time before" in told


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_delimiters_of_spreadsheets(tmp_path: Path, delimiter: str) -> None:
    text = delimiter.join(["Name ", "VALUE"]) + "\r\n" + delimiter.join(["n", "1"]) + "\r\n"
    assert list(rows(written(tmp_path / "f.csv", text))) == [("line 2", {"name": "n", "value": 1})]


def test_bytes_that_are_no_text_cost_their_row(tmp_path: Path) -> None:
    path = written(tmp_path / "f.csv", b"name,value,comment\nn,1,\xff\nm,1,ok\n")
    assert list(rows(path)) == [
        ("line 2", ["comment"]),
        ("line 3", {"name": "m", "value": 1, "comment": "ok"}),
    ]
    path = written(tmp_path / "f.jsonl", b'{"name": "\xff"}\n{"name": "n"}')
    assert list(rows(path)) == [("line 1", [""]), ("line 2", {"name": "n"})]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("name,score\nn,1\n", "column 'score' is no field"),
        ("value,label\n1,x\n", "no column `name`"),
        ("name,name\nn,n\n", "twice"),
        ('"name\n', "line 1"),
        (b"PAR1 nonsense", "Parquet"),
        (gzip.compress(b"name,value\n"), "is compressed"),
        ("name,value\n".encode("utf-16"), "is UTF-16"),
        ('[{"name": "n"}]', "is a JSON list"),
    ],
    ids=[
        *(
            "empty",
            "blank",
            "unknown",
            "nameless",
            "twice",
            "quote",
            "parquet",
            "gzip",
            "utf-16",
            "json-list",
        ),
    ],
)
def test_files_of_which_nothing_can_be_taken(tmp_path: Path, content: str | bytes, why: str) -> None:
    with pytest.raises(ImportFailed, match=why) as caught:
        list(read_rows(written(tmp_path / "f", content)))
    assert str(tmp_path / "f") in caught.value.message


def test_a_wrong_path_stores_nothing_of_the_others(tmp_path: Path) -> None:
    good = written(tmp_path / "f.csv", "name,value,response_id\nn,1,r\n")
    with pytest.raises(SpanloopError, match="cannot be read"):
        import_(f"chdb://{tmp_path}/s", good, tmp_path / "missing.csv")
    assert rewards(f"chdb://{tmp_path}/s") == []


def test_as_json(tmp_path: Path) -> None:
    file = written(tmp_path / "f.csv", "name,value,response_id\nn,1,r\nn,x,r\n")
    done = CliRunner().invoke(
        cli, ["feedback", "import", "--json", "--store", f"chdb://{tmp_path}/s", str(file)]
    )
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert {name: found[name] for name in ("files", "stored", "repeated", "refused")} == {
        "files": 1, "stored": 1, "repeated": 0, "refused": 1,
    }  # fmt: skip
    assert "line 3: value" in found["reasons"][0]


@given(st.binary(max_size=200) | st.text(alphabet='name,value;"\n\r\t0{}', max_size=60).map(str.encode))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = written(tmp_path_factory.getbasetemp() / "any", content)
    with contextlib.suppress(ImportFailed):
        for row in read_rows(path):
            assert isinstance(row.fields, object)
            assert row.where.startswith(str(path))


def test_fields_are_those_of_the_route() -> None:
    assert all(
        field in (CliRunner().invoke(cli, ["feedback", "import", "--help"]).output) for field in FIELDS
    )
