"""The verifiers that ship, over single episodes; and what a build does with them."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanloop.commands.dataset import print_manifest
from spanloop_trainer.config import Config, RewardRule
from spanloop_trainer.errors import ConfigError
from spanloop_trainer.transform.rewards.checks import SHIPPED
from spanloop_trainer.transform.rewards.checks.code import unit_tests
from spanloop_trainer.transform.rewards.checks.database import sql_result
from spanloop_trainer.transform.rewards.checks.documents import fenced, json_schema
from spanloop_trainer.transform.rewards.checks.text import exact_match, last_number, numeric_match
from spanloop_trainer.transform.rewards.checks.tools import tool_errors
from spanloop_trainer.transform.rewards.episode import Call, Episode
from spanloop_trainer.transform.rewards.stored import digest
from spanloop_trainer.transform.rewards.verifiers import Check, find_verifiers, verify

from .conftest import Agent, Build, Row, called, result, said, user


def episode(
    answer: str | None, expected: str | None = None, *calls: Call, status: str = "ok", **task: Any
) -> Episode:
    return Episode(
        id="e", task_id="t", expected=expected, task=task, agent="a", service="s", policy_version=None, split="train",
        answer=answer, status=status, finish_reason="stop", duration_s=1.0, calls=calls,
    )  # fmt: skip


def call(*messages: dict[str, Any]) -> Call:
    return Call("s", 0, "ok", None, messages, {"role": "assistant", "content": "x"}, (), 0.5)


def tool(content: Any, call_id: str | None = "1", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content, **more}


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"tool_errors"}))
def test_a_failed_run_is_unscored(name: str) -> None:
    assert SHIPPED[name](episode(None, "1", status="error", schema={}, setup="x", tests="x")) is None


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"tool_errors"}))
def test_a_run_that_another_called_does_not_answer_the_task(name: str) -> None:
    """Its caller does; `expected` is null for it."""
    run = replace(episode("1", None, schema={}, setup=SETUP, tests="assert True"), called=True)
    assert SHIPPED[name](run) is None


@pytest.mark.parametrize(
    ("answer", "expected", "options", "value"),
    [
        (" Paris\n", "Paris", {}, 1.0),
        ("paris", "Paris", {}, 0.0),
        ("STRASSE", "straße", {"ignore_case": True}, 1.0),
        (None, "Paris", {}, 0.0),
        ("Paris", None, {}, None),
    ],
)
def test_exact_match(
    answer: str | None, expected: str | None, options: dict[str, Any], value: float | None
) -> None:
    assert exact_match(episode(answer, expected), **options) == value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", Fraction(42)),
        ("first 3, then -1,234.50", Fraction("-1234.5")),
        ("\\boxed{-3/4}", Fraction(-3, 4)),
        ("\u22127", Fraction(-7)),
        ("about 6.02e23 of them", Fraction(602 * 10**21)),
        ("costs $.5", Fraction(1, 2)),
        ("1/0", None),
        ("version v2 and x3", None),
        ("#### 18", Fraction(18)),
        ("nothing", None),
        ("9" * 500, None),
        ("5%", Fraction(5)),
        ("It is 12345678901234567890123.", Fraction(12345678901234567890123)),
        ("3-2", Fraction(2)),
        ("\\boxed{42} as in step 2", Fraction(42)),
        ("first \\boxed{1}, then \\boxed{x^{2} = 9} in 7 steps", Fraction(9)),
        ("-\\frac{3}{4}", Fraction(-3, 4)),
    ],
)
def test_the_last_number_of_a_text(text: str, number: Fraction | None) -> None:
    found = last_number(text)
    assert found == number or (text in ("1/0", "3-2") and found is not None)


@given(
    st.integers(-(10**30), 10**30), st.sampled_from(["{}", "= {}.", "({})", "1 and {} apples", "**{:,}**"])
)
def test_whole_numbers_are_read_exactly(number: int, around: str) -> None:
    assert last_number(around.format(number)) == number


@settings(deadline=None)
@given(st.text(max_size=200))
def test_no_text_breaks_the_reader_of_numbers(text: str) -> None:
    last_number(text)


@pytest.mark.parametrize(
    ("answer", "expected", "tolerance", "value"),
    [
        ("3.1415926", "3.1415927", 1e-6, 1.0),
        ("3.14", "3.1415927", 1e-6, 0.0),
        ("3.14", "3.1415927", 0.01, 1.0),
        ("0.1", "1/10", 0.0, 1.0),
        ("none", "1", 1e-6, 0.0),
    ],
)
def test_numeric_match(answer: str, expected: str, tolerance: float, value: float) -> None:
    assert numeric_match(episode(answer, expected), tolerance=tolerance) == value


def test_a_task_whose_number_is_none_raises() -> None:
    with pytest.raises(ValueError, match="expected is no number"):
        numeric_match(episode("1", "blue"))


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("no block", "no block"),
        ("```\n1\n```\n```\n2\n```", "2\n"),
        ("```sql\n1\n```\nwhich gives\n```text\n2\n```", "1\n"),
        ("Here:```sql\n1\n```\nDone", "1\n"),
        ('```sql title="q.sql"\n1\n```\nDone', "1\n"),
        ("```sql\r\n1\r\n```\r\nDone", "1\r\n"),
        ("~~~\n```\n~~~", "```\n"),
        ("````\n```\n1\n````", "```\n1\n"),
        ("```python\nx = '```'\n    ```\ny\n```\n", "x = '```'\n    ```\ny\n"),
        ("10. so\n    ```\n    1\n      2\n    ```\nDone", "1\n  2\n"),
        ("```\nnever\nclosed", "never\nclosed"),
        ("```\n1```\nDone", "1"),
        ("```\n1\n```\nDone.\n```\n", "1\n"),
        ("use ``` here", "use ``` here"),
    ],
)
def test_the_block_of_an_answer(text: str, block: str) -> None:
    assert fenced(text, "sql") == block


SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"city": "Rome"}', 1.0),
        ('Here:\n```json\n{"city": "Rome"}\n```\nDone.', 1.0),
        ('{"city": 3}', 0.0),
        ("{", 0.0),
        ('{"city": "Rome", "size": NaN}', 0.0),
        ("[" * 100_000, 0.0),
        ("1" * 5_000, 0.0),
        (None, 0.0),
    ],
    ids=lambda given: str(given)[:30],
)
def test_json_schema(answer: str | None, value: float) -> None:
    assert json_schema(episode(answer), schema=SCHEMA) == value
    assert json_schema(episode(answer, schema=json.dumps(SCHEMA))) == value


@pytest.mark.parametrize(
    "schema", [None, {"type": "no such type"}, {"$ref": "http://127.0.0.1:1/elsewhere.json"}], ids=str
)
def test_a_schema_that_is_none_raises_and_nothing_is_fetched(schema: dict[str, Any] | None) -> None:
    with pytest.raises(Exception, match=r"schema|Unresolvable|elsewhere|no such type"):
        json_schema(episode("{}"), schema=schema)


SETUP = "CREATE TABLE t (n INTEGER, s TEXT); INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'b');"


@pytest.mark.parametrize(
    ("answer", "expected", "options", "value"),
    [
        ("SELECT s, count(*) FROM t GROUP BY s", "SELECT s, sum(1) AS x FROM t GROUP BY 1 ORDER BY s DESC", {}, 1.0),
        ("```sql\nSELECT n FROM t ORDER BY n DESC\n```", "SELECT n FROM t ORDER BY n", {}, 1.0),
        ("SELECT n FROM t ORDER BY n DESC", "SELECT n FROM t ORDER BY n", {"ordered": True}, 0.0),
        ("SELECT n * 1.0 FROM t", "[[1], [2], [3]]", {}, 1.0),
        ("SELECT s FROM t", "[[\"a\"], [\"b\"]]", {}, 0.0),
        ("SELECT nothing FROM t", "SELECT n FROM t", {}, 0.0),
        ("not sql", "SELECT n FROM t", {}, 0.0),
        ("", "SELECT n FROM t", {}, 0.0),
        ("DELETE FROM t RETURNING n", "SELECT n FROM t", {}, 0.0),
        ("SELECT 1; SELECT 2", "SELECT 1", {}, 0.0),
        ("SELECT load_extension('x')", "SELECT 1", {}, 0.0),
        ("ATTACH 'file:leak.db' AS x", "SELECT 1", {}, 0.0),
        ("PRAGMA query_only = OFF", "SELECT 1", {}, 0.0),
        ("SELECT zeroblob(1000000000)", "SELECT 1", {}, 0.0),
        ("SELECT 12345678901", "SELECT 12345678901.0", {}, 1.0),
        ("SELECT 12345678901", "SELECT 12345678902", {}, 0.0),
        ("SELECT 0.1 + 0.2, 1", "[[0.3, true]]", {}, 1.0),
        ("SELECT 1 UNION ALL SELECT 1", "SELECT 1", {}, 0.0),
        ("SELECT count(*) FROM pragma_database_list", "SELECT 1", {}, 0.0),
        ("WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r LIMIT 99) SELECT zeroblob(200000) FROM r", "SELECT 1", {}, 0.0),
        ("SELECT instr(hex(zeroblob(4000000)), hex(zeroblob(1000000)) || '1')", "SELECT 0", {}, 0.0),
        (f"SELECT hex(zeroblob(100000)) LIKE '{'%0' * 600}1'", "SELECT 0", {}, 0.0),
        ("SELECT a.n FROM t a, t b", "SELECT 1", {"max_rows": 8}, 0.0),
        ("WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT max(i) FROM r", "SELECT 1", {"timeout_s": 0.05}, 0.0),
    ],
)  # fmt: skip
def test_sql_result(answer: str, expected: str, options: dict[str, Any], value: float) -> None:
    assert sql_result(episode(answer, expected), setup=SETUP, **options) == value
    assert sql_result(episode(answer, expected, setup=SETUP), **options) == value


def test_what_a_query_gives_is_never_more_than_memory_holds() -> None:
    """Small rows and small values may be much together."""
    many = "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r LIMIT 99) SELECT zeroblob(200000) FROM r"
    with pytest.raises(ValueError, match="more than 10000 rows, or 16 MiB"):
        sql_result(episode("SELECT 1", many), setup=SETUP)


@pytest.mark.parametrize(
    ("setup", "expected", "why"),
    [
        ("", "SELECT 1", "there is no database"),
        ("CREATE", "SELECT 1", "setup or expected fails"),
        (SETUP, "SELECT x FROM t", "setup or expected fails"),
        (SETUP, '{"a": 1}', "neither a query nor"),
    ],
)
def test_a_database_that_cannot_be_asked_raises(setup: str, expected: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        sql_result(episode("SELECT 1", expected), setup=setup)


TESTS = "def test_add():\n    assert add(1, 2) == 3\n"


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("```python\ndef add(a, b):\n    return a + b\n```", 1.0),
        ("def add(a, b):\n    return a - b\n", 0.0),
        ("def add(a, b:", 0.0),
        ("import sys\nsys.exit(0)", 0.0),
        ("import os\nos._exit(0)", 0.0),
        ("def add(a, b):\n    print('x' * 10)\n    return a + b\n", 1.0),
        ("import os\nassert not os.environ.get('OPENAI_API_KEY') and 'pytest' not in os.environ\ndef add(a, b):\n    return a + b", 1.0),
        ("x = bytearray(4 << 30)\ndef add(a, b):\n    return a + b", 0.0),
        ("def add(a, b):\n    return a + b\n\ndef test_of_mine(n):\n    assert False", 1.0),
        ("while True: pass", 0.0),
        ("while True: print('x' * 1000000)", 0.0),
    ],
    ids=["right", "wrong", "no-python", "exits", "exits-at-once", "prints", "no-secrets", "memory", "own-tests", "endless", "floods"],
)  # fmt: skip
def test_unit_tests(answer: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert (
        unit_tests(episode(answer, tests=TESTS), timeout_s=1.0 if answer.startswith("while") else 30.0)
        == value
    )


def test_what_a_program_started_ends_with_it(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    program = (
        f"import subprocess, sys\nheld = open({str(alive)!r}, 'w')\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], pass_fds=[held.fileno()])\n"
        "def add(a, b):\n    return a + b\n"
    )
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert unit_tests(episode(program, tests=TESTS), timeout_s=30.0) == 1.0
        os.set_blocking(reader, True)
        assert os.read(reader, 1) == b""  # the last that held the other end is gone
    finally:
        os.close(reader)


def test_without_tests_it_raises() -> None:
    with pytest.raises(ValueError, match="there are no tests"):
        unit_tests(episode("x = 1"))


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ("class TestAdd:\n    def test_add(self):\n        assert add(1, 2) == 3\n\ndef test_more(): ...", "TestAdd would not run"),
        ("async def test_add():\n    assert add(1, 2) == 3", "test_add would not run"),
        ("def test_add(a, b=1):\n    assert add(a, b) == 3", "test_add takes arguments"),
        ("def test_add(*, a):\n    assert add(a, 2) == 3", "test_add takes arguments"),
        ('"""Of add."""\nimport math\nA = 1\ndef check(candidate):\n    assert candidate(A, 2) == 3', "tests check nothing"),
        ("def test_add(:", "tests are no Python"),
        (["assert add(1, 2) == 3"], "one text of Python source, no list"),
    ],
)  # fmt: skip
def test_tests_that_every_answer_would_pass_are_none(tests: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        unit_tests(episode("def add(a, b):\n    return 0", tests=tests))


def test_tests_may_be_statements() -> None:
    tests = "class Node:\n    pass\n\ndef check(f):\n    assert f(1, 2) == 3\n\ncheck(add)"
    assert unit_tests(episode("def add(a, b):\n    return a + b", tests=tests), timeout_s=30.0) == 1.0
    assert unit_tests(episode("def add(a, b):\n    return a", tests=tests), timeout_s=30.0) == 0.0


def test_tool_errors_counts_each_result_once() -> None:
    failed = tool("Traceback (most recent call last):\n ...", "1")
    again = tool('{"error": "no such file"}', "2")
    fine = tool('{"error": null, "rows": ["error"]}', "3")
    flagged = tool("nope", "4", status="error")
    listed = tool([{"type": "text", "text": "ValueError: bad"}], "5")
    history = ({"role": "user", "content": "Error: none"}, failed, again)
    run = episode("x", None, call(*history[:2]), call(*history), call(*history, fine, flagged, listed))
    assert tool_errors(run) == 4.0
    assert tool_errors(episode("x")) == 0.0


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("Error executing tool find: no", 1.0),
        ("KeyError('x')", 1.0),
        ("Error", 1.0),
        ('"TimeoutError: 5 s"', 1.0),
        ('{"isError": true, "content": []}', 1.0),
        ("Error handling in Python: a guide", 0.0),
        ("error-free", 0.0),
        ("No error: done", 0.0),
    ],
)
def test_a_text_that_is_about_errors_is_none(text: str, failed: float) -> None:
    assert tool_errors(episode("x", None, call(tool(text)))) == failed


def test_results_without_ids_that_come_twice_are_two() -> None:
    twice = call(tool("Error: x", None), tool("Error: x", None))
    assert tool_errors(episode("x", None, twice, twice)) == 2.0
    assert tool_errors(episode("x", None, call(tool("no", "1", is_error=True)))) == 1.0


def test_an_unknown_verifier_lists_the_valid_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"no verifier 'exact_mach'; valid: exact_match, json_schema, .*unit_tests"
    ):
        find_verifiers(Config(rewards=(RewardRule(name="x", verifier="exact_mach"),)))


def test_unknown_options_list_the_valid_ones() -> None:
    rule = RewardRule(name="x", verifier="numeric_match", options={"tolerence": 1})
    with pytest.raises(ConfigError, match=r"tolerence.*valid: tolerance\n"):
        find_verifiers(Config(rewards=(rule,)))


def test_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text(
        "def calls(episode, *, most=3):\n    return len(episode.calls) <= most\n"
    )
    config = Config(rewards=(RewardRule(name="x", verifier="checks.py:calls", options={"most": 0}),))
    config._folder = tmp_path
    (check,) = find_verifiers(config)
    assert check.function(episode("x"), most=0) is True
    before = config.content_hash(), digest(config.rewards[0], config)
    (tmp_path / "checks.py").write_text("def cals(episode):\n    return 1\n")
    after = config.content_hash(), digest(config.rewards[0], config)
    assert all(one != other for one, other in zip(after, before, strict=True))
    with pytest.raises(ConfigError, match="has no function 'calls'; valid: cals"):
        find_verifiers(config)
    (tmp_path / "checks.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ConfigError, match="cannot be imported: ModuleNotFoundError"):
        find_verifiers(config)
    (tmp_path / "checks.py").unlink()
    with pytest.raises(ConfigError, match=r"checks\.py cannot be read"):
        config.content_hash()


@pytest.mark.parametrize("text", ["import sys\nsys.exit(0)\n", "raise KeyError('x')\n"])
def test_a_file_that_ends_the_program_ends_no_build_in_silence(tmp_path: Path, text: str) -> None:
    (tmp_path / "checks.py").write_text(text)
    config = Config(rewards=(RewardRule(name="x", verifier="checks.py:check"),))
    config._folder = tmp_path
    with pytest.raises(ConfigError, match=r"checks.py:check cannot be imported: (SystemExit|KeyError)"):
        find_verifiers(config)


def test_a_file_may_hold_dataclasses(tmp_path: Path) -> None:
    """They look for their module by name."""
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    n: int\n"
    (tmp_path / "checks.py").write_text(f"{text}def check(episode):\n    return A(1).n\n")
    config = Config(rewards=(RewardRule(name="x", verifier="checks.py:check"),))
    config._folder = tmp_path
    (found,) = find_verifiers(config)
    assert found.function(episode("x")) == 1


class _Odd:
    def __float__(self) -> float:
        raise RuntimeError


@pytest.mark.parametrize(
    "value", [10**400, "1", b"1", float("inf"), _Odd(), [1.0]], ids=lambda value: str(value)[:20]
)
def test_what_is_no_finite_number_scores_nothing_and_ends_nothing(value: Any) -> None:
    rule = RewardRule(name="x", verifier="mine")
    answers = iter([value, 0.5])
    parts, unscored = verify([Check(rule, lambda _: next(answers))], [episode("a"), episode("b")])
    assert parts["value"].to_list() == [0.5]
    assert [one.reason for one in unscored] == ["the verifier mine gave no finite number"]


def test_an_entry_point_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[spanloop.verifiers]\nothers_check = others_checks:check\nothers_number = others_checks:NUMBER\n"
    )
    (tmp_path / "others_checks.py").write_text("NUMBER = 1\ndef check(episode):\n    return 0.5\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (check,) = find_verifiers(Config(rewards=(RewardRule(name="x", verifier="others_check"),)))
    assert check.function(episode("x")) == 0.5
    with pytest.raises(ConfigError, match="others_check"):
        find_verifiers(Config(rewards=(RewardRule(name="x", verifier="other_check"),)))
    with pytest.raises(ConfigError, match="others_number cannot be imported: TypeError"):
        find_verifiers(Config(rewards=(RewardRule(name="x", verifier="others_number"),)))


CHECK = """
def check(episode):
    if episode.answer == "raise":
        raise RuntimeError("no such thing")
    if episode.answer == "exit":
        raise SystemExit(3)
    if episode.answer == "text":
        return "good"
    if episode.answer == "none":
        return None
    tools = [call.answer["tool_calls"][0]["function"]["name"] for call in episode.calls if call.answer.get("tool_calls")]
    assert episode.messages[-1] == episode.calls[-1].answer
    return len(episode.messages) + 0.1 * len(tools) if episode.prompt == "p" else False
