"""Judgements by others: what of a call they may name, and the call that is meant."""

from __future__ import annotations

import polars as pl


def name_answers(
    judgements: pl.DataFrame, calls: pl.DataFrame, gateway: pl.DataFrame, ancestors: pl.DataFrame
) -> pl.DataFrame:
    """Give a judgement of a span the id of the answer that the span reports.

    One call may be reported by several spans, the gateway's among them, of which a dataset keeps one: a judgement of any of
    them is of the call. One that names a span alone gets its trace as well, if just one trace has such a span.

    Args:
        judgements: rows of table `rewards`.
        calls, gateway: all of them, twins too, with `trace_id`, `span_id` and `response_id`.
        ancestors: `trace_id` and `span_id` of the other spans of their traces.

    Returns:
        The judgements, in their order, with `of_call` (bool): a model call is judged, by its span or by its answer alone, whether the
        dataset keeps it or not.
    """
    by_answer = judgements.filter((pl.col("span_id") == "") & (pl.col("response_id") != "")).select(
        "id", "response_id", "trace_id"
    )
    answers = calls.join(by_answer, on="response_id", how="semi").select(
        "response_id", pl.col("trace_id").alias("its_trace")
    )
    own = (pl.col("trace_id") == "") | (pl.col("trace_id") == pl.col("its_trace"))
    reported = by_answer.join(answers, on="response_id").filter(own)["id"].unique()
    judged = judgements.filter(pl.col("span_id") != "").select("span_id").unique()
    calls, gateway, others = (
        frame.join(judged, on="span_id", how="semi") for frame in (calls, gateway, ancestors)
    )
    columns = ("trace_id", "span_id", pl.col("response_id").alias("known"))
    spans = pl.concat([calls.select(columns), gateway.select(columns)])
    # A span id is unique in its trace, and no further; judgements often name it alone.
    of_spans = pl.concat(frame.select("trace_id", "span_id") for frame in (spans, others)).unique()
    of_spans = of_spans.select(pl.col("trace_id").alias("its_trace"), "span_id").unique(
        "span_id", keep="none"
    )
    known = spans.filter(pl.col("known").is_not_null()).unique(["trace_id", "span_id"], keep="none")
    reporting = calls.select("trace_id", "span_id", pl.lit(value=True).alias("of_call")).unique()
    alone = (pl.col("trace_id") == "") & pl.col("its_trace").is_not_null()
    named = (pl.col("response_id") == "") & pl.col("known").is_not_null()
    key = ["trace_id", "span_id"]
    return (
        judgements.join(of_spans, on="span_id", how="left", maintain_order="left")
        .with_columns(pl.when(alone).then("its_trace").otherwise("trace_id").alias("trace_id"))
        .join(known, on=key, how="left", maintain_order="left")
        .join(reporting, on=key, how="left", maintain_order="left")
        .with_columns(
            pl.when(named).then("known").otherwise("response_id").alias("response_id"),
            pl.col("of_call").fill_null(pl.col("id").is_in(reported.implode())),
        )
        .drop("its_trace", "known")
    )
