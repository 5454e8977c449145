"""Spans that report one and the same model call: which they are, which of them stays, and what it takes over from the others.

Two things make twins, and neither is trusted alone:

- one response id, also across traces; but some servers number their answers from 1 again, or give all of them one id, so the
  answers (of an id that was given more than once: the prompts too) and the times must agree as well. Two conventions may write one
  answer differently: then the prompts must agree;
- one model call's span inside another's with nothing of the kind between, the same content and no second response id
  (an instrumented framework above an instrumented client). A span has one such twin below it: of several attempts, the last.

An answer that comes again later under its old id, to the same prompt, came from a cache: it stays a step of its run, with a flag.
"""

from __future__ import annotations

import polars as pl

from spanloop_trainer.transform.calls.tree import Tree, resolve
from spanloop_trainer.transform.flavours import Flag
from spanloop_trainer.transform.funnel import Funnel

# Spans of one call overlap in time; where a span has no duration, or clocks differ, this much lies between.
NEAR_NS = 1_000_000_000
# What a span that stays takes over, where it has none itself, from the others.
_SHARED = (
    "session", "rollout", "explicit_task", "span_agent", "response_id", "request_model", "response_model", "temperature",
    "top_p", "max_tokens", "seed", "asked", "prompt_hash",
)  # fmt: skip
_OWN = ("own_tokens", "own_tokens_code")
BY_ID = "twin: another span reports the same response id"
BY_TREE = "twin: a span inside another reports the same call"


def without_twins(calls: pl.DataFrame, tree: Tree, funnel: Funnel) -> pl.DataFrame:
    """One row a call.

    Args:
        calls: in canonical order; see `pipeline`. `node`: in `tree`.

    Returns:
        The calls that stay, in canonical order; `flags` has `CACHED` where an answer came from a cache.
    """
    calls = calls.with_row_index("n").with_columns(
        pl.col("answers").list.first().struct.field("act").alias("act"),
        pl.col("start").dt.epoch("ns").alias("from"),
        pl.when(pl.col("length") > 0).then("prompt_code").alias("prompt"),
    )
    calls = calls.with_columns((pl.col("from") + pl.col("duration_ns").cast(pl.Int64)).alias("to"))
    groups, cached = _by_id(calls)
    above = _by_tree(calls, tree)
    above = above.fill_null(_reported(calls)) if above.null_count() else above
    above = above.fill_null(_within(calls)) if above.null_count() else above
    label = _together(groups, above)
    if cached.len():
        flagged = pl.col("n").is_in(cached.implode())
        calls = calls.with_columns(
            pl.when(flagged).then(pl.col("flags") | Flag.CACHED.value).otherwise("flags").alias("flags")
        )
    agent = tree.nearest(tree.spans["is_agent"], calls["node"])
    places = (
        agent.is_null().alias("no_agent"),
        (tree.up.gather(calls["node"]) == calls["node"]).alias("root"),
    )
    kept = _merged(calls.with_columns(label, above.alias("above"), groups, *places), funnel)
    return _again(kept.sort("n")).drop("n", "act", "from", "to", "prompt")


def _again(calls: pl.DataFrame) -> pl.DataFrame:
    """Flag answers that came again where no id says so: DSPy's cache answers without a client's call, usage or finish reason.

    Such a call alone proves nothing; one whose prompt had the same answer before does.
    """
    unsure = pl.col("flags") & (Flag.END_NOT_RECORDED | Flag.ONLY_TEXT).value == Flag.END_NOT_RECORDED.value
    told = pl.col("prompt").is_not_null() & pl.col("act").is_not_null() & pl.col("response_id").is_null()
    if not calls.select((unsure & told).any()).item():
        return calls
    place = pl.int_range(pl.len()).over("service", "prompt", "act")
    return calls.with_columns(
        pl.when(unsure & told & (place > 0))
        .then(pl.col("flags") | Flag.CACHED.value)
        .otherwise("flags")
        .alias("flags")
    )


