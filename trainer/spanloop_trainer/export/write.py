"""`spanloop export`: the usable rows of a dataset as one file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from spanloop_store.otlp.wire import whole_text
from spanloop_trainer.config import Config
from spanloop_trainer.errors import ExportError
from spanloop_trainer.export import chats, tables
from spanloop_trainer.export.rows import Chosen
from spanloop_trainer.transform.datasets.dataset import LOST_ROWS, MANIFEST, PARQUET
from spanloop_trainer.transform.episodes.tasks import read_tasks

Lines = Callable[[Chosen], Iterator[dict[str, Any]]]
# (form, kind) → lines; what is not here is a table.
LINES: dict[tuple[str, str], Lines] = {
    ("openai", "sft"): chats.openai,
    ("openai", "preference"): chats.openai_preference,
    ("trl", "sft"): chats.trl,
    ("trl", "preference"): chats.trl_preference,
    ("trl", "unpaired"): chats.trl_unpaired,
    ("sharegpt", "sft"): chats.sharegpt,
}
FORMS = ("openai", "trl", "verl", "sharegpt", "episodes")
KINDS = ("sft", "preference", "unpaired")
_WHY_NONE = {
    "preference": "no two answers to one prompt earned different rewards",
    "unpaired": "no usable row is scored",
}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    out: Path
    form: str
    kind: str
    records: int  # lines, or rows of a table


def check_form(form: str, kind: str, out: Path) -> None:
    """Raises ExportError: the form has no such kind, the file would not be recognised by its name, or it is a dataset's own."""
    kinds = [known for of, known in LINES if of == form]
    if kind != "sft" and kind not in kinds:
        raise ExportError(
            f"{form} has no form for {kind}",
            f"--to trl --kind {kind}" + ("" if kinds else ", or leave --kind out"),
        )
    suffix = ".jsonl" if kinds else ".parquet"
    if out.suffix != suffix:
        raise ExportError(
            f"{out} should end with {suffix}: {form} reads files by their name",
            f"--out {out.with_suffix(suffix)}",
        )
    if out.name in (PARQUET, LOST_ROWS) and (out.parent / MANIFEST).exists():
        raise ExportError(f"{out} is a file of the dataset {out.parent}", "choose another file with --out")


def export(chosen: Chosen, form: str, kind: str, out: Path, config: Config) -> Exported:
    """Write a file; it appears once it is whole.

    Args:
        form: of `FORMS`.
        kind: of `KINDS`; `sft` for what knows no kinds.
        config: its tasks know the right answers, for verl.

    Raises:
        DatasetError: the folder is no finished dataset.
        ExportError: there is nothing to write, the form has no such kind, or the file cannot be written.
    """
    check_form(form, kind, out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if lines := LINES.get((form, kind)):
            records = _write_lines(temporary, lines(chosen), schema_first=form != "openai")
        elif form == "verl":
            records = _write_tables(
                temporary, [tables.verl(chosen, tables.expected_answers(read_tasks(config)))]
            )
        else:
            records = _write_tables(temporary, tables.episodes(chosen))
        if not records:
            why = _WHY_NONE.get(
                kind,
                "no row is usable"
                if chosen.min_reward is None and chosen.split is None
                else "no usable row is left",
            )
            raise ExportError(
                f"nothing to export from {chosen.folder}: {why}", f"spanloop dataset show {chosen.folder}"
            )
        temporary.replace(out)
    except (OSError, pa.ArrowException) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ExportError(f"{out} cannot be written: {why}", "choose another file with --out") from error
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(out, form, kind, records)


def _write_lines(path: Path, lines: Iterable[dict[str, Any]], *, schema_first: bool) -> int:
    """Write lines of JSON.

    Args:
        schema_first: a line that has a field, or a type in it, that none had before goes to the beginning: `datasets` takes the
            columns of a file from its first 10 MB, and cannot read on where more of them come later.
    """
    number, seen, first = 0, set[str](), list[str]()
    rest = path.with_name(f"{path.name}.rest")
    try:
        with rest.open("w", encoding="utf-8") as file:
            for line in lines:
                number += 1
                # JSON may name half a surrogate pair, which no file can hold.
                text = whole_text(json.dumps(line, ensure_ascii=False)) + "\n"
                found = set(_fields(line)) if schema_first else set()
                if found <= seen:
                    file.write(text)
                else:
                    first.append(text)
                    seen |= found
        with path.open("wb") as whole, rest.open("rb") as file_of_rest:
            whole.writelines(text.encode() for text in first)
            shutil.copyfileobj(file_of_rest, whole, 1 << 20)
    finally:
        rest.unlink(missing_ok=True)
    return number


def _fields(value: Any, name: str = "") -> Iterator[str]:
    """What Arrow makes a schema of: the path and the type of every value in a line."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _fields(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner, f"{name}[]")
    elif value is not None:
        yield f"{name}: {type(value).__name__}"


def _write_tables(path: Path, frames: Iterable[pl.DataFrame]) -> int:
    number, writer = 0, None
    try:
        for frame in frames:
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            number += frame.height
    finally:
        if writer is not None:
            writer.close()
    return number
