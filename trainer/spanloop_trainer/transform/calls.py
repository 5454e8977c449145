"""One row a model call: status decided, twins removed, the stamps of gateway and exporter merged in."""

from __future__ import annotations

import polars as pl

from spanloop_trainer.transform.funnel import Funnel

_STAMP = (
    "served_version", "prompt_version", "prompt_requested", "tokens", "tokens_code", "gateway_seed",
    "gateway_temperature", "gateway_top_p", "gateway_max_tokens",
)  # fmt: skip
_TOKENS = ("tokens", "tokens_code")


def distinct_calls(calls: pl.DataFrame, funnel: Funnel) -> pl.DataFrame:
    """Drop calls without content and all but one of the spans that report one answer; number the rest (`row`).

    The twin with an answer wins, then the earliest: an outer wrapper's span often lacks the messages. What the exporter
    recorded on either of them is kept.
    The order of rows is canonical, so that nothing later depends on the order of the store.
    """
    with_content = calls.filter(pl.col("has_content"))
    funnel.lose("model call without recorded content", calls.height - with_content.height)
    ordered = with_content.sort(
        pl.col("answers").list.len() == 0, "start", "trace_id", "span_id"
    )  # False sorts first: calls with an answer
    has_id = _share_own_stamps(ordered.filter(pl.col("response_id").is_not_null()))
    single = has_id.unique("response_id", keep="first", maintain_order=True)
    funnel.lose("twin: another span reports the same response id", has_id.height - single.height)
    kept = pl.concat([single, ordered.filter(pl.col("response_id").is_null())])
    return kept.sort("start", "trace_id", "span_id").with_row_index("row")


def _share_own_stamps(calls: pl.DataFrame) -> pl.DataFrame:
    """Give every twin what the exporter wrote on one of them.

    Some servers number their answers anew every thousand: an id with two versions, or two lists of tokens, is of two calls,
    and each keeps what is its own.
    """
    names = ["own_served_version", *(f"own_{name}" for name in _TOKENS)]
    own = calls.filter(_has_tokens("own_") | pl.col("own_served_version").is_not_null())
    if own.is_empty():
        return calls
    known = (
        own.sort(_has_tokens("own_"), descending=True, maintain_order=True)
        .group_by("response_id", maintain_order=True)
        .agg(
            pl.col("own_served_version").drop_nulls().first(),
            *(pl.col(f"own_{name}").first() for name in _TOKENS),
            pl.col("own_served_version").drop_nulls().n_unique().alias("versions"),
            pl.col("own_tokens_code").drop_nulls().n_unique().alias("answers"),
        )
        .filter((pl.col("versions") <= 1) & (pl.col("answers") <= 1))
        .select("response_id", pl.lit(value=True).alias("known"), *names)
    )
    return calls.join(known, on="response_id", how="left", maintain_order="left", suffix="_known").select(
        pl.when("known").then(f"{name}_known").otherwise(name).alias(name) if name in names else name
        for name in calls.columns
    )


def _has_tokens(prefix: str = "") -> pl.Expr:
    return pl.col(f"{prefix}tokens_code").is_not_null()


def merge_gateway(calls: pl.DataFrame, gateway: pl.DataFrame, funnel: Funnel) -> pl.DataFrame:
    """Add the stamp of the gateway's span with the same response id; without one, of its child in the trace.

    Where the gateway has no tokens, or no version, the exporter's own record of the answer stands in.
    """
    stamps = gateway.sort("start", "trace_id", "span_id")
    by_id = stamps.filter(pl.col("response_id").is_not_null()).unique(
        "response_id", keep="first", maintain_order=True
    )
    by_parent = stamps.unique(["trace_id", "parent_span_id"], keep="last", maintain_order=True)
    merged = calls.join(
        by_id.select("response_id", *_STAMP, pl.col("span_id").alias("gateway_span")), on="response_id", how="left"
    ).join(
        # A failed call has no response id; its last attempt is the gateway's last span under it.
        by_parent.select(
            "trace_id", pl.col("parent_span_id").alias("span_id"), pl.col("span_id").alias("gateway_span_child"),
            *(pl.col(name).alias(f"{name}_child") for name in _STAMP),
        ),
        on=["trace_id", "span_id"],
        how="left",
    )  # fmt: skip
    by_child = pl.col("gateway_span").is_null() & pl.col("response_id").is_null()
    merged = merged.with_columns(
        pl.when(by_child).then(f"{name}_child").otherwise(name).alias(name)
        for name in ("gateway_span", *_STAMP)
    )
    used = gateway.join(merged, left_on="span_id", right_on="gateway_span", how="semi")
    funnel.count("gateway_spans_merged", used.height)
    # Spans from after the window's end were only read for the calls before it.
    unused = gateway.filter("in_window").join(used, on="span_id", how="anti")
    repeated = unused.filter(
        pl.col("response_id").is_in(used["response_id"].drop_nulls().implode()).fill_null(False)
    )
    unused = unused.join(repeated, on="span_id", how="anti")
    retries = unused.join(
        calls, left_on=["trace_id", "parent_span_id"], right_on=["trace_id", "span_id"], how="semi"
    )
    funnel.lose("gateway span of an answer that has one already", repeated.height)
    funnel.lose("gateway span of an attempt that the client repeated", retries.height)
    funnel.lose(
        "gateway span without the agent's span (among the services asked for)", unused.height - retries.height
    )
    # Ids and log-probabilities of one answer come from one source, since they must align.
    merged = merged.with_columns(
        pl.coalesce("served_version", "own_served_version").alias("served_version"),
        *(
            pl.when(_has_tokens() | ~_has_tokens("own_")).then(name).otherwise(f"own_{name}").alias(name)
            for name in _TOKENS
        ),
    )
    drop = [name for name in merged.columns if name.endswith("_child") or name.startswith("own_")]
    return merged.drop(drop).sort("row")


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
