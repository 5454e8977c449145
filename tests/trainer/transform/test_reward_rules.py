"""Rules over episodes and over calls, what each sees, and what is wrong with one shows before anything is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from spanloop_trainer.config import Config, RewardRule, load_config
from spanloop_trainer.errors import ConfigError, TransformError
from spanloop_trainer.transform.episodes.tasks import read_tasks
from spanloop_trainer.transform.rewards import Scorer
from spanloop_trainer.transform.rewards.facts import CALL, EPISODE, blank
from spanloop_trainer.transform.rewards.rules import check_rules, score_rules
from spanloop_trainer.transform.rewards.totals import total
from spanloop_trainer.transform.rewards.verifiers import find_verifiers

from .conftest import Agent, Build, called, result, said, user

EPISODES = pl.DataFrame(
    {
        "episode_id": ["a", "b", "c"],
        "answer": ["4", " five", None],
        "expected": ["4", "5", None],
        "steps": [2, 3, 1],
        "task_level": ["easy", "hard", None],
        "task_limits": [[1, 2], [3], None],
    }
)


def rule(expression: str, **settings: Any) -> RewardRule:
    return RewardRule(name="r", expression=expression, **settings)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("CAST(TRIM(answer) = expected AS DOUBLE)", {"a": 1.0, "b": 0.0}),
        ("answer = expected", {"a": 1.0, "b": 0.0}),
        ("1 - steps * 0.1", {"a": 0.8, "b": 0.7, "c": 0.9}),
        ("CASE WHEN task_level IN ('easy', 'hard') THEN ROUND(steps / 3.0, 1) END", {"a": 0.7, "b": 1.0}),
        ("TRY_CAST(answer AS DOUBLE)", {"a": 4.0}),
        ("CASE WHEN steps = 3 THEN LN(0) ELSE SQRT(-1) END", {}),
        ("2", {"a": 2.0, "b": 2.0, "c": 2.0}),
        ("answer = 'OVER (SELECT' -- a comment", {"a": 0.0, "b": 0.0}),
        ("NULL", {}),
        ("steps / 0", {}),
        ("ARRAY_LENGTH(task_limits)", {"a": 2.0, "b": 1.0}),
    ],
)
def test_an_expression_gives_a_number_or_nothing(expression: str, expected: dict[str, float]) -> None:
    scored = score_rules([rule(expression)], EPISODES, "episode_id")
    assert dict(scored.select("episode_id", "value").rows()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        (
            "answr = 'x'",
            r'reward \'r\': .*"answr"; valid columns: episode_id, answer, expected, steps, task_level, task_limits\n',
        ),
        ("CAST((", "cannot be evaluated: sql parser error"),
        ("answer", "it gives String, no number"),
        ("AVG(steps)", "cannot be evaluated"),
        ("SUM(steps) OVER (PARTITION BY task_level)", "looks at other rows than its own"),
        ("SUM(steps) OVER/**/(PARTITION BY task_level)", "looks at other rows than its own"),
        ("-- don't\nSUM(steps) OVER () -- don't", "looks at other rows than its own"),
        ("ROW_NUMBER()", "looks at other rows than its own"),
        ("UNNEST(task_limits)", "looks at other rows than its own"),
        ("(SELECT MAX(steps) FROM self)", "looks at other rows than its own"),
        ("steps + answer", "cannot be evaluated"),
        ("no_such_function(steps)", "unsupported function"),
    ],
)
@pytest.mark.parametrize("rows", [0, 3])
def test_what_is_wrong_shows_without_a_row(expression: str, why: str, rows: int) -> None:
    with pytest.raises(TransformError, match=why) as caught:
        check_rules([rule(expression)], EPISODES.head(rows))
    assert "expression" in caught.value.hint


def test_levels_see_what_the_documentation_says() -> None:
    text = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")
    for heading, level in (("Columns of an episode", "episode"), ("Columns of a call", "call")):
        section = text.partition(f"### {heading}\n")[2].partition("\n#")[0]
        shown = {
            name.strip("` ")
            for line in section.splitlines()
            if line.startswith("| `")
            for name in line.split("|")[1].split(",")
        }
        tasks = pl.DataFrame(
            schema=dict.fromkeys(("task_id", "prompt", "expected", "split", "task_FIELD"), pl.String)
        )
        seen = {
            name
            for name in blank(level, tasks).columns
            if not name.startswith("episode_") or name == "episode_id"
        }
        if level == "call":
            seen.add("episode_NAME")
            assert {name for name in blank(level, tasks).columns if name.startswith("episode_")} > {
                "episode_steps"
            }
        assert shown == seen


def test_a_blank_frame_has_the_types_of_a_real_one(
    build_rows: Build, tmp_path: Path, monkeypatch: Any
) -> None:
    from spanloop_trainer.transform.rewards import scorer

    seen: dict[str, pl.DataFrame] = {}
    score = scorer.score_rules

    def spy(rules: Any, facts: pl.DataFrame, key: str) -> pl.DataFrame:
        seen[key] = facts
        return score(rules, facts, key)

    monkeypatch.setattr(scorer, "score_rules", spy)
    config = tasks_of(tmp_path, [RewardRule(name="c", expression="1", level="call")])
    build_rows([Agent().call([user("p")], said("a"), at=0)], config)
    tasks = read_tasks(config)
    assert seen["episode_id"].schema == blank("episode", tasks).schema
    assert seen["row"].drop("row").schema == blank("call", tasks).schema


def test_what_the_documentation_shows_works(tmp_path: Path) -> None:
    """Its settings are valid, its verifiers are found, and its function does what it says."""
    text = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (function,) = (body for language, body in blocks if language == "python")
    (tmp_path / "checks.py").write_text(function)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "train.jsonl").write_text('{"id": "1", "prompt": "p", "expected": "4"}\n')
    toml = [body for language, body in blocks if language == "toml"]
    assert len(toml) == 5
    for body in toml:
        # The table of the judge is shown once.
        judge = '[judge]\nmodel = "m"\n' if "rubric" in body and "[judge]" not in body else ""
        (tmp_path / "spanloop.toml").write_text(body + judge)
        config = load_config(tmp_path / "spanloop.toml")
        Scorer(read_tasks(config), config)
        if "polite" in body:
            (check,) = find_verifiers(config)
            run = SimpleNamespace(answer="Here you are, thank you, please.")
            assert check.function(run) == 1.0
            assert check.function(run, **check.rule.options) == 1.0
            assert check.function(SimpleNamespace(answer=None)) is None


def tasks_of(folder: Path, rewards: list[RewardRule]) -> Config:
    task = {"id": "t1", "prompt": "p", "expected": "done", "limit": 2}
    (folder / "tasks.jsonl").write_text(json.dumps(task) + "\n")
    (folder / "spanloop.toml").write_text('[[tasks]]\nfile = "tasks.jsonl"\nsplit = "train"\n')
    loaded = load_config(folder / "spanloop.toml")
    config = Config(tasks=loaded.tasks, rewards=tuple(rewards))
    config._folder = folder
    return config


def test_a_rule_over_calls_rewards_each_call(build_rows: Build, client: Any, tmp_path: Path) -> None:
    agent = Agent()
    history = [user("p"), called("find", {"q": 1}, "c1"), result("c1", "Error: not found")]
    rows = [
        agent.call(history[:1], called("find", {"q": 1}, "c1"), at=0),
        agent.call(history, said("done"), at=1),
    ]
    config = tasks_of(
        tmp_path,
        [
            RewardRule(name="failed_tool", level="call", expression="CASE WHEN observation LIKE '%Error%' THEN -1 END"),
            RewardRule(name="closing", level="call", expression="CASE WHEN last AND answer = expected THEN 1 END"),
            RewardRule(name="short", level="call", expression="CASE WHEN episode_steps <= task_limit AND step = 0 THEN 0.25 END"),
            RewardRule(name="whole", expression="CASE WHEN steps = 2 THEN 10 END", weight=0.1),
        ],
    )  # fmt: skip
    _, frame = build_rows(rows, config)
    frame = frame.sort("step")
    names = [[part["name"] for part in parts] for parts in frame["reward_parts"].to_list()]
    assert names == [["whole", "failed_tool", "short"], ["whole", "closing"]]
    assert frame["reward"].to_list() == pytest.approx([1.0 - 1.0 + 0.25, 1.0 + 1.0])
    stored = client.query("SELECT name, span_id FROM rewards ORDER BY name").result_rows
    spans = [row["SpanId"] for row in rows]
    assert stored == [
        ("closing", spans[1]), ("failed_tool", spans[0]), ("short", spans[0]), ("whole", spans[1])
    ]  # fmt: skip


def test_weights_are_by_name_and_a_name_without_a_rule_weighs_one() -> None:
    parts = pl.DataFrame(
        [
            ("e", name, value, "feedback", "u", "1")
            for name, value in (("known", 2.0), ("other", 3.0), ("known", 4.0))
        ],
        schema=["episode_id", "name", "value", "source", "evaluator", "version"],
        orient="row",
    )
    config = Config(rewards=(RewardRule(name="known", weight=-0.5),))
    row = total(parts, "episode_id", config).row(0, named=True)
    assert row["reward"] == 3.0 - 3.0
    assert [
        (part["name"], part["value"], part["evaluator"], part["version"]) for part in row["reward_parts"]
    ] == [
        ("known", 2.0, "u", "1"),
        ("known", 4.0, "u", "1"),
        ("other", 3.0, "u", "1"),
    ]
    assert total(parts.reverse(), "episode_id", config).row(0, named=True) == row


def test_what_weighs_nothing_scores_nothing() -> None:
    """Kept to look at: an episode that nobody else judged is unscored, and no failure."""
    parts = pl.DataFrame(
        [("a", "seen", 1.0), ("b", "seen", 1.0), ("b", "other", 0.0), ("c", "other", 0.5)],
        schema=["episode_id", "name", "value"],
        orient="row",
    ).with_columns(pl.lit("x").alias(name) for name in ("source", "evaluator", "version"))
    summed = total(parts, "episode_id", Config(rewards=(RewardRule(name="seen", weight=0.0),)))
    assert dict(summed.select("episode_id", "reward").rows()) == {"a": None, "b": 0.0, "c": 0.5}
    assert summed["reward_parts"].list.len().to_list() == [1, 2, 1]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"weight": float("nan")}, "finite number"),
        ({"expression": "1", "verifier": "exact_match"}, "expression and verifier; one of them"),
        ({"rubric": "good?", "verifier": "exact_match"}, "verifier and rubric; one of them"),
        ({"level": "call"}, "level, which is of use with expression alone"),
        ({"expression": "1", "options": {"a": 1}}, "options, which is of use with verifier alone"),
        ({"verifier": "exact_match", "rank": True}, "rank, which is of use with rubric alone"),
        ({"level": "calls", "expression": "1"}, "'episode' or 'call'"),
    ],
)
def test_settings_that_do_not_fit_together_are_named(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        RewardRule(name="x", **settings)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[[rewards]]\nname = "a"\n[[rewards]]\nname = "a"\n', r"a twice"),
        ('[[rewards]]\nname = "a"\nrubric = "good?"\n', r"no \[judge\]"),
        ('[judge]\nmodel = "m"\nmax_cost = 1.0\n', "max_cost needs price_input"),
        (
            '[judge]\nmodel = "m"\nmodle = "n"\n',
            "judge.modle: there is no such setting; valid: model, base_url",
        ),
        ("[watermark]\nwait_h = -1\n", "watermark.wait_h"),
        ("[watermark]\nwait_h = inf\n", "watermark.wait_h"),
        ("[watermark]\nwait_h = 1e12\n", "watermark.wait_h"),
    ],
)
def test_a_configuration_that_says_too_little_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "spanloop.toml").write_text(text)
    with pytest.raises(ConfigError, match=why):
        load_config(tmp_path / "spanloop.toml")


def test_what_changes_no_verdict_changes_no_dataset() -> None:
    def hashed(**settings: Any) -> str:
        return Config.model_validate({"judge": {"model": "m", **settings}}).content_hash()

    assert hashed() == hashed(concurrency=2, timeout_s=5, base_url="http://x/v1", price_input=3, max_cost=1)
    assert len({hashed(), hashed(scale=5), hashed(max_chars=2000), hashed(request={"temperature": 0})}) == 4


def test_facts_name_their_columns_once() -> None:
    assert set(CALL) & set(EPISODE) >= {"answer", "status", "agent"}
    assert not {name for name in (*CALL, *EPISODE) if name.startswith("task_") and name != "task_id"}
