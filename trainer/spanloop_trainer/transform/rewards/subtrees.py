"""What a judged span is about: calls below it, the call above it, or the latest call before it below a span that both share."""

from __future__ import annotations

import polars as pl

from spanloop_trainer.transform.calls.tree import Tree, read_tree, resolve
from spanloop_trainer.transform.rewards.places import NOTHING, OF_CALL, latest, running, top

_KEY = ("trace_id", "span_id")
# One number for a span, as `tree` has it.
_CODE = pl.struct(*_KEY).hash().alias("code")
_LATE = 2**63 - 1  # the last nanosecond that can be said


def by_subtree(
    judgements: pl.DataFrame, calls: pl.DataFrame, ancestors: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Find what judged spans that are no call of the dataset are about.

    - Calls below it, of one episode (or of one and those that it called): that episode if all of its calls lie there, else
      the last of them. Of several episodes: none.
    - Else the nearest span above that is a call, or has calls below: the latest of these calls that started before the branch
      with the judged span did. Behind the last call of an episode it is about the whole, unless the branch is a tool's.

    A span that reports a model call which the dataset leaves out is about a call directly below or above it (a second report
    of the same), and about nothing else.

    Args:
        judgements: `judgement`, `trace_id`, `span_id`, `time`, `of_call`.
        calls: of `places.coded`.
        ancestors: the skeleton of their traces.

    Returns:
        `judgement`, `row` or `episode`, `by`; and `judgement` of all for which no other way may be tried.
    """
    named = judgements.filter((pl.col("span_id") != "") & (pl.col("trace_id") != ""))
    traces = named.select("trace_id").unique()
    inside = calls.join(traces, on="trace_id", how="semi", maintain_order="left")
    if inside.is_empty():
        return NOTHING, named.filter("of_call").select("judgement")
    # An episode may go on in other traces.
    sizes = calls.select(
        "row", pl.len().over("episode").alias("size"), pl.col("row").max().over("episode").alias("end")
    )
    inside = inside.select(*_KEY, "parent_span_id", *OF_CALL).join(sizes, on="row", maintain_order="left")
    named = named.with_columns(_CODE)
    calls, tree, codes = _tree(inside, ancestors.join(traces, on="trace_id", how="semi"), named)
    judged = named.join(codes, on="code").select("judgement", "node", "time", "of_call", "code")
    above, met = _above_calls(judged, calls, tree)
    beside = _beside_calls(judged.join(met, on="judgement", how="anti"), calls, tree, ancestors)
    hit = pl.concat([above, beside], how="diagonal")
    settled = pl.concat([hit.select("judgement"), met, named.filter("of_call").select("judgement")]).unique()
    return hit, settled


def _tree(
    calls: pl.DataFrame, ancestors: pl.DataFrame, judged: pl.DataFrame
) -> tuple[pl.DataFrame, Tree, pl.DataFrame]:
    """The calls with `node`, the tree, and `code`, `node` of all spans; a judged span that nobody sent is known by its children."""
    unseen = (
        judged.join(ancestors.select(_CODE), on="code", how="anti")
        .join(calls.select(_CODE), on="code", how="anti")
        .select(*_KEY, pl.lit("").alias("parent_span_id"))
        .unique(_KEY)
    )
    calls, tree = read_tree(calls, pl.concat([ancestors, unseen], how="diagonal"))
    return calls, tree, tree.spans.select(_CODE).with_row_index("node")


def _above_calls(judged: pl.DataFrame, calls: pl.DataFrame, tree: Tree) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What judged spans with calls below are about; and `judgement` of all that have calls below."""
    below = (
        _calls_below(judged["node"].unique(), calls, tree)
        .group_by("place", "episode")
        .agg(pl.col("caller", "size").first(), pl.len().alias("here"), pl.col("row").max())
    )
    one = (
        top(below.select("place", "episode", "caller"))
        .join(below, on=["place", "episode"])
        .join(judged.rename({"node": "place"}), on="place")
    )
    whole = (pl.col("here") == pl.col("size")) & ~pl.col("of_call")
    # A report of a call that the dataset leaves out, and that has several calls below, is none of theirs.
    one = one.filter(~pl.col("of_call") | (pl.col("here") == 1))
    hit = one.select(
        "judgement",
        pl.when(~whole).then("row").alias("row"),
        pl.when(whole).then("episode").alias("episode"),
        pl.lit("subtree").alias("by"),
    )
    met = judged.join(below.select(pl.col("place").alias("node")).unique(), on="node", how="semi")
    return hit, met.select("judgement")


def _beside_calls(
    judged: pl.DataFrame, calls: pl.DataFrame, tree: Tree, ancestors: pl.DataFrame
) -> pl.DataFrame:
    """What judged spans without calls below are about."""
    if judged.is_empty():
        return NOTHING
    nodes = tree.up.len()
    is_call = _marked(calls["node"], nodes)
    shared = is_call | _marked(_all_above(calls["node"], tree), nodes)
    # The highest span on the way up that does not share: it began the branch with the judged span.
    own = pl.int_range(0, nodes, dtype=pl.UInt32, eager=True)
    branch = resolve(own.zip_with(shared.gather(tree.up), tree.up))
    at = judged["node"]
    place = tree.nearest(shared, at)
    judged = judged.with_columns(
        place.alias("place"),
        branch.gather(at).alias("branch"),
        is_call.gather(place).fill_null(value=False).alias("in_call"),
    ).filter(pl.col("place").is_not_null() & (~pl.col("of_call") | pl.col("in_call")))
    judged = judged.join(
        _began(judged["branch"], tree, ancestors), on="branch", how="left", maintain_order="left"
    ).with_columns(
        # Without any time it came late, as most do.
        pl.coalesce(_if_known("began"), _if_known("time"), pl.lit(_LATE).cast(pl.Datetime("ns"))).alias(
            "time"
        )
    )
    around = _calls_below(judged["place"].unique(), calls, tree, itself=True)
    one = judged.join(top(around.select("place", "episode", "caller").unique()), on="place")
    here = around.group_by("place", "episode").agg(pl.len().alias("here"), pl.col("size", "end").first())
    timed = latest(one.select("judgement", "place", "episode", "time"), around)
    found = one.join(here, on=["place", "episode"]).join(
        timed.select("judgement", "row"), on="judgement", how="left"
    )
    # Before the first call or behind the last one, beside all calls of the episode.
    outer = pl.col("row").is_null() | (pl.col("row") == pl.col("end"))
    whole = outer & (pl.col("here") == pl.col("size")) & ~pl.col("in_call") & ~pl.col("is_tool")
    found = found.select(
        "judgement",
        pl.when(~whole).then("row").alias("row"),
        pl.when(whole).then("episode").alias("episode"),
        pl.when("in_call").then(pl.lit("subtree")).otherwise(pl.lit("time")).alias("by"),
    ).filter(pl.col("row").is_not_null() | pl.col("episode").is_not_null())
    several = judged.join(one, on="judgement", how="anti").select("judgement", "place", "time")
    return pl.concat([NOTHING, found, running(several, around)], how="diagonal")


def _began(branches: pl.Series, tree: Tree, ancestors: pl.DataFrame) -> pl.DataFrame:
    """`branch` (a node), `is_tool` and `began`."""
    spans = tree.spans.select(_CODE, "is_tool").with_row_index("branch")
    spans = spans.filter(_marked(branches, spans.height))
    starts = ancestors.select(_CODE, pl.col("start").alias("began")).unique("code", keep="first")
    return spans.join(starts, on="code", how="left").drop("code")


def _if_known(time: str) -> pl.Expr:
    """Null for 1970, which is what a missing time looks like."""
    return pl.when(pl.col(time).dt.epoch("ns") > 0).then(time)


def _calls_below(places: pl.Series, calls: pl.DataFrame, tree: Tree, *, itself: bool = False) -> pl.DataFrame:
    """`place`, `OF_CALL`, `size`, `end` for every pair of a node of `places` and a call below it (or that is it, if `itself`)."""
    marked = _marked(places, tree.up.len())
    own = calls.select(*OF_CALL, "size", "end")
    at = tree.nearest(marked, calls["node"], strictly=not itself)
    found: list[pl.DataFrame] = []
    # A round for each level of judged spans above judged spans: one or two.
    while True:
        reached: pl.DataFrame = own.with_columns(at.alias("place")).filter(pl.col("place").is_not_null())
        if reached.is_empty():
            return pl.concat([reached, *found])
        found.append(reached)
        own, at = reached.drop("place"), tree.nearest(marked, reached["place"])


def _all_above(nodes: pl.Series, tree: Tree) -> pl.Series:
    """Every node above one of `nodes`."""
    reached, jump = tree.up.gather(nodes).unique(), tree.up
    while True:
        further = pl.concat([reached, jump.gather(reached)]).unique()
        if further.len() == reached.len():
            return reached
        reached, jump = further, jump.gather(jump)


def _marked(nodes: pl.Series, count: int) -> pl.Series:
    """(count,) bool: which nodes are among `nodes`."""
    return pl.int_range(0, count, dtype=pl.UInt32, eager=True).is_in(nodes.unique().implode())
