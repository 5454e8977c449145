"""One row a model call: status decided, twins removed, the stamps of gateway and exporter merged in."""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from spanloop_trainer.transform.calls.tree import Tree, said
from spanloop_trainer.transform.calls.twins import without_twins
from spanloop_trainer.transform.flavours import Flag
from spanloop_trainer.transform.funnel import Funnel

_STAMP = (
    "served_version", "prompt_version", "prompt_requested", "tokens", "tokens_code", "gateway_seed",
    "gateway_temperature", "gateway_top_p", "gateway_max_tokens",
)  # fmt: skip
_TOKENS = ("tokens", "tokens_code")
_IDS = ("session", "rollout", "explicit_task", "span_agent", "response_id")
# Clocks of the agent's machine and the gateway's differ by less than this.
_SKEW = timedelta(seconds=5)


def distinct_calls(calls: pl.DataFrame, tree: Tree, funnel: Funnel) -> pl.DataFrame:
    """One row a call that has content, numbered (`row`); spans that report a call again are counted and gone (see `twins`).

    The order of rows is canonical, so that nothing later depends on the order of the store; of calls of one moment, the shorter prompt
    comes first.
    """
    calls = calls.with_columns(map(said, _IDS))
    distinct = without_twins(calls.sort("start", "trace_id", "span_id"), tree, funnel)
    with_content = distinct.filter(pl.col("has_content"))
    lost = distinct.filter(~pl.col("has_content"))
    funnel.lose("model call without recorded content", lost.height, lost)
    cached = with_content.filter((pl.col("flags") & Flag.CACHED.value) != 0)
    funnel.count("answered_from_a_cache", cached.height)
    return with_content.sort("start", "length", "trace_id", "span_id").with_row_index("row")


def _has_tokens(prefix: str = "") -> pl.Expr:
    return pl.col(f"{prefix}tokens_code").is_not_null()


def merge_gateway(calls: pl.DataFrame, gateway: pl.DataFrame, funnel: Funnel) -> pl.DataFrame:
    """Add the stamp of the gateway's span with the same response id; without one, of its child in the trace.

    Where the gateway has no tokens, or no version, the exporter's own record of the answer stands in.
    """
    if gateway.height:
        merged = _stamped(calls, gateway)
    else:
        none = {
            "gateway_trace": pl.String(),
            "gateway_span": pl.String(),
            **{name: gateway.schema[name] for name in _STAMP},
        }
        merged = calls.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in none.items())
    _count_gateway(merged, gateway, funnel)
    # Ids and log-probabilities of one answer come from one source, since they must align.
    merged = merged.with_columns(
        pl.coalesce("served_version", "own_served_version").alias("served_version"),
        *(
            pl.when(_has_tokens() | ~_has_tokens("own_")).then(name).otherwise(f"own_{name}").alias(name)
            for name in _TOKENS
        ),
    )
    drop = [name for name in merged.columns if name.startswith("own_")]
    return merged.drop(drop, "gateway_trace").sort("row")


def _stamped(calls: pl.DataFrame, gateway: pl.DataFrame) -> pl.DataFrame:
    stamps = gateway.sort("start", "trace_id", "span_id")
    by_parent = stamps.unique(["trace_id", "parent_span_id"], keep="last", maintain_order=True)
    merged = calls.join(
        _by_response_id(calls, stamps),
        on="row", how="left", maintain_order="left",
    ).join(
        # A failed call has no response id; its last attempt is the gateway's last span under it.
        by_parent.select(
            "trace_id", pl.col("parent_span_id").alias("span_id"), pl.col("trace_id").alias("gateway_trace_child"),
            pl.col("span_id").alias("gateway_span_child"), *(pl.col(name).alias(f"{name}_child") for name in _STAMP),
        ),
        on=["trace_id", "span_id"],
        how="left",
    )  # fmt: skip
    by_child = pl.col("gateway_span").is_null() & pl.col("response_id").is_null()
    merged = merged.with_columns(
        pl.when(by_child).then(f"{name}_child").otherwise(name).alias(name)
        for name in ("gateway_trace", "gateway_span", *_STAMP)
    )
    return merged.drop(name for name in merged.columns if name.endswith("_child"))