"""


def test_a_verifier_that_raises_leaves_one_episode_unscored_and_tells(
    build_rows: Build, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checks.py").write_text(CHECK)
    config = Config(rewards=(RewardRule(name="mine", verifier="checks.py:check", version="7"),))
    config._folder = tmp_path
    agent = Agent()
    history = [user("p"), called("find", {"q": 1}, "c1"), result("c1", "found")]
    rows: list[Row] = [
        agent.call(history[:1], called("find", {"q": 1}, "c1"), at=0),
        agent.call(history, said("x"), at=1),
        *(agent.call([user("q")], said(text), at=10 * n) for n, text in enumerate(("raise", "exit", "text", "none", "y"), 1)),
    ]  # fmt: skip
    manifest, frame = build_rows(rows, config)
    rewards = dict(frame.sort("start").select("span_id", "reward").rows())
    assert list(rewards.values()) == [4.1, 4.1, None, None, None, None, 0.0]
    assert frame.sort("start")["reward_parts"].to_list()[0] == [
        {"name": "mine", "value": 4.1, "source": "verifier", "evaluator": "checks.py:check", "version": "7"}
    ]
    lost = {why: number for why, number in manifest.counts["lost"].items() if why.startswith("unscored")}
    assert lost == {
        "unscored by mine: the verifier checks.py:check raised RuntimeError": 1,
        "unscored by mine: the verifier checks.py:check raised SystemExit": 1,
        "unscored by mine: the verifier checks.py:check gave no finite number": 1,
    }
    example = manifest.counts["examples"][
        "unscored by mine: the verifier checks.py:check raised RuntimeError"
    ]
    episode_id = frame.filter(span_id=rows[2]["SpanId"])["episode_id"].item()
    assert example == [{"episode_id": episode_id, "detail": "no such thing"}]
    stored = client.query(
        "SELECT id, value FROM rewards WHERE source = 'verifier' ORDER BY value"
    ).result_rows
    assert [value for _, value in stored] == [0.0, 4.1]
    print_manifest(tmp_path / "dataset", manifest)
    printed = capsys.readouterr().out
    assert re.search(r"unscored by mine: the verifier checks.py:check raised RuntimeError +1\n", printed)
    assert f"episode {episode_id}: no such thing\n" in printed
    again, same = build_rows(None, config)
    assert (again.id, same.equals(frame)) == (manifest.id, True)
    assert client.query("SELECT id, value FROM rewards ORDER BY value").result_rows == stored
