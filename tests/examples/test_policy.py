"""Yesterday's scripted model is imperfect in exactly the way the demo says."""

from __future__ import annotations

import json
from collections import Counter

import policy
import tasks as calculator


def test_right_in_one_of_three_for_every_operation_and_wording() -> None:
    model = policy.Policy(seed=1)
    right: Counter[tuple[str, tuple[int, str]]] = Counter()
    asked: Counter[tuple[str, tuple[int, str]]] = Counter()
    for task in calculator.generate(3600, held_out=False, seed=1):
        question = calculator.parse(task.prompt)
        assert question is not None
        message = model.message([{"role": "user", "content": task.prompt}])
        function = message["tool_calls"][0]["function"]
        assert json.loads(function["arguments"]) == {"a": question.a, "b": question.b}
        assert function["name"] in (question.operation, policy.HABIT[question.operation])
        key = (question.operation, question.wording)
        asked[key] += 1
        right[key] += function["name"] == question.operation
    assert len(asked) == 120
    assert all(count == 30 for count in asked.values())
    assert all(right[key] == 10 for key in asked)


def test_the_habit_is_a_cycle_over_all_tools() -> None:
    tool, seen = "add", []
    for _ in policy.HABIT:
        tool = policy.HABIT[tool]
        seen.append(tool)
    assert sorted(seen) == sorted(calculator.OPERATIONS)
    assert tool == "add"


def test_it_answers_with_the_tools_result_and_says_when_it_does_not_understand() -> None:
    model = policy.Policy(seed=0)
    assert model.message([{"role": "tool", "content": "-7"}])["content"] == "-7"
    assert "tool_calls" not in model.message([{"role": "user", "content": "hello"}])
