"""Raw recorded messages to OpenAI chat form, working once per *distinct* message.

A conversation of n turns repeats its first message n times; the distinct ones grow with the number of turns, the
repeated ones with its square. So only distinct messages meet Python, and Polars joins the results back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import polars as pl

from spanloop_trainer.transform.flavours import Flag, Message, flavours
from spanloop_trainer.transform.reading.hashes import prompt_hash
from spanloop_trainer.transform.reading.responses import as_chat, calls_of, loosely, with_loose_prefixes

_MESSAGE = {
    "chat": pl.String,
    "key": pl.String,
    "role": pl.String,
    "text": pl.String,
    "finish": pl.String,
    "tool_calls": pl.Int32,
    "flags": pl.UInt16,
}
# `act` says what an answer does: its text, or its tool calls without their ids. Equal acts are the same step taken again. `key` is the
# hash of all of it, ids too.
ANSWER = pl.Struct(
    {
        "choice": pl.Int32, "finish": pl.String, "tool_calls": pl.Int32, "code": pl.UInt64, "act": pl.UInt64, "key": pl.UInt64,
    }
)  # fmt: skip
_NOTHING = (None,) * len(_MESSAGE)
# Calls that are worth a thread.
_MANY = 5000
PREFIX = pl.Struct({"length": pl.Int32, "code": pl.UInt64})
# A part of a message whose type is not `text`.
_NO_TEXT_PART = r'\{"type": "(?:[^t]|t[^e]|te[^x]|tex[^t]|text[^"])'


def read_messages(calls: pl.DataFrame) -> pl.DataFrame:
    """Read the raw messages of calls: `flavour`, `input`, `output`, `input_verbatim`, `output_verbatim`, `tools`, `invalid`.

    Returns:
        The calls, in their order, without the raw columns, and with:

        - `messages` (list of str): the prompt, a JSON object a message; null: none, or of an invalid call;
        - `prefixes` (list of struct): `length` and `code` of every prefix of it that ends with an assistant's message. A code
          says what chains compare: equal codes are equal messages in equal places;
        - `prompt_code` (u64): of all of it; `length` (i32): its number of messages;
        - `answered` (u64): the act (see `ANSWER`) of its last assistant's message; null: none; `answered_key` (u64): its key; `shown`
          (u64): the acts of all messages behind it, which are tools' results or a user's turn as a rule;
        - `answers` (list of struct): `choice`, `finish`, `tool_calls`, `act` and `code`, which is that of the prompt with this
          answer behind it; empty: none;
        - `chats`, `texts` (list of str): their JSON and their plain text, aligned with `answers`;
        - `prompt_hash` (str): `prompt:HASH` of the first system message; null: none;
        - `asked` (str): `hashes.prompt_hash` of the first user message, with another hash behind it where an image or a file makes
          the question; null: none;
        - `tools_json` (str): OpenAI form; null: none, or it does not parse;
        - `flags` (u16): of `Flag`, those of its messages too;
        - `invalid` also where a message, an answer or a tool definition has a shape that is not known.
    """
    # Polars works through a column's regular expressions on one core, and lets others run meanwhile.
    parts = min(pl.thread_pool_size(), calls.height // _MANY)
    if parts < 2:
        return _read_some(calls)
    rows = -(-calls.height // parts)
    with ThreadPoolExecutor(parts) as pool:
        return pl.concat(pool.map(_read_some, calls.iter_slices(rows)))


def _read_some(calls: pl.DataFrame) -> pl.DataFrame:
    calls = _reslice(_reslice(calls, "input"), "output").with_row_index("at")
    known = flavours()
    prompts = _read(calls, "input", {flavour.name: flavour.prompt for flavour in known})
    answers = _read(calls, "output", {flavour.name: _several(flavour.answer) for flavour in known})
    bad = pl.concat([frame.filter(pl.col("chat").is_null())["at"] for frame in (prompts, answers)]).unique()
    calls = calls.join(_tools(calls), on=["flavour", "tools"], how="left", maintain_order="left")
    responses = calls_of(calls)
    whole = _prompts(as_chat(prompts.filter(pl.col("chat").is_not_null()), responses, _coded))
    return (
        calls.with_columns(
            pl.col("invalid")
            | pl.col("at").is_in(bad.implode())
            | ((pl.col("tools") != "") & pl.col("tools_json").is_null())
        )
        .join(whole, on="at", how="left", maintain_order="left")
        .join(
            _answers(loosely(answers.filter(pl.col("chat").is_not_null()), responses), whole),
            on="at",
            how="left",
            maintain_order="left",
        )
        .with_columns(
            pl.col("prompt_code").fill_null(0),
            pl.col("prefixes").fill_null(pl.lit([], dtype=pl.List(PREFIX))),
            pl.col("length").fill_null(0),
            pl.col("answers").fill_null(pl.lit([], dtype=pl.List(ANSWER))),
            pl.col("chats", "texts").fill_null(pl.lit([], dtype=pl.List(pl.String))),
            _flags(calls, prompts, answers),
        )
        .drop("at", "input", "output", "input_verbatim", "output_verbatim", "tools")
    )


def _flags(calls: pl.DataFrame, *messages: pl.DataFrame) -> pl.Series:
    """Of every call: what its span says, and what its messages say; few have any."""
    flags = calls["flags"].cast(pl.UInt16)
    flagged = pl.concat([frame.select("at", "flags").filter(pl.col("flags") != 0) for frame in messages])
    without_tools = calls.filter(pl.col("tools") == "").select("at")
    if without_tools.height:
        called = pl.concat([frame.filter(pl.col("tool_calls") > 0).select("at") for frame in messages])
        called = called.unique().join(without_tools, on="at", how="semi")
        flagged = pl.concat(
            [flagged, called.with_columns(pl.lit(Flag.UNKNOWN_TOOLS, pl.UInt16).alias("flags"))]
        )
    if flagged.is_empty():
        return flags
    own = calls.select("at", flags).filter(pl.col("flags") != 0)
    together = pl.concat([own, flagged]).group_by("at").agg(pl.col("flags").bitwise_or())
    return calls.select("at").join(together, on="at", how="left", maintain_order="left")["flags"].fill_null(0)


def _prompts(prompts: pl.DataFrame) -> pl.DataFrame:
    """One row a call that has a prompt."""
    role, text = pl.col("role"), pl.col("text")
    # The rows of a call are neighbours: counting and adding up within them needs no window function, which takes ten times as long.
    run = prompts["at"].rle_id()
    first = (
        run.to_frame()
        .with_row_index("first")
        .unique("at", keep="first", maintain_order=True)["first"]
        .gather(run)
    )
    prompts = prompts.with_columns(
        (pl.int_range(pl.len(), dtype=pl.Int32) - first.cast(pl.Int32)).alias("place")
    )
    # The place is part of the code: a sum of codes then depends on the order of the messages.
    codes = prompts.select(pl.struct("place", "key").hash().alias("code"))["code"]
    # Sums wrap around, and so does their difference.
    acts = prompts["act"].cum_sum()
    prompts = prompts.with_columns(
        (codes.cum_sum() - (codes.cum_sum() - codes).gather(first)).alias("code"),
        acts.alias("acts"), (acts - prompts["act"]).alias("acts_before"),
    )  # fmt: skip
    whole = prompts.group_by("at", maintain_order=True).agg(
        pl.col("chat").alias("messages"),
        pl.struct((pl.col("place") + 1).alias("length"), "code")
        .filter(role == "assistant")
        .alias("prefixes"),
        pl.col("code").last().alias("prompt_code"),
        pl.col("act").filter(role == "assistant").last().alias("answered"),
        pl.col("key").filter(role == "assistant").last().alias("answered_key"),
        (
            pl.col("acts").last()
            - pl.coalesce(pl.col("acts").filter(role == "assistant").last(), pl.col("acts_before").first())
        ).alias("shown"),
        pl.len().cast(pl.Int32).alias("length"),
        text.filter(role.is_in(["system", "developer"])).first().alias("system_text"),
        text.filter(role == "user").first().alias("first_user"),
        pl.col("chat").filter(role == "user").first().alias("first_chat"),
    )
    return with_loose_prefixes(whole, prompts).select(
        pl.exclude("system_text", "first_user", "first_chat"),
        _system_hash(whole["system_text"]).alias("prompt_hash"),
        _asked(whole["first_user"], whole["first_chat"]).alias("asked"),
    )


def _asked(texts: pl.Series, chats: pl.Series) -> pl.Series:
    """One question about two images is two tasks."""
    asked = prompt_hash(texts)
    of_parts = chats.str.starts_with('{"role": "user", "content": [').fill_null(value=False).arg_true()
    parts = of_parts.filter(chats.gather(of_parts).str.contains(_NO_TEXT_PART))
    if parts.is_empty():
        return asked
    # `prompt_hash` of a message instead of a text; what it begins with is there already.
    wholes = prompt_hash(chats.gather(parts)).str.strip_prefix("prompt-")
    return asked.scatter(parts, asked.gather(parts) + "-" + wholes)


def _system_hash(texts: pl.Series) -> pl.Series:
    """`prompt:` and 64 bits of SHA-256 of every text: the same on every machine and in every version."""
    distinct = texts.drop_nulls().unique().alias("text")
    hashes = [f"prompt:{hashlib.sha256(text.encode()).hexdigest()[:16]}" for text in distinct.to_list()]
    table = pl.DataFrame([distinct, pl.Series("hash", hashes, dtype=pl.String)])
    return texts.alias("text").to_frame().join(table, on="text", how="left", maintain_order="left")["hash"]


def _answers(answers: pl.DataFrame, prompts: pl.DataFrame) -> pl.DataFrame:
    """One row a call that has an answer."""
    before = prompts.select("at", pl.col("length").alias("place"), "prompt_code")
    return (
        answers.join(before, on="at", how="left", maintain_order="left")
        .with_columns(pl.col("place").fill_null(0), pl.col("prompt_code").fill_null(0))
        .with_columns((pl.col("prompt_code") + pl.struct("place", "key").hash()).alias("code"))
        .group_by("at", maintain_order=True)
        .agg(
            pl.struct(list(ANSWER.to_schema())).alias("answers"),
            pl.col("chat").alias("chats"),
            pl.col("text").alias("texts"),
        )
    )


def _several(read: Callable[[str], Message | None]) -> Callable[[str], Sequence[Message] | None]:
    def wrapped(raw: str) -> Sequence[Message] | None:
        message = read(raw)
        return None if message is None else (message,)

    return wrapped


def _read(
    calls: pl.DataFrame, column: str, readers: dict[str, Callable[[str], Sequence[Message] | None]]
) -> pl.DataFrame:
    """`at`, `choice` (place of the raw message) and the fields of `Message`; null `chat` where the shape is unknown."""
    raw = (
        calls.filter(~pl.col("invalid") & (pl.col(column).list.len() > 0))
        .select("at", "flavour", pl.col(column).alias("raw"))
        .with_columns(pl.int_ranges(0, pl.col("raw").list.len(), dtype=pl.Int32).alias("choice"))
        .explode("raw", "choice")
    )
    read = []
    for (flavour,), of_flavour in raw.group_by("flavour", maintain_order=True):
        number, distinct = _numbered(of_flavour["raw"])
        table = _table(distinct, str(flavour), readers[str(flavour)])
        rows = of_flavour.select("at", "choice", number)
        if table["number"].n_unique() == table.height == distinct.len():
            # One message each, as nearly always: a place in the table, and no join.
            read.append(rows.drop("number").hstack(table.drop("number")[rows["number"]]))
        else:
            read.append(
                rows.join(table, on="number", how="inner", maintain_order="left_right").drop("number")
            )
    codes = {"key": pl.UInt64, "act": pl.UInt64}
    empty = pl.DataFrame(schema={"at": pl.UInt32, "choice": pl.Int32, **_MESSAGE, **codes})
    return pl.concat([empty, *read]) if len(read) < 2 else pl.concat(read).sort("at", maintain_order=True)


def _numbered(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The number of each value among the distinct ones, and these, in the order of their first appearance."""
    codes = values.hash().alias("code").to_frame().with_row_index("place")
    # Numbers are joined and not texts; that no two texts have one hash is checked, and then it is as good.
    first = codes.unique("code", keep="first", maintain_order=True).with_row_index("number")
    number = codes.join(first.select("code", "number"), on="code", how="left", maintain_order="left")[
        "number"
    ]
    distinct = values.gather(first["place"])
    if not (distinct.gather(number) == values).all():
        first = values.unique(maintain_order=True).alias("value").to_frame().with_row_index("number")
        whole = values.alias("value").to_frame().join(first, on="value", how="left", maintain_order="left")
        return whole["number"], first["value"]
    return number, distinct


