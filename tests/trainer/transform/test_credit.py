"""Advantages: the papers' equations over episodes, whatever the number of steps."""

from __future__ import annotations

import statistics

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanloop_trainer.transform import advantages

# task → episodes → (reward or unscored, steps)
GROUPS = st.lists(
    st.lists(
        st.tuples(st.one_of(st.none(), st.integers(-8, 8).map(lambda n: n / 8)), st.integers(1, 4)),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=4,
)
Groups = list[list[tuple[float | None, int]]]


def frame(groups: Groups) -> pl.DataFrame:
    rows = [
        (f"t{task}", f"t{task}e{number}", reward)
        for task, episodes in enumerate(groups)
        for number, (reward, steps) in enumerate(episodes)
        for _ in range(steps)
    ]
    schema = {"task_id": pl.String, "episode_id": pl.String, "reward": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def per_episode(groups: Groups, method: str) -> dict[str, float | None]:
    result = advantages(frame(groups), method).group_by("episode_id").agg(pl.col("advantage").unique())  # type: ignore[arg-type]  # a str that the test names
    assert all(len(values) == 1 for values in result["advantage"].to_list())
    return {name: values[0] for name, values in result.iter_rows()}


@given(GROUPS)
def test_equations(groups: Groups) -> None:
    identical, relative, others = (
        per_episode(groups, m) for m in ("identical", "group_relative", "leave_one_out")
    )
    for task, episodes in enumerate(groups):
        scored = [reward for reward, _ in episodes if reward is not None]
        for number, (reward, _) in enumerate(episodes):
            name = f"t{task}e{number}"
            assert identical[name] == reward
            if reward is None or len(scored) < 2:
                assert relative[name] is None
                assert others[name] is None
                continue
            spread = statistics.stdev(scored)
            expected = (reward - statistics.fmean(scored)) / spread if spread else 0.0
            assert relative[name] == pytest.approx(expected, abs=1e-12)
            rest = (sum(scored) - reward) / (len(scored) - 1)
            assert others[name] == pytest.approx(reward - rest, abs=1e-12)


@given(GROUPS, st.integers(1, 5))
def test_more_steps_change_nothing(groups: Groups, steps: int) -> None:
    longer = [
        [(reward, count + steps * place) for place, (reward, count) in enumerate(group)] for group in groups
    ]
    for method in ("identical", "group_relative", "leave_one_out"):
        assert per_episode(groups, method) == per_episode(longer, method)


@given(GROUPS)
def test_group_advantages_sum_to_zero(groups: Groups) -> None:
    for method in ("group_relative", "leave_one_out"):
        found = per_episode(groups, method)
        for task in range(len(groups)):
            values = [
                value for name, value in found.items() if name.startswith(f"t{task}e") and value is not None
            ]
            assert sum(values) == pytest.approx(0.0, abs=1e-9)


def test_equal_rewards_with_rounding_errors_are_no_signal() -> None:
    assert set(per_episode([[(0.1, 1)] * 7], "group_relative").values()) == {0.0}


def test_an_unscored_row_of_a_scored_episode_has_no_advantage() -> None:
    rows = pl.DataFrame({"task_id": ["t"] * 3, "episode_id": ["a", "a", "b"], "reward": [1.0, None, 0.0]})
    assert advantages(rows, "leave_one_out")["advantage"].to_list() == [1.0, None, -1.0]


def test_groups_may_be_narrower_than_tasks() -> None:
    rows = pl.DataFrame(
        {
            "task_id": ["t"] * 3,
            "agent": ["x", "x", "y"],
            "episode_id": ["a", "b", "c"],
            "reward": [1.0, 0.0, 5.0],
        }
    )
    found = advantages(rows, "leave_one_out", group=("task_id", "agent"))["advantage"].to_list()
    assert found == [1.0, -1.0, None]