def _count_gateway(calls: pl.DataFrame, gateway: pl.DataFrame, funnel: Funnel) -> None:
    """What became of the gateway's spans.

    Args:
        calls: with `gateway_trace` and `gateway_span`.
    """
    key = ["trace_id", "span_id"]
    stamped = calls.select(
        trace_id="gateway_trace", span_id="gateway_span"
    )  # a span's id may be in two traces
    used = gateway.join(stamped, on=key, how="semi")
    funnel.count("gateway_spans_merged", used.height)
    # Spans from after the window's end were only read for the calls before it.
    unused = gateway.filter("in_window").join(used, on=key, how="anti")
    repeated = unused.filter(
        pl.col("response_id").is_in(used["response_id"].drop_nulls().implode()).fill_null(False)
    )
    unused = unused.join(repeated, on=key, how="anti")
    retries = unused.join(
        calls, left_on=["trace_id", "parent_span_id"], right_on=["trace_id", "span_id"], how="semi"
    )
    funnel.lose("gateway span of an answer that has one already", repeated.height, repeated)
    funnel.lose("gateway span of an attempt that the client repeated", retries.height, retries)
    alone = unused.join(retries, on=key, how="anti")
    funnel.lose("gateway span without the agent's span (among the services asked for)", alone.height, alone)


def _by_response_id(calls: pl.DataFrame, stamps: pl.DataFrame) -> pl.DataFrame:
    """`row` of each call, and `gateway_trace`, `gateway_span` and stamp of its answer, where there is one.

    An id that a server gave to several answers names none of them: the gateway's span then goes to the call that it stands below, else
    to the nearest in time.
    """
    named = calls.filter(pl.col("response_id").is_not_null())
    stamps = stamps.filter(pl.col("response_id").is_not_null())
    twice = [frame.filter(pl.col("response_id").is_duplicated())["response_id"] for frame in (named, stamps)]
    repeated = pl.col("response_id").is_in(pl.concat(twice).unique().implode())
    once = named.filter(~repeated).select("row", "response_id")
    found = [once.join(stamps, on="response_id", how="inner", maintain_order="left")]
    several = named.filter(repeated).select("row", "response_id", "trace_id", "span_id", "start")
    if several.height and stamps.height:
        below = several.select("row", "response_id", "trace_id", pl.col("span_id").alias("parent_span_id")).join(
            stamps, on=["response_id", "trace_id", "parent_span_id"], how="inner", maintain_order="left_right"
        )  # fmt: skip
        below = below.unique("row", keep="first", maintain_order=True)
        others = stamps.join(below, on=["trace_id", "span_id"], how="anti")
        near = (
            others.join_asof(
                several.join(below, on="row", how="anti")
                .select("row", "response_id", "start", pl.col("start").alias("begun")).sort("start", "row"),
                on="start", by="response_id", strategy="nearest", tolerance=_SKEW, check_sortedness=False,
            )
            .filter(pl.col("row").is_not_null())
            .sort((pl.col("start") - pl.col("begun")).abs(), "start", "trace_id", "span_id")
            .unique("row", keep="first", maintain_order=True)
        )  # fmt: skip
        found += [below, near]
    place = (pl.col("trace_id").alias("gateway_trace"), pl.col("span_id").alias("gateway_span"))
    return pl.concat([frame.select("row", *place, *_STAMP) for frame in found])


def with_status(calls: pl.DataFrame) -> pl.DataFrame:
    """Add `status`.

    A stream that was cut has status OK, no finish reason and no usage: `truncated`. A finish reason `length` is a whole
    action (the policy sampled every token of it) and stays `ok`; the column `finish_reason` tells.
    """
    answers = pl.col("answers")
    finished = answers.list.eval(pl.element().struct.field("finish").is_not_null()).list.any()
    no_finish = ~finished.fill_null(value=False) & (pl.col("finish_reasons").list.len() == 0)
    return calls.with_columns(
        pl.when(pl.col("failed") | pl.col("error_type").is_not_null()).then(pl.lit("error"))
        .when("invalid").then(pl.lit("invalid"))
        .when((answers.list.len() == 0) | (no_finish & ~pl.col("has_usage"))).then(pl.lit("truncated"))
        .otherwise(pl.lit("ok")).alias("status")
    )  # fmt: skip


def refused() -> pl.Expr:
    """`refused`: an answer among `chats` is a refusal by OpenAI's field or part; a text that only says so is not guessed at."""
    marks = [pl.element().str.contains(mark, literal=True) for mark in ('"refusal": "', '"type": "refusal"')]
    return pl.col("chats").list.eval(marks[0] | marks[1]).list.any().fill_null(value=False).alias("refused")