def _table(
    distinct: pl.Series, flavour: str, reader: Callable[[str], Sequence[Message] | None]
) -> pl.DataFrame:
    """`number` and the fields of `Message` (`key` hashed) of distinct raw messages, in order."""
    quick = next(known.quick for known in flavours() if known.name == flavour)
    fast = pl.DataFrame(schema={"number": pl.UInt32, **_MESSAGE})
    slow = pl.int_range(0, distinct.len(), dtype=pl.UInt32, eager=True)
    if quick is not None:
        read = quick(distinct).with_row_index("number")
        if "flags" not in read.columns:
            read = read.with_columns(pl.lit(0, pl.UInt16).alias("flags"))
        fast, slow = (
            read.filter(pl.col("chat").is_not_null()),
            read.filter(pl.col("chat").is_null())["number"],
        )
    rows: list[tuple[int | str | None, ...]] = []
    for number, text in zip(slow.to_list(), distinct.gather(slow).to_list(), strict=True):
        messages = reader(text)
        if messages is None:
            rows.append((number, *_NOTHING))
        else:
            rows += [(number, *message) for message in messages]
    table = pl.DataFrame(rows, schema={"number": pl.UInt32, **_MESSAGE}, orient="row")
    if rows:
        fast = pl.concat([fast, table]).sort("number", maintain_order=True)
    return _coded(fast)


