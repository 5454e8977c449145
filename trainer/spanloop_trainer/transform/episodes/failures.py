"""What went wrong with a call, in one word: of the call itself, or of a run that goes in circles.

| class | what it is | found by |
|---|---|---|
| `timeout` | the call took too long | status error, and an error type that says so |
| `error` | the call failed otherwise | status error |
| `truncated` | the stream was cut | no finish reason and no usage |
| `invalid` | what was recorded does not parse | |
| `refusal` | the model, or a filter behind it, would not answer | finish reason, error type, a `refusal` in the answer |
| `agent_loop` | two agents take turns, each with what it did before | `LOOP_CALLS` calls in a row |
| `repeated_step` | one agent does the same again and is shown the same for it | `REPEATED_CALLS` times in a row |
| `no_progress` | nothing that is done and nothing that comes back is new | `STALE_CALLS` calls in a row |

A class of the call itself goes before one of its run. What is done and what comes back is compared by codes (`act`, `shown`: see
`messages`), without ids. Calls that overlap in time are no repetition: they were sent together.
"""

from __future__ import annotations

import polars as pl

from spanloop_trainer.transform.funnel import Funnel

FAILURES = (
    "error", "timeout", "truncated", "invalid", "refusal", "repeated_step", "no_progress", "agent_loop",
)  # fmt: skip
# Of a run that goes in circles.
STUCK = FAILURES[-3:]
# Two equal steps happen to good agents (a page read twice); three with equal results do not help anybody.
REPEATED_CALLS = 3
# Three rounds of two agents.
LOOP_CALLS = 6
# Long enough for a run that reads its notes again before it goes on.
STALE_CALLS = 8

_TIMEOUT = r"(?i)time[ _-]?d?[ _-]?out|deadline"
_REFUSED_ERROR = r"(?i)content[ _-]?filter|content[ _-]?policy|responsible_?ai|refusal|safety"
# Of OpenAI and Azure, Anthropic, Gemini, and instrumentations in between.
_REFUSED_FINISH = (
    "content_filter", "content-filter", "refusal", "safety", "prohibited_content", "blocklist", "spii", "recitation",
    "image_safety", "guardrail_intervened", "content_filtered",
)  # fmt: skip


def classified(calls: pl.DataFrame) -> pl.DataFrame:
    """Add `failure` (see above; null: none) of each call by itself, and name refusals in `error_type`.

    Args:
        calls: `status`, `error_type`, `answers`, `finish_reasons`, `refused`.
    """
    # Of the first answer: several are filtered together as a rule.
    finish = (pl.col("answers").list.first().struct.field("finish"), pl.col("finish_reasons").list.first())
    filtered = pl.any_horizontal(
        reason.str.to_lowercase().is_in(_REFUSED_FINISH).fill_null(value=False) for reason in finish
    )
    error = pl.col("status") == "error"
    refusal = (filtered | pl.col("refused")) & ~pl.col("status").is_in(["error", "invalid"])
    by_error = pl.col("error_type").str.contains(_REFUSED_ERROR).fill_null(value=False)
    late = pl.col("error_type").str.contains(_TIMEOUT).fill_null(value=False)
    return calls.with_columns(
        pl.when(refusal | (error & by_error)).then(pl.lit("refusal"))
        .when(error & late).then(pl.lit("timeout"))
        .when(pl.col("status") != "ok").then("status")
        .alias("failure"),
        pl.when(refusal).then(pl.coalesce("error_type", pl.lit("refusal"))).otherwise("error_type").alias("error_type"),
    )  # fmt: skip


