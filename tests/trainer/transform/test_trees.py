"""Random trees of spans: the transitions are what is known of them, whatever the order, the pieces and the buckets."""

from __future__ import annotations

import json
from random import Random

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.examples import few

from spanloop_trainer.transform.reading.hashes import hash_of

from .trees import Json, Plan, Recorder, World, result, run, said, system, used, user

STEPS = st.recursive(
    st.sampled_from(["tool", "tool", "fail", "inside", "elsewhere", "hand over"]),
    lambda steps: st.lists(steps, max_size=3),
    max_leaves=6,
)
PLANS = st.lists(
    st.builds(
        Plan,
        style=st.sampled_from(["plain", "agent", "session", "rollout"]),
        at=st.integers(0, 20),
        every=st.integers(1, 5),
        prompt=st.integers(0, 2),
        steps=st.lists(STEPS, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def world(plans: list[Plan]) -> World:
    made = World()
    for number, plan in enumerate(plans):
        made.carry_out(number, plan)
    return made


@settings(max_examples=few(20), deadline=None)
@given(plans=PLANS)
def test_transitions_are_the_truth(plans: list[Plan]) -> None:
    known = world(plans)
    frame, made = run(known.spans)
    rows = {row["span_id"]: row for row in frame.iter_rows(named=True)}
    assert len(rows) == frame.height
    assert rows.keys() == known.truth.keys()
    for name, truth in known.truth.items():
        row = rows[name]
        found = (row["episode_id"], row["parent_episode_id"], row["agent"], row["status"], row["task_id"])
        assert found == (truth.episode, truth.parent, truth.agent, truth.status, hash_of(truth.task)), name
        if truth.next is not None:
            assert row["next_span_id"] == truth.next, name
        expected = None if truth.observation is None else [truth.observation]
        assert (row["observation"] and json.loads(row["observation"])) == expected, name
        assert row["failure"] == (None if truth.status == "ok" else "error"), name
    for episode in frame.sort("start").partition_by("episode_id"):
        assert episode["step"].to_list() == list(range(episode.height))
        assert episode["done"].to_list() == [False] * (episode.height - 1) + [True]
        assert episode["next_span_id"].is_null().to_list() == episode["done"].to_list()
    twins = sum(number for reason, number in made.funnel.lost.items() if reason.startswith("twin"))
    assert twins == known.twins


@settings(max_examples=few(15), deadline=None)
@given(plans=PLANS, seed=st.integers(0, 2**32 - 1), pieces=st.integers(1, 3), bucket=st.integers(1, 3))
def test_order_pieces_and_buckets_make_no_difference(
    plans: list[Plan], seed: int, pieces: int, bucket: int
) -> None:
    known = world(plans)
    frame, made = run(known.spans)
    other, again = run(known.spans, seed=seed, pieces=pieces, bucket=bucket)
    assert other.equals(frame)
    assert again.funnel.as_dict() == made.funnel.as_dict()


def anything(random: Random) -> Recorder:
    """Spans that no program would leave: cycles and gaps in the trees, ids of white space, times that are equal, answers of one id."""
    spans = Recorder()
    above = {f"t{number}": [""] for number in range(random.randint(1, 4))}
    for _ in range(random.randint(0, 10)):
        trace, kind = random.choice([*above]), random.choice(["agent", "agent", "tool", "chain", "plain"])
        span = spans.span(
            trace, random.choice(above[trace]), agent=random.choice(["A", "B", None]) if kind == "agent" else None,
            is_agent=kind == "agent", tool=kind == "tool", chain=kind == "chain", session=random.choice([None, None, None, "s", " "]),
            rollout=random.choice([None] * 6 + ["R"]), task=random.choice([None] * 5 + ["K"]),
        )  # fmt: skip
        above[trace].append(span)
    for row in spans.ancestors:
        if random.random() < 0.1:
            row["parent_span_id"] = random.choice([row["span_id"], "gone", *above[row["trace_id"]]])
    histories = [[user("p")], [user("q")], [system("c"), user("p")]]
    for number in range(random.randint(1, 14)):
        trace, history, chance = random.choice([*above]), random.choice(histories), random.random()
        answer = random.choice([said("x"), said("y"), used("f", {}, "c"), used("f", {}, f"c{number}")])
        answers = [] if chance < 0.12 else [answer, said("z")] if chance > 0.85 else [answer]
        facts: Json = {
            "session": random.choice([None] * 4 + ["s", " "]), "rollout": random.choice([None] * 9 + ["R"]),
            "instance": random.choice(["i", "i", "j"]), "invalid": 0.12 < chance < 0.16,
        }  # fmt: skip
        if random.random() < 0.3:
            facts["response_id"] = random.choice([None, "1", "2"])
        if chance < 0.06:
            facts["error_type"] = "E"
        span = spans.call(
            trace, history, *answers, at=random.choice([0, number, random.randint(0, 6)]), lasts=random.choice([0, 0.5, 3]),
            parent=random.choice(["gone", *above[trace]]), **facts,
        )  # fmt: skip
        above[trace] += [span] * random.randint(0, 1)
        rewritten = [system(f"k{number}")] * random.randint(0, 1)
        histories.append([*rewritten, *history, answer, random.choice([user("more"), result("c", "r")])])
    return spans


@settings(max_examples=few(8), deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_call_has_one_place_whatever_was_recorded(random: Random) -> None:
    spans = anything(random)
    frame, made = run(spans)
    calls = made.calls.sort("row")
    lost = sum(n for why, n in made.funnel.lost.items() if why.startswith(("twin", "model call without")))
    assert calls.height + lost == len(spans.rows)
    for episode in calls.partition_by("episode_id"):
        assert episode["step"].to_list() == list(range(episode.height))
        assert episode["last"].to_list() == [False] * (episode.height - 1) + [True]
        assert episode["next_span_id"].is_null().equals(episode["last"], null_equal=True)
        assert episode["next_span_id"].drop_nulls().is_in(episode["span_id"].implode()).all()
        assert episode.filter(pl.col("next_row") <= pl.col("row")).is_empty()
        assert [episode[name].n_unique() for name in ("task_id", "split", "parent_episode_id")] == [1, 1, 1]
    parents = dict(calls.select("episode_id", "parent_episode_id").iter_rows())
    for above in parents.values():
        seen = set()
        while above in parents:
            assert above not in seen, "an episode that called itself"
            seen.add(above)
            above = parents[above]
    other, again = run(spans, seed=1, pieces=3, bucket=1)
    assert other.equals(frame)
    assert again.funnel.as_dict() == made.funnel.as_dict()
