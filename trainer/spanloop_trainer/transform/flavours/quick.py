"""The commonest messages of `gen_ai`, read by Polars: one text, one tool call, one tool result.

`chat.read` is the definition: for every message that this module reads, the two give the same (a property test holds
them together), and what it does not read it leaves to that function. It exists for speed alone: five of six messages
are of these shapes, and a regular expression over a column costs a tenth of a function call in Python.
"""

from __future__ import annotations

import polars as pl

from spanloop_trainer.transform.flavours.chat import CALLING

# Inside of a JSON string whose escapes Python's `json` writes the same way: no \\/, no \\u, no control character.
_INSIDE = r'(?:[^"\\\x00-\x1f]|\\["\\bfnrt])*'
_TEXT = f'"({_INSIDE})"'
# Numbers that Python reads and writes unchanged; longer ones lose digits or get an exponent.
_NUMBER = r"(?:0|-?[1-9][0-9]{0,17}|-?(?:0|[1-9][0-9]{0,8})\.[0-9]{0,3}[1-9])"
_VALUE = f'(?:"{_INSIDE}"|{_NUMBER}|true|false|null)'
# Keys without escapes, so that equal keys are equal text.
_PAIR = rf'"[^"\\\x00-\x1f]*":{_VALUE}'
_FLAT = rf"(\{{(?:{_PAIR}(?:,{_PAIR})*)?\}})"
# Of flat JSON: neither separators nor escapes in its strings.
_NO_SEPARATOR_INSIDE = r'^[^"\\]*(?:"[^",:\\]*"[^"\\]*)*$'
# The roles of the API; others are renamed.
_HEAD = r'^\{"role":"(system|developer|user|assistant|tool)","parts":\[\{'
_OTHERS = r'^\{"role":"(user|tool)","parts":\[\{'
_FINISH = r'(?:,"finish_reason":"([a-z_]+)")?(?:,"name":null)?'
_TAIL = rf"\}}\]{_FINISH}\}}$"
_ONE_TEXT = rf'{_HEAD}(?:"type":"text","content":{_TEXT}|"content":{_TEXT},"type":"text"){_TAIL}'
_ONE_RESULT = rf'{_OTHERS}"type":"tool_call_response","id":{_TEXT},"response":{_TEXT}{_TAIL}'
_ONE_CALL = (
    rf'{_HEAD}"type":"tool_call",(?:"name":{_TEXT},"id":{_TEXT}|"id":{_TEXT},"name":{_TEXT}),'
    rf'"arguments":(?:{_TEXT}|{_FLAT}){_TAIL}'
)
_ESCAPED = ["\\\\", '\\"', "\\b", "\\f", "\\n", "\\r", "\\t"]
_PLAIN = ["\\", '"', "\b", "\f", "\n", "\r", "\t"]


def _group(number: int) -> pl.Expr:
    return pl.col("groups").struct.field(str(number))


def _joined(*parts: str | pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit(part) if isinstance(part, str) else part for part in parts)


def _plain(inside: pl.Expr) -> pl.Expr:
    """The string that stands between the quotes."""
    return (
        pl.when(inside.str.contains("\\", literal=True))
        .then(inside.str.replace_many(_ESCAPED, _PLAIN))
        .otherwise(inside)
    )


def _arguments(flat: pl.Series) -> pl.Series:
    """Flat JSON objects as `chat.dump` writes them (a space after each separator), as the inside of a JSON string."""
    spaced = flat.str.replace_all(",", ", ", literal=True).str.replace_all(":", ": ", literal=True)
    # Separators inside a string get none. Of these alone: the expression takes ten times as long.
    others = (~flat.str.contains(_NO_SEPARATOR_INSIDE)).fill_null(value=False).arg_true()
    if others.len():
        # A pair's key, or a value that is not the last, with the separator behind it; the last one's bracket gets a space too.
        shape = rf'("{_INSIDE}"|[^",:{{}}]+)([,:}}])'
        spaced = spaced.scatter(
            others, flat.gather(others).str.replace_all(shape, "$1$2 ").str.strip_suffix(" ")
        )
    return spaced.str.replace_many(["\\", '"'], ["\\\\", '\\"'])