def stuck(calls: pl.DataFrame) -> pl.DataFrame:
    """`failure` also where a run goes in circles.

    Args:
        calls: in the order of `row`, with `episode_id`, `agent`, `failure`, `answers`, `taken`, `answered`, `shown`, `start`, `duration_ns`.
    """
    act = pl.col("answers").list.get(pl.col("taken"), null_on_oob=True).struct.field("act")
    acts = calls.select("row", act.alias("act"), pl.col("episode_id").hash().alias("number"))
    acts = acts.filter(pl.col("act").is_not_null())
    # Most runs do nothing twice.
    again = acts.filter(pl.struct("number", "act").hash().is_duplicated())["number"].unique()
    acts = acts.filter(pl.col("number").is_in(again.implode()))
    if acts.is_empty():
        return calls
    begin = pl.col("start").dt.epoch("ns")
    steps = acts.join(
        calls.select(
            "row", "agent", "shown", begin.alias("from"), (begin + pl.col("duration_ns").cast(pl.Int64)).alias("to")
        ),
        on="row", how="inner",
    ).sort("number", "row")  # fmt: skip
    found = pl.concat(
        [
            frame.select("row", pl.lit(name).alias("stuck"), pl.lit(place).alias("place"))
            for place, (name, frame) in enumerate(
                (
                    ("agent_loop", _loops(steps)),
                    ("repeated_step", _repeated(steps)),
                    ("no_progress", _stale(steps)),
                )
            )
        ]
    )
    if found.is_empty():
        return calls
    found = found.sort("row", "place").unique("row", keep="first", maintain_order=True).select("row", "stuck")
    return (
        calls.join(found, on="row", how="left", maintain_order="left")
        .with_columns(pl.coalesce("failure", "stuck").alias("failure"))
        .drop("stuck")
    )


def _repeated(steps: pl.DataFrame) -> pl.DataFrame:
    """Rows from the second of equal steps on."""
    steps = steps.with_columns(pl.struct("number", "agent").hash().alias("of_agent")).sort("of_agent", "row")
    same = (pl.col("act") == pl.col("act").shift(1)) & (pl.col("from") >= pl.col("to").shift(1))
    steps = steps.with_columns(same.over("of_agent").fill_null(value=False).alias("same"))
    # The first of equal steps was shown the task, the second what the first brought; from there on it must be the same.
    second = ~pl.col("same").shift(1, fill_value=False)
    goes_on = pl.col("same") & (second | (pl.col("shown") == pl.col("shown").shift(1)).fill_null(value=False))
    steps = steps.with_columns((~goes_on).cum_sum().alias("stretch"))
    long = pl.len().over("stretch") >= REPEATED_CALLS
    return steps.filter(long & (pl.col("stretch") == pl.col("stretch").shift(1)))


def _loops(steps: pl.DataFrame) -> pl.DataFrame:
    """Rows from the second round on of two agents that take turns."""
    back = pl.all_horizontal(
        pl.col("act") == pl.col("act").shift(2),
        pl.col("agent") == pl.col("agent").shift(2),
        pl.col("agent") != pl.col("agent").shift(1),
    )
    steps = steps.with_columns(back.over("number").fill_null(value=False).alias("back"))
    steps = steps.with_columns(pl.struct("number", "back").rle_id().alias("stretch"))
    long = pl.len().over("stretch") >= LOOP_CALLS - 2
    return steps.filter(pl.col("back") & long)


def _stale(steps: pl.DataFrame) -> pl.DataFrame:
    """Rows of stretches in which nothing is new."""
    step = pl.struct("number", "agent", "act", "shown").hash().alias("step")
    overlaps = (pl.col("from") < pl.col("to").shift(1).over("number")).fill_null(value=False)
    steps = steps.with_columns(step, overlaps.alias("overlaps"))
    steps = steps.with_columns((pl.col("step").is_first_distinct() | pl.col("overlaps")).alias("new"))
    steps = steps.with_columns(pl.struct("number", "new").rle_id().alias("stretch"))
    long = pl.len().over("stretch") >= STALE_CALLS
    return steps.filter(~pl.col("new") & long)


def count_failures(calls: pl.DataFrame, funnel: Funnel) -> None:
    """How many calls there are of each class that occurs."""
    of_class = dict(calls.group_by("failure").len().iter_rows())
    for name in FAILURES:
        if of_class.get(name):
            funnel.count(f"failure_{name}", of_class[name])