def _coded(table: pl.DataFrame) -> pl.DataFrame:
    """The messages with `key` hashed, and `act`: the hash of what a message says or calls, without the space around it."""
    act = table["text"].str.strip_chars().hash()
    # Of these alone: an expression with `when` would go through the texts of all.
    calls = (table["tool_calls"] > 0).fill_null(value=False).arg_true()
    if calls.len():
        act = act.scatter(calls, _without_ids(table["key"].gather(calls)).hash())
    return table.with_columns(pl.col("key").hash(), act.alias("act"))


def _without_ids(calls: pl.Series) -> pl.Series:
    """Without the white space, too, in which writers of arguments differ."""
    calls = calls.str.replace_all(r'"id": "[^"\\]*"', "")
    # One literal at a time: a regular expression over all of them takes three times as long.
    for character in (" ", "\\", '"'):
        calls = calls.str.replace_all(character, "", literal=True)
    return calls


def _reslice(calls: pl.DataFrame, column: str) -> pl.DataFrame:
    """Slice again, keeping every digit, the few arrays that hold a number longer than 64 bits."""
    whole = f"{column}_verbatim"
    place = "place"
    long = calls.with_row_index(place).filter(pl.col(whole) != "").select(place, whole, column)
    if long.is_empty():
        return calls
    sliced = []
    for text, old in zip(long[whole].to_list(), long[column].to_list(), strict=True):
        new = [json.dumps(message) for message in json.loads(text)] if old else []
        # The engine put the system instructions before the messages; they stay.
        sliced.append(old[: len(old) - len(new)] + new)
    fixed = long.select(place, pl.Series("fixed", sliced, dtype=pl.List(pl.String)))
    return (
        calls.with_row_index(place)
        .join(fixed, on=place, how="left", maintain_order="left")
        .with_columns(pl.coalesce("fixed", column).alias(column))
        .drop("fixed", place)
    )


def _tools(calls: pl.DataFrame) -> pl.DataFrame:
    """`flavour`, `tools` and `tools_json` for every distinct tool list; null where it does not parse."""
    distinct = calls.filter(pl.col("tools") != "").select("flavour", "tools").unique()
    readers = {flavour.name: flavour.tools for flavour in flavours()}
    parsed = [readers[name](text) for name, text in distinct.iter_rows()]
    return distinct.with_columns(pl.Series("tools_json", parsed, dtype=pl.String))
