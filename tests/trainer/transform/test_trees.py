"""Random trees of spans: the transitions are what is known of them, whatever the order, the pieces and the buckets."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.examples import few

from spanloop_trainer.transform.reading.hashes import hash_of

from .trees import Plan, World, run

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


@settings(max_examples=few(30), deadline=None)
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
