"""Credit: every method against its equation in plain Python, and what must hold whatever the rewards are."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.examples import few

from spanloop_trainer.config.credit import CREDIT_OPTIONS, Credit, CreditMethod
from spanloop_trainer.errors import ConfigError
from spanloop_trainer.transform.credit import (
    METHODS,
    advantages,
    among_rollouts,
    explain,
    join_values,
    read_values,
)

from .credit_reference import Episode, Step, frame, reference

# Multiples of an eighth: sums are exact, so that equal rewards are equal.
EIGHTHS = st.integers(-16, 16).map(lambda n: n / 8)
REWARD = st.one_of(st.none(), EIGHTHS)
STEPS = st.builds(Step, REWARD, st.booleans(), st.integers(0, 2), EIGHTHS)
EPISODES = st.lists(
    st.builds(
        Episode,
        st.integers(0, 2),
        st.lists(STEPS, min_size=1, max_size=5).map(tuple),
        REWARD,
        st.sampled_from(["a", "b"]),
    ),
    min_size=1,
    max_size=12,
)
GAMMA = st.sampled_from([1.0, 0.95, 0.5, 1e-3])
CREDIT = st.one_of(
    st.just(Credit()),
    st.just(Credit(method="rloo")),
    st.builds(lambda g: Credit(method="discounted", gamma=g), GAMMA),
    st.builds(lambda g: Credit(method="rewards_to_go", gamma=g), GAMMA),
    st.builds(lambda s: Credit(method="grpo", scale_by_std=s), st.booleans()),
    st.builds(lambda g, w, s: Credit(method="gigpo", gamma=g, omega=w, scale_by_std=s), GAMMA, st.sampled_from([0.0, 1.0, 2.5]), st.booleans()),
    st.builds(lambda g, x: Credit(method="gae", gamma=g, lambda_=x, values="v.parquet"), GAMMA, st.sampled_from([0.0, 0.5, 1.0])),
)  # fmt: skip
# Polars takes milliseconds for the smallest frame.
FRAMES = settings(max_examples=few(25), deadline=None)
OF_EPISODES = [Credit(method="grpo"), Credit(method="grpo", scale_by_std=False), Credit(method="rloo")]
Column = list[float | None]


def found(episodes: list[Episode], credit: Credit, column: str = "advantage") -> Column:
    return advantages(frame(episodes), credit)[column].to_list()


def same(ours: Column, theirs: Column) -> bool:
    return len(ours) == len(theirs) and all(
        a is b if a is None or b is None else a == pytest.approx(b, abs=1e-9, rel=1e-9)
        for a, b in zip(ours, theirs, strict=True)
    )


def rewarded(*rewards: float | None, task: int = 0, steps: int = 2) -> list[Episode]:
    return [Episode(task, (Step(),) * steps, reward) for reward in rewards]


@settings(FRAMES, max_examples=few(100))
@given(EPISODES, CREDIT)
def test_every_method_is_its_equation(episodes: list[Episode], credit: Credit) -> None:
    expected = reference(episodes, credit)
    assert same(found(episodes, credit, "return_"), [to_go for to_go, _ in expected])
    assert same(found(episodes, credit), [advantage for _, advantage in expected])


@FRAMES
@given(EPISODES, CREDIT, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_bit(
    episodes: list[Episode], credit: Credit, order: random.Random
) -> None:
    rows = frame(episodes).with_row_index("place")
    places = list(range(rows.height))
    order.shuffle(places)
    shuffled = advantages(rows[places], credit)
    assert shuffled["place"].to_list() == places
    assert shuffled.sort("place").equals(advantages(rows, credit))


@FRAMES
@given(EPISODES, CREDIT)
def test_what_is_unscored_has_no_part_in_anything(episodes: list[Episode], credit: Credit) -> None:
    def silent(episode: Episode) -> Episode:
        return replace(
            episode, reward=None, steps=tuple(replace(step, reward=None) for step in episode.steps)
        )

    alone = found(episodes, credit)
    among = found([*map(silent, episodes), *episodes], credit)
    assert among[: len(alone)] == [None] * len(alone)
    assert same(among[len(alone) :], alone)


@FRAMES
@given(EPISODES, st.sampled_from(OF_EPISODES))
def test_a_group_sums_to_zero_over_episodes(episodes: list[Episode], credit: Credit) -> None:
    firsts = advantages(frame(episodes), credit).filter(pl.col("step") == 0)
    sums = firsts.group_by("task_id", "agent").agg(pl.col("advantage").sum())["advantage"]
    assert sums.to_list() == pytest.approx([0.0] * len(sums), abs=1e-9)


@FRAMES
@given(EPISODES, st.sampled_from(OF_EPISODES), EIGHTHS)
def test_the_same_for_everybody_changes_nothing(
    episodes: list[Episode], credit: Credit, shift: float
) -> None:
    scored = [replace(episode, reward=episode.reward or 0.0) for episode in episodes]
    shifted = [replace(episode, reward=(episode.reward or 0.0) + shift) for episode in scored]
    assert same(found(shifted, credit), found(scored, credit))


@FRAMES
@given(EPISODES, CREDIT, st.sampled_from([0.5, 2.0, 64.0]))
def test_scaled_rewards_scale_the_advantage_or_leave_it(
    episodes: list[Episode], credit: Credit, by: float
) -> None:
    def scaled(step: Step) -> Step:
        return replace(
            step, reward=None if step.reward is None else step.reward * by, value=(step.value or 0) * by
        )

    larger = [
        replace(
            episode,
            reward=None if episode.reward is None else episode.reward * by,
            steps=tuple(map(scaled, episode.steps)),
        )
        for episode in episodes
    ]
    factor = 1.0 if credit.scale_by_std else by
    expected = [None if a is None else a * factor for a in found(episodes, credit)]
    assert same(found(larger, credit), expected)


@FRAMES
@given(EPISODES, st.sampled_from([Credit(), *OF_EPISODES]))
def test_more_steps_change_no_episode(episodes: list[Episode], credit: Credit) -> None:
    """A long episode counts once."""
    longer = [
        replace(episode, steps=(Step(),) * place + episode.steps) for place, episode in enumerate(episodes)
    ]

    def per_episode(of: list[Episode]) -> dict[str, set[float | None]]:
        rows = advantages(frame(of), credit).group_by("episode_id").agg(pl.col("advantage").unique())
        return {name: set(values) for name, values in rows.select("episode_id", "advantage").iter_rows()}

    assert all(len(values) == 1 for values in per_episode(longer).values())
    assert per_episode(longer) == per_episode(episodes)


@FRAMES
@given(EPISODES, CREDIT)
def test_an_episode_that_is_there_twice_is_credited_alike(episodes: list[Episode], credit: Credit) -> None:
    both = found([*episodes, *episodes], credit)
    assert both[: len(both) // 2] == both[len(both) // 2 :]
    if credit.method in ("identical", "discounted", "rewards_to_go", "gae"):
        assert same(both[: len(both) // 2], found(episodes, credit))


@FRAMES
@given(EPISODES, CREDIT)
def test_other_tasks_have_no_say(episodes: list[Episode], credit: Credit) -> None:
    mine = [episode for episode in episodes if episode.task == 0]
    rows = advantages(frame(episodes), credit).filter(pl.col("task_id") == "t0")
    assert same(rows["advantage"].to_list(), found(mine, credit) if mine else [])


@FRAMES
@given(EPISODES, CREDIT)
def test_explain_says_the_same_of_stage_e_and_of_a_dataset(episodes: list[Episode], credit: Credit) -> None:
    rows = advantages(frame(episodes), credit)
    written = rows.drop("reward_episode", "reward_call", "taken")
    for place in ({"episode_id": "e0", "step": 0}, {"episode_id": "e0", "step": len(episodes[0].steps) - 1}):
        told = explain(rows, credit, **place)  # type: ignore[arg-type]  # two kinds of values
        assert told[0].startswith(f"credit {credit}")
        assert explain(written, credit, **place) == told  # type: ignore[arg-type]  # likewise


def test_explain_finds_the_answer_that_was_taken_and_no_reward_in_rounding() -> None:
    credit = Credit(method="rewards_to_go", gamma=0.7)
    rows = frame([Episode(0, (Step(), Step(0.1), Step(), Step()), 0.3)]).with_columns(
        pl.lit(1, pl.Int32).alias("choice")
    )
    other = rows.with_columns(
        pl.lit(0, pl.Int32).alias("choice"), pl.lit(value=False).alias("taken"),
        pl.lit(None, pl.Float64).alias("reward_episode"), pl.lit(None, pl.Float64).alias("reward_call"),
    )  # fmt: skip
    rows = advantages(pl.concat([other, rows]), credit)
    written = rows.drop("reward_episode", "reward_call", "taken")
    for step in range(4):
        told = explain(rows, credit, episode_id="e0", step=step, choice=1)
        assert explain(written, credit, episode_id="e0", step=step, choice=1) == told
        assert told[1].count("(step") == (2 if step < 2 else 1)
        (no,) = explain(written, credit, episode_id="e0", step=step, choice=0)
        assert "went on with another answer" in no


@pytest.mark.parametrize("method", ["grpo", "rloo", "gigpo"])
def test_a_group_of_one_has_no_advantage(method: CreditMethod) -> None:
    assert found(rewarded(1.0), Credit(method=method)) == [None, None]


@pytest.mark.parametrize("method", ["grpo", "rloo", "gigpo"])
def test_equal_rewards_with_rounding_errors_are_no_signal(method: CreditMethod) -> None:
    """.1 + .2 is not .3, and seven times .1 has a standard deviation."""
    assert set(found(rewarded(0.3, 0.1 + 0.2, 0.3, steps=1), Credit(method=method))) == {0.0}
    assert set(found(rewarded(*[0.1] * 7, steps=1), Credit(method=method))) == {0.0}
    # A thousandth of a reward is a difference.
    assert found(rewarded(1.0, 1.001, steps=1), Credit(method=method))[1] != 0.0


def test_a_small_discount_over_a_long_episode_loses_nothing() -> None:
    """Running products would underflow after 750 steps of a half, and divide nought by nought."""
    credit = Credit(method="rewards_to_go", gamma=0.5)
    steps = found([Episode(0, (Step(1.0),) * 5000)], credit)
    assert steps[:3] == pytest.approx([2.0] * 3)
    assert steps[-2:] == [1.5, 1.0]


def test_an_infinite_reward_stays_in_its_episode() -> None:
    episodes = [*rewarded(*[float("inf")] * 8, steps=1), *rewarded(*[1.0] * 8, steps=5)]
    for method in ("identical", "rewards_to_go", "discounted"):
        values = found(episodes, Credit(method=method))[8:]
        assert all(value is not None and value <= 1 for value in values)


@pytest.mark.parametrize("method", ["grpo", "rloo", "gigpo"])
def test_sums_that_round_come_out_the_same_in_any_order(method: CreditMethod) -> None:
    """Tenths have no exact sums."""
    draw = random.Random(1)
    rows = frame(rewarded(*(draw.randrange(100) / 10 + 0.1 for _ in range(40)), steps=1))
    once = advantages(rows, Credit(method=method)).sort("episode_id")["advantage"]
    for seed in range(5):
        shuffled = rows.sample(fraction=1, shuffle=True, seed=seed)
        assert advantages(shuffled, Credit(method=method)).sort("episode_id")["advantage"].equals(once)


@pytest.mark.parametrize("method", ["grpo", "rloo", "gigpo"])
def test_names_of_episodes_have_no_say(method: CreditMethod) -> None:
    """Rows are put in the order of hashes of names, which are others in another version of Polars."""
    draw = random.Random(1)
    rows = frame(
        [
            Episode(0, tuple(Step(draw.randrange(100) / 10, state=n % 2) for n in range(3)), 0.1)
            for _ in range(40)
        ]
    )
    once = advantages(rows, Credit(method=method))["advantage"]
    for name in "abcde":
        renamed = rows.with_columns(pl.concat_str(pl.lit(name), "episode_id").alias("episode_id"))
        assert advantages(renamed, Credit(method=method))["advantage"].equals(once)


def test_an_answer_that_was_not_taken_has_no_advantage() -> None:
    rows = frame(rewarded(1.0, 0.0))
    other = rows.filter(pl.col("step") == 0).with_columns(
        pl.lit(1, pl.Int32).alias("choice"), pl.lit(value=False).alias("taken"),
        pl.lit(None, pl.Float64).alias("reward_episode"),
    )  # fmt: skip
    result = advantages(pl.concat([other, rows]), Credit(method="rloo"))
    assert result["advantage"].to_list() == [None, None, 1.0, 1.0, -1.0, -1.0]


def test_agents_of_one_task_are_compared_with_themselves_alone() -> None:
    """A planner that always gets 1 is no baseline for a worker that sometimes fails."""
    planner = [replace(episode, agent="planner") for episode in rewarded(1.0, 1.0)]
    worker = [replace(episode, agent="worker") for episode in rewarded(1.0, 0.0)]
    values = found([*planner, *worker], Credit(method="rloo"))
    assert values == [0.0] * 4 + [1.0, 1.0, -1.0, -1.0]


@pytest.mark.parametrize("method", ["grpo", "rloo", "gigpo"])
def test_a_run_of_several_agents_is_of_the_group_of_the_first(method: CreditMethod) -> None:
    rows = frame([Episode(0, (Step(state=n), Step(state=9)), reward) for n, reward in enumerate((1.0, 0.0))])
    handed = rows.with_columns(
        pl.when(pl.col("step") == 1).then("episode_id").otherwise("agent").alias("agent")
    )
    credit = Credit(method=method)
    assert advantages(handed, credit)["advantage"].equals(advantages(rows, credit)["advantage"])


def test_rewards_of_steps_reach_those_before_them_only() -> None:
    episode = Episode(0, (Step(), Step(0.5), Step()), None)
    assert found([episode], Credit(method="rewards_to_go")) == [0.5, 0.5, None]
    assert found([episode], Credit()) == [0.5, 0.5, 0.5]


def test_equal_states_tell_steps_apart_that_episodes_cannot() -> None:
    """Two runs of the same reward, of which one came through a state twice."""
    runs = [Episode(0, (Step(state=1), Step(state=2)), 1.0), Episode(0, (Step(state=1), Step(state=3)), 0.0)]
    by_episode = found(runs, Credit(method="gigpo", omega=0.0))
    both = found(runs, Credit(method="gigpo"))
    assert by_episode == found(runs, Credit(method="grpo"))
    assert both[0] > by_episode[0]  # type: ignore[operator]  # none is null
    assert both[1] == by_episode[1]


def test_states_are_compared_within_a_task_and_among_answers_alone() -> None:
    """Neither with those of another task, nor with a call that failed, nor where nobody knows the prompt."""
    runs = [
        Episode(0, (Step(ok=False, state=2), Step(state=1)), 1.0),
        Episode(0, (Step(state=2),), 0.0),
        Episode(1, (Step(state=1),), 0.25),
        Episode(1, (Step(state=2),), 0.75),
    ]
    assert found(runs, Credit(method="gigpo")) == found(runs, Credit(method="grpo"))
    alike = frame([Episode(0, (Step(), Step(0.5)), reward) for reward in (1.0, 0.0)])
    unknown = alike.with_columns(pl.lit(None, pl.UInt64).alias("state_code"))
    of_episodes = advantages(alike, Credit(method="grpo"))["advantage"]
    assert advantages(unknown, Credit(method="gigpo"))["advantage"].equals(of_episodes)
    assert not advantages(alike, Credit(method="gigpo"))["advantage"].equals(of_episodes)


def test_the_values_of_the_paper_at_both_ends() -> None:
    """λ = 1: the return less the value; λ = 0: what one step earned beyond it. Equations 17 and 18."""
    episode = Episode(0, (Step(value=0.25), Step(0.5, value=0.75)), 1.0)
    assert found([episode], Credit(method="gae", lambda_=1.0, values="v")) == [1.25, 0.75]
    assert found([episode], Credit(method="gae", lambda_=0.0, values="v")) == [0.5, 0.75]


@pytest.mark.parametrize("method", ["discounted", "rewards_to_go", "gigpo", "gae"])
def test_an_attempt_that_failed_takes_no_time(method: CreditMethod) -> None:
    credit = Credit(method=method, gamma=0.5, values="v" if method == "gae" else None)
    first, last, other = (
        Step(state=1, value=0.25),
        Step(state=2, value=0.75),
        Episode(0, (Step(state=1),), 0.0),
    )
    retried = found([Episode(0, (first, Step(ok=False, value=None), last), 1.0), other], credit)
    assert [retried[0], *retried[2:]] == found([Episode(0, (first, last), 1.0), other], credit)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_missing_value_costs_its_episode_alone(value: float | None) -> None:
    lost = Episode(0, (Step(), Step(value=value)), 1.0)
    assert found([lost, *rewarded(1.0)], Credit(method="gae", values="v"))[:2] == [None, None]
    assert None not in found([lost, *rewarded(1.0)], Credit(method="gae", values="v"))[2:]


def test_the_arithmetic_in_words() -> None:
    rows = advantages(frame(rewarded(1.0, 0.0, 0.0, 1.0, steps=1)), Credit(method="grpo"))
    assert explain(rows, Credit(method="grpo"), episode_id="e0", step=0) == [
        "credit grpo scale_by_std=true: earned here 1, return 1; return of the episode 1",
        "group t0 of a: 4 episodes, returns 0, 0, 1, 1; mean 0.5, std 0.5774; (1 - 0.5) / 0.5774 = 0.866",
    ]
    assert explain(rows, Credit(), episode_id="nowhere", step=0) == [
        "episode nowhere has no step 0 with answer 0 here"
    ]


def dataset_rows(*groups: list[tuple[float | None, int]]) -> pl.DataFrame:
    """Rows as a dataset has them: task → episodes of (reward, steps)."""
    rows = [
        {"task_id": f"t{t}", "agent": "a", "episode_id": f"t{t}e{e}", "step": s, "choice": 0, "reward": r, "return_": r, "advantage": r}
        for t, group in enumerate(groups)
        for e, (r, steps) in enumerate(group)
        for s in range(steps)
    ]  # fmt: skip
    return pl.DataFrame(
        rows, schema_overrides={"reward": pl.Float64, "return_": pl.Float64, "advantage": pl.Float64}
    )


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_the_trainer_compares_as_the_build_does(method: Any) -> None:
    groups = [[(1.0, 1), (0.0, 3), (None, 2)], [(2.0, 2)]]
    episodes = [
        Episode(t, (Step(),) * steps, reward) for t, group in enumerate(groups) for reward, steps in group
    ]
    rows = among_rollouts(dataset_rows(*groups), method)
    assert same(rows["advantage"].to_list(), found(episodes, Credit(method=method)))


def test_the_trainer_compares_what_is_left() -> None:
    rows = dataset_rows([(1.0, 1), (0.0, 1), (0.5, 1)]).filter(pl.col("reward") != 0.5)
    assert among_rollouts(rows, "rloo")["advantage"].to_list() == [1.0, -1.0]


def test_the_trainer_looks_at_the_first_row_of_an_episode_whatever_the_order() -> None:
    """Its return, its agent; a later row has another return, and may be another agent's. An answer that was not taken has none."""
    rows = dataset_rows([(0.0, 2), (0.0, 2)])
    later, name = pl.col("step") == 1, pl.col("episode_id")
    rows = rows.with_columns(
        pl.when(later).then(7.0).when(name == "t0e0").then(1.0).otherwise(0.5).alias("return_"),
        pl.when(later).then(name).otherwise("agent").alias("agent"),
    )
    nothing = (pl.lit(None, pl.Float64).alias(of) for of in ("reward", "return_", "advantage"))
    other = rows.filter(~later).with_columns(*nothing, choice=pl.lit(1, pl.Int64))
    found = among_rollouts(pl.concat([other, rows.reverse()]), "rloo")
    assert found["advantage"].to_list() == [None, None, -0.5, -0.5, 0.5, 0.5]