def _keys_differ(flat: pl.Expr) -> pl.Expr:
    """Of equal keys Python keeps the last. What looks like a key inside a string only sends the message to Python."""
    keys = flat.str.extract_all(r'"[^"\\]*":')
    return ~flat.str.contains(",", literal=True) | (keys.list.n_unique() == keys.list.len())


def messages(raw: pl.Series) -> pl.DataFrame:
    """Read many raw messages.

    Returns:
        One row each, in order: the fields of `Message`; null `chat`: left to `chat.read`.
    """
    frame = raw.alias("raw").to_frame().with_row_index("place")
    found = [_NOTHING.to_frame()]
    for shape, read in ((_ONE_TEXT, _texts), (_ONE_RESULT, _results), (_ONE_CALL, _calls)):
        hits, frame = _split(frame, shape)
        # On few messages, setting out to read none takes longer than reading.
        if hits.height:
            found.append(read(hits).select(_NOTHING.names()))
        if frame.is_empty():
            break
    return (
        pl.DataFrame({"place": pl.int_range(0, raw.len(), dtype=pl.UInt32, eager=True)})
        .join(pl.concat(found), on="place", how="left", maintain_order="left")
        .select("chat", pl.col("chat").alias("key"), "role", "text", "finish", "tool_calls")
    )


_NOTHING = pl.Schema(
    {
        "place": pl.UInt32(), "chat": pl.String(), "role": pl.String(), "text": pl.String(), "finish": pl.String(),
        "tool_calls": pl.Int32(),
    }
)  # fmt: skip


def _texts(hits: pl.DataFrame) -> pl.DataFrame:
    role, inside = _group(1), pl.coalesce(_group(2), _group(3))
    # A text that ends as calls do: what it called was not recorded, and `chat.read` says so.
    said = ~_group(4).is_in(CALLING).fill_null(value=False)
    return hits.filter(said).select(
        "place",
        _joined('{"role": "', role, '", "content": "', inside, '"}').alias("chat"),
        role.alias("role"), _plain(inside).alias("text"), _group(4).alias("finish"), pl.lit(0, pl.Int32).alias("tool_calls"),
    )  # fmt: skip


def _results(hits: pl.DataFrame) -> pl.DataFrame:
    return hits.select(
        "place",
        _joined('{"role": "tool", "tool_call_id": "', _group(2), '", "content": "', _group(3), '"}').alias("chat"),
        pl.lit("tool").alias("role"), _plain(_group(3)).alias("text"), pl.lit(None, pl.String).alias("finish"),
        pl.lit(0, pl.Int32).alias("tool_calls"),
    )  # fmt: skip


def _calls(hits: pl.DataFrame) -> pl.DataFrame:
    role, name, identity = _group(1), pl.coalesce(_group(2), _group(5)), pl.coalesce(_group(3), _group(4))
    flat = _group(7)
    # Ids of the Responses API carry a flag.
    plain = ~identity.str.starts_with("fc_") & (flat.is_null() | _keys_differ(flat))
    hits = hits.filter(plain)
    hits = hits.with_columns(_arguments(hits.select(flat.alias("arguments"))["arguments"]))
    return hits.select(
        "place",
        _joined(
            '{"role": "', role, '", "content": null, "tool_calls": [{"id": "', identity,
            '", "type": "function", "function": {"name": "', name, '", "arguments": "',
            pl.coalesce(_group(6), "arguments"), '"}}]}',
        ).alias("chat"),
        role.alias("role"), pl.lit(None, pl.String).alias("text"), _group(8).alias("finish"),
        pl.lit(1, pl.Int32).alias("tool_calls"),
    )  # fmt: skip


def _split(frame: pl.DataFrame, shape: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows that have this shape, with its `groups`, and the others."""
    # The first group is the role, which every shape has.
    frame = frame.with_columns(pl.col("raw").str.extract_groups(shape).alias("groups"))
    hit = _group(1).is_not_null()
    return frame.filter(hit), frame.filter(~hit).drop("groups")
