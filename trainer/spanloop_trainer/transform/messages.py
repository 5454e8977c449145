"""Raw recorded messages to OpenAI chat form, working once per *distinct* message.

A conversation of n turns repeats its first message n times; the distinct ones grow with the number of turns, the
repeated ones with its square. So only distinct messages meet Python, and Polars joins the results back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from spanloop_trainer.transform.flavours import Message, flavours

_MESSAGE = {
    "chat": pl.String,
    "key": pl.String,
    "role": pl.String,
    "text": pl.String,
    "finish": pl.String,
    "tool_calls": pl.Int32,
}


@dataclass(frozen=True)
class Messages:
    """Messages of all calls, one row each.

    Attributes:
        prompts: `row`, `place` (0, 1, …), `chat`, `role`, `text`, `code` (hash of what chains compare, with its place).
        answers: `row`, `choice`, `place` (the length of the prompt), `chat`, `text`, `finish`, `tool_calls`, `code`.
        unreadable: rows of calls with a message whose shape is unknown.
    """

    prompts: pl.DataFrame
    answers: pl.DataFrame
    unreadable: pl.Series


def _canonical(raw: pl.Series, read: Callable[[str], Message | None]) -> pl.DataFrame:
    """`raw` and the fields of `Message`, for distinct raw messages; null `chat` where the shape is unknown."""
    nothing = (None,) * len(_MESSAGE)
    rows = [read(text) or nothing for text in raw.to_list()]
    return pl.DataFrame(rows, schema=_MESSAGE, orient="row").with_columns(raw.alias("raw"))


def _reslice(calls: pl.DataFrame, column: str) -> pl.DataFrame:
    """Slice again, keeping every digit, the few arrays that hold a number longer than 64 bits."""
    whole = f"{column}_verbatim"
    long = calls.filter(pl.col(whole) != "").select("row", whole, column)
    if long.is_empty():
        return calls
    sliced = []
    for text, old in zip(long[whole].to_list(), long[column].to_list(), strict=True):
        new = [json.dumps(message) for message in json.loads(text)] if old else []
        # The engine put the system instructions before the messages; they stay.
        sliced.append(old[: len(old) - len(new)] + new)
    fixed = long.select("row", pl.Series("fixed", sliced, dtype=pl.List(pl.String)))
    return (
        calls.join(fixed, on="row", how="left")
        .with_columns(pl.coalesce("fixed", column).alias(column))
        .drop("fixed")
    )


def _exploded(calls: pl.DataFrame, column: str, place: str) -> pl.DataFrame:
    return (
        calls.filter(~pl.col("invalid"))
        .select("row", "flavour", pl.col(column).alias("raw"))
        .filter(pl.col("raw").list.len() > 0)
        .with_columns(pl.int_ranges(0, pl.col("raw").list.len(), dtype=pl.Int32).alias(place))
        .explode("raw", place)
    )


def read_messages(calls: pl.DataFrame) -> Messages:
    """Read the messages of `calls` (columns `row`, `flavour`, `input`, `output`, `invalid`, …)."""
    calls = _reslice(_reslice(calls, "input"), "output")
    prompts = _exploded(calls, "input", "place")
    answers = _exploded(calls, "output", "choice")
    distinct = pl.concat([prompts.select("flavour", "raw"), answers.select("flavour", "raw")]).unique()
    readers = {flavour.name: flavour.message for flavour in flavours()}
    tables = [
        _canonical(group["raw"], readers[str(name)]).with_columns(pl.lit(name).alias("flavour"))
        for (name,), group in distinct.partition_by("flavour", as_dict=True).items()
    ]
    schema = {**_MESSAGE, "raw": pl.String, "flavour": pl.String}
    table = pl.concat(tables) if tables else pl.DataFrame(schema=schema)
    table = table.with_columns(pl.col("key").hash().alias("key"))
    prompts = prompts.join(table, on=["flavour", "raw"], how="left", maintain_order="left").drop(
        "raw", "flavour"
    )
    answers = answers.join(table, on=["flavour", "raw"], how="left", maintain_order="left").drop(
        "raw", "flavour"
    )
    unreadable = pl.concat(
        [prompts.filter(pl.col("chat").is_null())["row"], answers.filter(pl.col("chat").is_null())["row"]]
    ).unique()
    lengths = prompts.group_by("row").agg(pl.len().cast(pl.Int32).alias("place"))
    answers = answers.join(lengths, on="row", how="left").with_columns(pl.col("place").fill_null(0))
    # The place is part of the code: a sum of codes then depends on the order of the messages.
    code = pl.struct("place", "key").hash().alias("code")
    return Messages(
        prompts.with_columns(code).drop("key"), answers.with_columns(code).drop("key"), unreadable
    )


def states(messages: Messages) -> pl.DataFrame:
    """`row`, `state` (JSON array), `system_text` and `first_user` (text of the first message of that role)."""
    return messages.prompts.sort("row", "place").group_by("row", maintain_order=True).agg(
        ("[" + pl.col("chat").str.join(",") + "]").alias("state"),
        pl.col("text").filter(pl.col("role").is_in(["system", "developer"])).first().alias("system_text"),
        pl.col("text").filter(pl.col("role") == "user").first().alias("first_user"),
    )  # fmt: skip


def tools(calls: pl.DataFrame) -> pl.DataFrame:
    """`flavour`, `tools` and `tools_json` for every distinct tool list; null where it does not parse."""
    distinct = calls.filter(pl.col("tools") != "").select("flavour", "tools").unique()
    readers = {flavour.name: flavour.tools for flavour in flavours()}
    parsed = [readers[name](text) for name, text in distinct.iter_rows()]
    return distinct.with_columns(pl.Series("tools_json", parsed, dtype=pl.String))