def test_every_method_has_its_options_and_its_source() -> None:
    assert set(METHODS) == set(CREDIT_OPTIONS) == set(get_args(CreditMethod))
    assert all(method.source for method in METHODS.values())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "rloo", "gamma": 0.9}, "rloo has no gamma; it takes no options"),
        ({"method": "discounted", "lambda": 0.9}, "discounted has no lambda; it takes only gamma"),
        ({"gamma": 0.9}, "identical has no gamma"),
        ({"method": "gae"}, "gae needs values"),
        ({"method": "gigpo", "gamma": 0.0}, "greater than 0"),
        ({"method": "gigpo", "omega": float("inf")}, "finite"),
        ({"method": "best"}, "'identical', 'discounted', 'rewards_to_go', 'grpo', 'rloo', 'gigpo' or 'gae'"),
    ],
    ids=lambda value: value.get("method", "none") if isinstance(value, dict) else "",
)
def test_options_that_a_method_has_no_use_for_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Credit.model_validate(options)


VALUES = {"trace_id": ["t", "t"], "span_id": ["a", "b"], "choice": [0, 0], "value": [0.5, 1.5]}


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({**VALUES, "value": ["x", "y"]}, "column value is String"),
        ({**VALUES, "choice": [0.5, 1.0]}, "column choice is Float64"),
        ({**VALUES, "span_id": ["a", "a"]}, "trace t, span a, choice 0"),
        ({name: VALUES[name] for name in ("trace_id", "value")}, "no column span_id and no choice; it has"),
        (None, "cannot be read as Parquet"),
    ],
    ids=["text", "fraction", "twice", "missing", "broken"],
)
def test_a_bad_file_of_values_is_named(tmp_path: Path, columns: dict[str, Any] | None, named: str) -> None:
    path = tmp_path / "values.parquet"
    if columns is None:
        path.write_text("no Parquet")
    else:
        pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(ConfigError, match=named):
        read_values(path)


def test_values_find_their_answers(tmp_path: Path) -> None:
    pl.DataFrame(VALUES).write_parquet(tmp_path / "values.parquet")
    values = read_values(tmp_path / "values.parquet")
    assert values is not None
    calls = pl.DataFrame({"row": [0, 1, 2], "trace_id": ["t"] * 3, "span_id": ["b", "a", "c"]})
    rows = pl.DataFrame({"row": [0, 1, 2], "choice": pl.Series([0, 0, 0], dtype=pl.Int32)})
    assert join_values(rows, calls, values)["value"].to_list() == [1.5, 0.5, None]
    pl.DataFrame({**VALUES, "choice": [2**40, 0]}).write_parquet(tmp_path / "values.parquet")
    values = read_values(tmp_path / "values.parquet")
    assert values is not None
    assert join_values(rows, calls, values)["value"].to_list() == [1.5, None, None]
    with pytest.raises(ConfigError, match="not one of 3 answers"):
        join_values(rows, calls.with_columns(trace_id=pl.lit("elsewhere")), values)
