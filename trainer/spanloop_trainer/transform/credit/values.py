"""The value of every state, as somebody else estimated it: a Parquet file beside `spanloop.toml`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from spanloop_trainer.errors import ConfigError

COLUMNS = ("trace_id", "span_id", "choice", "value")
_HINT = "write trace_id, span_id (text), choice (integer) and value (number), one row an answer; nothing was written"


def read_values(path: Path | None) -> pl.DataFrame | None:
    """`trace_id`, `span_id`, `choice` (i32), `value` (f64; null: not known).

    Args:
        path: of `Config.values_path`; None gives None.

    Raises:
        ConfigError: no Parquet file, a column is missing or of another kind, or an answer has two rows.
    """
    if path is None:
        return None
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(
            f"values {path} cannot be read as Parquet: {str(error).splitlines()[0]}",
            "correct `values` under [credit]; nothing was written",
        ) from error
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise ConfigError(
            f"values {path} has no column {' and no '.join(missing)}; it has {', '.join(frame.columns) or 'none'}",
            _HINT,
        )
    schema = frame.schema
    for name, fits in (
        ("trace_id", schema["trace_id"] == pl.String),
        ("span_id", schema["span_id"] == pl.String),
        ("choice", schema["choice"].is_integer()),
        ("value", schema["value"].is_numeric()),
    ):
        if not fits:
            raise ConfigError(f"values {path}: column {name} is {schema[name]}", _HINT)
    # A choice beyond 32 bits is no answer's.
    choice = pl.col("choice").cast(pl.Int32, strict=False)
    frame = frame.select("trace_id", "span_id", choice, pl.col("value").cast(pl.Float64))
    twice = frame.filter(pl.struct("trace_id", "span_id", "choice").is_duplicated())
    if twice.height:
        trace, span, choice, _ = twice.sort("trace_id", "span_id", "choice").row(0)
        raise ConfigError(
            f"values {path} has {twice.height} rows for answers that it has twice, such as trace {trace}, span {span},"
            f" choice {choice}",
            _HINT,
        )
    return frame


def join_values(rows: pl.DataFrame, calls: pl.DataFrame, values: pl.DataFrame) -> pl.DataFrame:
    """`rows` with the column `value`.

    Args:
        rows: `row`, `choice`.
        calls: `row`, `trace_id`, `span_id`.
        values: of `read_values`.

    Raises:
        ConfigError: not one answer has a value, so that the file is of other traces.
    """
    keys = calls.select("row", "trace_id", "span_id")
    found = (
        rows.join(keys, on="row", how="left", maintain_order="left")
        .join(values, on=["trace_id", "span_id", "choice"], how="left", maintain_order="left")
        .drop("trace_id", "span_id")
    )
    if found.height and values.height and found["value"].null_count() == found.height:
        raise ConfigError(
            f"not one of {rows.height} answers is among the {values.height} rows of [credit] values",
            "make the values from a dataset of the same window; nothing was written",
        )
    return found