def _by_id(calls: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """A number that is the same for spans of one answer (null: its id is nowhere else), and calls answered from a cache."""
    named = calls.filter(pl.col("response_id").is_not_null()).with_columns(
        pl.col("response_id").hash().alias("code")
    )
    # By hashes, which is faster: an id that only shares another's is alone in what follows.
    shared = named.filter(pl.col("code").is_duplicated()).select(
        "n", "response_id", "act", "prompt", "from", "to", "flavour", "instance", "asked"
    )
    none = pl.repeat(None, calls.height, dtype=pl.UInt32, eager=True).alias("group")
    if shared.is_empty():
        return none, pl.Series("n", dtype=pl.UInt32)
    # One convention writes one call's question and answer in one way.
    way = shared.group_by("response_id", "flavour").agg(pl.col("act", "asked").drop_nulls().n_unique())
    reused = way.group_by("response_id").agg(
        ((pl.col("act") > 1) | (pl.col("asked") > 1)).any().alias("reused")
    )
    shared = shared.join(reused, on="response_id", maintain_order="left")
    # The prompt counts where the id does not say enough, and where there is no answer to compare.
    content = pl.struct(
        "response_id",
        "act",
        pl.when(pl.col("reused") | pl.col("act").is_null()).then("prompt").alias("prompt"),
    ).hash()
    shared = shared.with_columns(content.alias("content")).sort("content", "from", "n")
    # What one process reports in one way with times of its own overlaps; else it is an answer that came again from a cache.
    own = pl.col("flavour", "instance") == pl.col("flavour", "instance").shift(1)
    whole = (pl.col("to") > pl.col("from")) & (pl.col("to") > pl.col("from")).shift(1)
    slack = pl.when(pl.all_horizontal(own, whole)).then(-1).otherwise(NEAR_NS)
    late = pl.col("from") > (pl.col("to").cum_max().shift(1) + slack).over("content")
    shared = shared.with_columns(late.fill_null(value=True).cum_sum().cast(pl.UInt32).alias("group"))
    shared = shared.with_columns(_with_other(shared))
    answered = shared.filter(pl.col("act").is_not_null() & ~pl.col("reused"))
    again = answered.filter(
        (pl.col("group") > pl.col("group").min().over("response_id", "act", "prompt"))
        & pl.col("prompt").is_not_null()
    )
    groups = calls.select("n").join(shared.select("n", "group"), on="n", how="left", maintain_order="left")
    return groups["group"], again["n"]


def _with_other(shared: pl.DataFrame) -> pl.Series:
    """`group`, where spans without an answer (a wrapper's, as a rule) go with the one of their id that has it, and an answer that another
    convention writes differently with the first."""
    spans = shared.group_by("group").agg(
        pl.col("response_id", "act", "reused", "flavour").first(), pl.col("prompt").drop_nulls().first(),
        pl.col("from").min(), pl.col("to").max(),
    )  # fmt: skip
    having = spans.filter(pl.col("act").is_not_null())
    same_prompt = (pl.col("prompt") == pl.col("prompt_right")).fill_null(value=False)
    near = (pl.col("from") <= pl.col("to_right") + NEAR_NS) & (pl.col("to") + NEAR_NS >= pl.col("from_right"))
    other_way = (pl.col("flavour") != pl.col("flavour_right")) & (pl.col("group_right") < pl.col("group"))
    found = (
        spans.join(having, on="response_id", how="inner")
        .filter(
            near
            & (~pl.col("reused_right") | same_prompt)
            & (pl.col("act").is_null() | (same_prompt & other_way & ~pl.col("reused_right")))
        )
        .sort("group", "from_right", "group_right")
        .unique("group", keep="first", maintain_order=True)
        .select("group", pl.col("group_right").alias("joined"))
    )
    return shared.join(found, on="group", how="left", maintain_order="left").select(
        pl.coalesce("joined", "group").alias("group")
    )["group"]


def _by_tree(calls: pl.DataFrame, tree: Tree) -> pl.Series:
    """`n` of the call above that a span inside repeats; null: none."""
    none = pl.repeat(None, calls.height, dtype=pl.UInt32, eager=True)
    nodes = calls["node"]
    is_call = pl.repeat(False, tree.up.len(), dtype=pl.Boolean, eager=True).scatter(nodes, True)
    over = tree.nearest(is_call, nodes)
    if over.null_count() == over.len():
        return none
    facts = ("n", "node", "act", "prompt", "response_id", "from", "to")
    inner = calls.select(facts).with_columns(over.alias("over")).filter(pl.col("over").is_not_null())
    pairs = inner.join(calls.select(facts).rename({"node": "over"}), on="over", how="inner", suffix="_over")
    both = pl.col("act").is_not_null() & pl.col("act_over").is_not_null()
    same_prompt = (pl.col("prompt") == pl.col("prompt_over")).fill_null(value=False)
    blank = pl.col("prompt").is_null() | pl.col("prompt_over").is_null()
    other_id = (pl.col("response_id") != pl.col("response_id_over")).fill_null(value=False)
    only = pl.len().over("over") == 1
    inside = (pl.col("from") + NEAR_NS >= pl.col("from_over")) & (
        pl.col("from") <= pl.col("to_over") + NEAR_NS
    )
    one_id = (pl.col("response_id") == pl.col("response_id_over")).fill_null(value=False)
    same = pl.when(both).then(
        ((pl.col("act") == pl.col("act_over")) & (same_prompt | blank | only)) | (one_id & same_prompt)
    ).otherwise(only & (same_prompt | blank))  # fmt: skip
    twins = (
        pairs.filter(same & inside & ~other_id)
        .sort("from", "n")
        .unique("n_over", keep="last", maintain_order=True)
    )
    return calls.select("n").join(twins.select("n", "n_over"), on="n", how="left", maintain_order="left")[
        "n_over"
    ]


def _reported(calls: pl.DataFrame) -> pl.Series:
    """`n` of the call that a span without duration tells the end of; null: it tells of none.

    Logfire's span of a stream ends when the stream begins, and has no answer. A log of zero length beside it, after its end, has both.
    """
    ns = calls.select("n")
    if not calls.select(((pl.col("duration_ns") == 0) & pl.col("act").is_not_null()).any()).item():
        return pl.repeat(None, calls.height, dtype=pl.UInt32, eager=True)
    place = pl.when(pl.col("parent_span_id") != "").then("trace_id").otherwise(pl.lit("")).alias("in")
    key = ["service", "in", "parent_span_id", "prompt"]
    calls = calls.filter(pl.col("prompt").is_not_null() & (pl.col("status") != "error")).with_columns(place)
    reports = calls.filter((pl.col("duration_ns") == 0) & pl.col("act").is_not_null())
    opened = calls.filter((pl.col("duration_ns") > 0) & pl.col("act").is_null() & ~pl.col("has_usage"))
    reports = reports.select("n", *key, "from").sort("from", "n")
    found = reports.join_asof(
        opened.select(pl.col("n").alias("opened"), *key, "to").sort("to", "opened"),
        left_on="from", right_on="to", by=key, strategy="backward", check_sortedness=False,
    ).filter(pl.col("opened").is_not_null()).unique("opened", keep="first", maintain_order=True)  # fmt: skip
    return ns.join(found.select("n", "opened"), on="n", how="left", maintain_order="left")["opened"]


def _within(calls: pl.DataFrame) -> pl.Series:
    """`n` of the one call without a response id during which this one, with an id, began: same prompt, same answer; null: none.

    OpenInference for LangChain and LlamaIndex keeps no id of a stream, and the client's span begins a trace of its own or, in LlamaIndex's
    agents, stands beside it (LlamaIndex's span may have ended by then). What one instrumentation reports has ids always or never: two calls
    that only look alike are no such pair.
    """
    key = ["service", "instance", "prompt", "act"]
    told = calls.filter(pl.col("prompt").is_not_null() & pl.col("act").is_not_null())
    named = pl.col("response_id").is_not_null()
    outer = told.filter(~named).select(
        pl.col("n").alias("over"), *key, "trace_id", "parent_span_id", "from", "to"
    )
    if outer.is_empty() or outer.height == told.height:
        return pl.repeat(None, calls.height, dtype=pl.UInt32, eager=True)
    elsewhere = pl.col("trace_id") != pl.col("trace_id_right")
    beside = (pl.col("parent_span_id") == pl.col("parent_span_id_right")) & (pl.col("parent_span_id") != "")
    pairs = (
        told.filter(named)
        .select("n", *key, "trace_id", "parent_span_id", "from")
        .sort("from", "n")
        .join_asof(outer.sort("from", "over"), on="from", by=key, strategy="backward", check_sortedness=False)
        .filter((pl.col("from") <= pl.col("to") + NEAR_NS) & (elsewhere | beside))
        .filter(pl.len().over("over") == 1)
    )
    return calls.select("n").join(pairs.select("n", "over"), on="n", how="left", maintain_order="left")[
        "over"
    ]


def _together(groups: pl.Series, above: pl.Series) -> pl.Series:
    """`label`: the same number for all spans of a call, by both kinds of twins."""
    own = pl.int_range(0, groups.len(), dtype=pl.UInt32, eager=True)
    up = above.fill_null(own) if above.null_count() else above
    frame = pl.DataFrame({"n": own, "group": groups, "label": resolve(up)})
    linked = frame.filter(pl.col("group").is_not_null())
    while linked.height:
        # Trees that share an answer are hung below the first of them.
        first = linked.select("label", pl.col("label").min().over("group").alias("first"))
        first = first.group_by("label").agg(pl.col("first").min())
        hung = first.filter(pl.col("first") < pl.col("label"))
        if hung.is_empty():
            break
        up = frame["n"].scatter(hung["label"], hung["first"])
        frame = frame.with_columns(resolve(up).gather(frame["label"]).alias("label"))
        linked = frame.filter(pl.col("group").is_not_null())
    return frame["label"]


def _merged(calls: pl.DataFrame, funnel: Funnel) -> pl.DataFrame:
    """One row a label: the richest, with what only others of it have.

    The richest has an answer, then no error, then a prompt, a response id, tools, usage; then it is the inner one, which stands next to
    the wire, then the earliest.
    """
    several = pl.col("label").is_duplicated()
    own = ("label", "above", "group", "no_agent", "root")
    alone = calls.filter(~several).drop(own)
    if alone.height == calls.height:
        # The funnel keeps the order of its reasons, whatever happened.
        for reason in (BY_ID, BY_TREE):
            funnel.lose(reason, 0)
        return alone
    twins = calls.filter(several)
    outer = pl.col("n").is_in(twins["above"].drop_nulls().implode())
    ordered = twins.sort(
        "label",
        pl.col("answers").list.len() == 0, pl.col("status") != "ok", pl.col("prompt").is_null(),
        pl.col("response_id").is_null(), ~pl.col("has_tools"), ~pl.col("has_usage"), outer, "n",
    )  # fmt: skip
    taken = ordered.group_by("label", maintain_order=True).agg(
        pl.all().exclude(*_SHARED, "node", "finish_reasons", "has_usage", "has_content", "own_served_version", *_OWN).first(),
        pl.col(*_SHARED, "own_served_version").drop_nulls().first(),
        # Where it stands in its trace is asked of the one below an agent.
        pl.col("node").sort_by("no_agent", "root", maintain_order=True).first(),
        pl.col("finish_reasons").sort_by(pl.col("finish_reasons").list.len() == 0, maintain_order=True).first(),
        pl.col("has_usage", "has_content").any(),
        pl.col(*_OWN).sort_by(pl.col("own_tokens_code").is_null(), pl.col("own_tokens").is_null(), maintain_order=True).first(),
        ((pl.col("status") != "error") & ((pl.col("finish_reasons").list.len() > 0) | pl.col("has_usage"))).any().alias("ended"),
    )  # fmt: skip
    stays = taken.select(
        "label", pl.concat_str(pl.lit("kept: "), "trace_id", pl.lit("-"), "span_id").alias("detail")
    )
    lost = twins.join(taken, on="n", how="anti").join(stays, on="label", how="left", maintain_order="left")
    by_id = pl.col("group").is_not_null()
    for reason, which in ((BY_ID, by_id), (BY_TREE, ~by_id)):
        rows = lost.filter(which)
        funnel.lose(reason, rows.height, rows)
    # A wrapper may know the end of a stream that the span inside did not see.
    cut = (pl.col("status") == "truncated") & pl.col("ended") & (pl.col("answers").list.len() > 0)
    taken = taken.with_columns(pl.when(cut).then(pl.lit("ok")).otherwise("status").alias("status"))
    return pl.concat([alone, taken.select(alone.columns)])
