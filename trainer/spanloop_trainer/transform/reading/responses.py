"""Items of the Responses API as a chat: one message a turn of the assistant, one id a tool call.

Source: OpenAI, Responses API. Each function call of a turn is an item of its own there, which has an id (`fc_…`) beside the `call_id` that its
result names. Instrumentations record items one by one, and one id or the other: in answers another than in the history, some of them.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from spanloop_trainer.transform.flavours import Flag, chat

_IDS = r'"id": "([^"\\]*)", "type": "function"'
_PAIRED = (pl.col("flags") & int(Flag.PAIRED_BY_ORDER)) != 0


def calls_of(calls: pl.DataFrame) -> pl.Series:
    """`at` of calls that the Responses API answered."""
    return calls.filter(pl.col("response_id").str.starts_with("resp_").fill_null(value=False))["at"]


def as_chat(
    prompts: pl.DataFrame, responses: pl.Series, coded: Callable[[pl.DataFrame], pl.DataFrame]
) -> pl.DataFrame:
    """Prompts in which such items are messages of a chat.

    Args:
        prompts: a row a message: `at`, and the fields of `Message`, coded.
        responses: `calls_of`.
        coded: makes codes of `key`, and `act`, of uncoded messages.

    Returns:
        The prompts with `loose` (bool): of an assistant's message whose call ids may differ from those in the answer that it was.
    """
    ats = pl.concat([responses, prompts.filter(_PAIRED)["at"]]).unique()
    if ats.is_empty():
        return prompts.with_columns(pl.lit(value=False).alias("loose"))
    of_items = pl.col("at").is_in(ats.implode())
    items = _merged(prompts.filter(of_items), coded)
    items = _paired(items).with_columns(
        ((pl.col("role") == "assistant") & (pl.col("tool_calls") > 0)).alias("loose")
    )
    rest = prompts.filter(~of_items).with_columns(pl.lit(value=False).alias("loose"))
    return pl.concat([rest, items.select(rest.columns)]).sort("at", maintain_order=True)


def _merged(items: pl.DataFrame, coded: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """Neighbouring messages of the assistant in one."""
    said = pl.col("role") == "assistant"
    begins = ~(said & said.shift(1, fill_value=False).over("at"))
    runs = items.with_columns(begins.cum_sum().over("at").alias("run"))
    several = runs.filter(pl.len().over("at", "run") > 1)
    if several.is_empty():
        return items
    together = several.group_by("at", "run", maintain_order=True).agg(
        pl.col("chat"), pl.col("choice").first(), pl.col("flags").bitwise_or()
    )
    together = together.with_columns(pl.col("chat").list.join("\n").alias("chats"))
    distinct = together.unique("chats", maintain_order=True)
    rows = [chat.merged(chats) for chats in distinct["chat"].to_list()]
    names = ("chat", "key", "role", "text", "finish", "tool_calls")
    kinds = {"tool_calls": pl.Int32}
    table = coded(
        pl.DataFrame(
            [row[: len(names)] for row in rows],
            schema={name: kinds.get(name, pl.String) for name in names},
            orient="row",
        )
    )
    joined = together.drop("chat").join(
        table.with_columns(distinct["chats"]), on="chats", how="left", maintain_order="left"
    )
    single = runs.filter(pl.len().over("at", "run") == 1)
    return (
        pl.concat([single, joined.select(single.columns)]).sort("at", "run", maintain_order=True).drop("run")
    )


def _paired(items: pl.DataFrame) -> pl.DataFrame:
    """The id that a result names, in the call that it is of: where they differ, the n-th of a turn is that of the n-th."""
    items = items.with_row_index("place").with_columns(
        (pl.col("role") == "assistant").cum_sum().over("at").alias("turn")
    )
    turn = ["at", "turn"]
    calls = (
        items.filter((pl.col("role") == "assistant") & (pl.col("tool_calls") > 0))
        .select("place", *turn, pl.col("chat").str.extract_all(_IDS).alias("id"))
        .explode("id", empty_as_null=False)
        .with_columns(pl.col("id").str.extract(_IDS))
    )
    results = items.filter(pl.col("role") == "tool").select(
        *turn, pl.col("chat").str.extract(r'"tool_call_id": "([^"\\]*)"').alias("id")
    )
    number = pl.int_range(0, pl.len()).over(turn).alias("number")
    apart = calls.join(results, on=[*turn, "id"], how="anti", maintain_order="left").with_columns(number)
    named = results.join(calls, on=[*turn, "id"], how="anti", maintain_order="left").with_columns(number)
    pairs = apart.join(named, on=[*turn, "number"], suffix="_named").sort("place", "number")
    if pairs.is_empty():
        return items.drop("place", "turn")
    changes = (
        pairs.group_by("place", maintain_order=True)
        .agg("id", "id_named")
        .join(items.select("place", "chat"), on="place", maintain_order="left")
    )
    same = pl.concat_str("chat", pl.col("id_named").list.join("\n"), separator="\n").alias("same")
    changes = changes.with_columns(same)
    distinct = changes.unique("same", maintain_order=True)
    new = [_renamed(*row) for row in distinct.select("chat", "id", "id_named").iter_rows()]
    table = distinct.select("same", pl.Series("new", new, dtype=pl.String))
    changes = changes.join(table, on="same", maintain_order="left").select("place", "new")
    return (
        items.join(changes, on="place", how="left", maintain_order="left")
        .with_columns(pl.coalesce("new", "chat").alias("chat"))
        .drop("place", "turn", "new")
    )


def _renamed(text: str, old: list[str], new: list[str]) -> str:
    for before, after in zip(old, new, strict=True):
        text = text.replace(
            f'"id": "{before}", "type": "function"', f'"id": "{after}", "type": "function"', 1
        )
    return text


def loosely(answers: pl.DataFrame, responses: pl.Series) -> pl.DataFrame:
    """Answers in which a call's id may not be that of the history: what they do stands for them in chains (`Prefix`)."""
    loose = pl.col("at").is_in(responses.implode()) & (pl.col("tool_calls") > 0) & ~_PAIRED
    return answers.with_columns(pl.when(loose).then("act").otherwise("key").alias("key"))


def with_loose_prefixes(whole: pl.DataFrame, messages: pl.DataFrame) -> pl.DataFrame:
    """Prompts with a second code for prefixes that end with a loose message.

    Args:
        whole: a row a prompt: `at`, `prefixes`.
        messages: `at`, `place`, `loose`, `key`, `act`, `code` (of the prefix).
    """
    loose = messages.filter("loose")
    if loose.is_empty():
        return whole
    code = (
        pl.col("code")
        - pl.struct("place", "key").hash()
        + pl.struct("place", pl.col("act").alias("key")).hash()
    )
    more = loose.group_by("at", maintain_order=True).agg(
        pl.struct((pl.col("place") + 1).alias("length"), code.alias("code")).alias("more")
    )
    return (
        whole.join(more, on="at", how="left", maintain_order="left")
        .with_columns(
            pl.when(pl.col("more").is_not_null())
            .then(pl.concat_list("prefixes", "more"))
            .otherwise("prefixes")
            .alias("prefixes")
        )
        .drop("more")
    )
