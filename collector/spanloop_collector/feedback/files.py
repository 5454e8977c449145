"""Judgements from files: CSV, JSON lines and Parquet, row by row; a row that cannot be read is named and stops no other."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

from spanloop_collector.errors import ImportFailed
from spanloop_collector.feedback.judgement import FIELDS, FeedbackRefused, Problem, load_json

_PARQUET_MAGIC: Final = b"PAR1"
_BOM: Final = b"\xef\xbb\xbf"
_BATCH_ROWS: Final = 1000  # of Parquet in memory
_PEEK_BYTES: Final = 1 << 12
# Such code points stand for bytes that are no UTF-8 ("surrogateescape").
_NO_UTF8: Final = re.compile("[\udc80-\udcff]")
_NANO: Final = 10**9
_NANOSECONDS: Final = {"s": _NANO, "ms": 10**6, "us": 1000, "ns": 1}  # of Parquet's units
_MAX_CELL: Final = 1 << 26  # characters; what is longer is a quote that nobody closed
# What begins like this is a file of another kind: its name, and what makes it one of ours.
_FOREIGN: Final = {
    b"\x1f\x8b": ("is compressed", "gunzip it first"),
    b"\xff\xfe": ("is UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("is UTF-16", "save it as UTF-8"),
    b"[": ("is a JSON list", "write one object a line: jq -c '.[]'"),
}


@dataclass(frozen=True)
class FoundRow:
    """One row of a file.

    Args:
        where: file and line, for messages.
        fields: by name, empty ones left out; or why the row could not be read.
    """

    where: str
    fields: object | FeedbackRefused


def read_rows(path: Path) -> Iterator[FoundRow]:
    """The rows of a file, in order. The format is found from the content.

    CSV has a line with the names of fields first (comma, semicolon or tab between them), and an empty cell is a field that is
    not there. JSON lines have an object a line.

    Raises:
        ImportFailed: the file cannot be read, is empty, or has a column that is no field.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_PEEK_BYTES)
    except OSError as error:
        raise ImportFailed(
            f"{path} cannot be read: {error.strerror or error}", "check the path; nothing was stored"
        ) from error
    text = start.removeprefix(_BOM).lstrip()
    if not text:
        raise ImportFailed(f"{path}: the file is empty", "export it again; nothing was stored")
    for magic, (what, remedy) in _FOREIGN.items():
        if text.startswith(magic):
            raise ImportFailed(f"{path} {what}", f"{remedy}; nothing was stored")
    if start.startswith(_PARQUET_MAGIC):
        return _parquet(path)
    return _json_lines(path) if text.startswith(b"{") else _csv(path)


def _json_lines(path: Path) -> Iterator[FoundRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            fields: object
            try:
                fields = load_json(line.removeprefix(_BOM) if number == 1 else line)
            except (ValueError, RecursionError) as error:
                fields = FeedbackRefused(Problem("", f"no valid JSON: {error}"))
            yield FoundRow(f"{path}, line {number}", fields)


def _csv(path: Path) -> Iterator[FoundRow]:
    with _open(path) as file:
        first = file.readline()
    delimiter = max(",;\t", key=first.count)
    try:
        header = next(csv.reader([first], delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration) as error:
        raise ImportFailed(f"{path}, line 1: no names of columns: {error}", "nothing was stored") from error
    names = [name.strip().lower() for name in header]
    _check_columns(f"{path}, line 1", names)
    return _csv_rows(path, names, delimiter)


def _csv_rows(path: Path, names: list[str], delimiter: str) -> Iterator[FoundRow]:
    # The module's own limit ends a cell in its middle, and would read what is left of it as rows.
    csv.field_size_limit(_MAX_CELL)
    with _open(path) as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        next(rows)
        while True:
            line = rows.line_num + 1  # a cell may hold line breaks
            fields: object
            try:
                row = next(rows)
                if not any(map(str.strip, row)):
                    continue  # spreadsheets end with such
                fields = _cells(names, row)
            except StopIteration:
                return
            except csv.Error as error:
                fields = FeedbackRefused(Problem("", f"no valid CSV: {error}"))
            # A quote that nobody closed takes all lines after it: they are named, too.
            broken = isinstance(fields, FeedbackRefused) and rows.line_num > line
            lines = f"lines {line} to {rows.line_num}" if broken else f"line {line}"
            yield FoundRow(f"{path}, {lines}", fields)


def _open(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _cells(header: list[str], row: list[str]) -> object:
    if len(row) != len(header):
        return FeedbackRefused(
            Problem("", f"has {len(row)} cells, and the first line names {len(header)} columns")
        )
    broken = [
        Problem(name, "is not UTF-8") for name, cell in zip(header, row, strict=True) if _NO_UTF8.search(cell)
    ]
    if broken:
        return FeedbackRefused(*broken)
    # Blanks beside a comma are no part of an id, which would match nothing with them.
    cells = zip(header, map(str.strip, row), strict=True)
    fields: dict[str, object] = {name: cell for name, cell in cells if cell}
    # CSV knows texts alone; a text that is no number stays one, and is told so.
    for name in fields.keys() & {"value", "time"}:
        fields[name] = _number(str(fields[name]), truth=name == "value")
    return fields


def _number(text: str, *, truth: bool) -> object:
    if truth and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "_" not in text:
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)
    return text


def _parquet(path: Path) -> Iterator[FoundRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    _check_columns(str(path), names)
    return _parquet_rows(path)


def _parquet_rows(path: Path) -> Iterator[FoundRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                columns = {name: _values(batch.column(name)) for name in batch.schema.names}
                for place in range(batch.num_rows):
                    number += 1
                    row = {name: values[place] for name, values in columns.items()}
                    fields = {name: value for name, value in row.items() if value not in (None, "")}
                    yield FoundRow(f"{path}, row {number}", fields)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ImportFailed:
    return ImportFailed(
        f"{path}: the Parquet file cannot be read: {str(error).splitlines()[0]}",
        "export it again; what came before it is stored",
    )


def _values(column: Any) -> list[Any]:
    """Of one column, as JSON would have them."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        # As whole numbers: Python's datetime has no room for nanoseconds, and nanoseconds have none for the year 2300.
        counts = column.cast(pa.int64()).to_pylist()
        unit = _NANOSECONDS[column.type.unit]
        return [None if count is None else _rfc3339(count * unit) for count in counts]
    if pa.types.is_date(column.type):
        return list(column.cast(pa.string()).to_pylist())  # Python's own end with the year 9999
    if pa.types.is_decimal(column.type) or pa.types.is_floating(column.type):
        return list(column.cast(pa.float64()).to_pylist())
    return list(column.to_pylist())


def _rfc3339(nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, _NANO)
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return "out of range"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def _check_columns(where: str, names: list[str]) -> None:
    """One message for the file, where each row would say the same."""
    fields = ", ".join(FIELDS)
    if unknown := [name for name in names if name not in FIELDS]:
        raise ImportFailed(
            f"{where}: column {unknown[0]!r} is no field of feedback",
            f"name them {fields}; nothing was stored",
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise ImportFailed(f"{where}: column {twice[0]!r} is there twice", "nothing was stored")
    if "name" not in names:
        raise ImportFailed(f"{where}: no column `name`", f"columns are {fields}; nothing was stored")
