"""The report page: complete, self-contained, honest, and safe with whatever agents have said."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from spanloop.commands.report import command
from spanloop_trainer.errors import ReportError
from spanloop_trainer.report import RunResult, load_result, render, save_result
from spanloop_trainer.report.page import sft_sentence
from spanloop_trainer.report.plots import Scale

VOID = {"meta", "path", "rect", "br"}


class Strict(HTMLParser):
    """Fails on tags that do not nest; keeps the text and the tags seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> Strict:
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def result(**changes: Any) -> RunResult:
    compared = {
        "pairs": 300, "baseline_mean": 0.3, "candidate_mean": 0.9, "gain": 0.6, "gain_ci95_low": 0.5, "gain_ci95_high": 0.7
    }  # fmt: skip
    call = {"function": {"name": "add", "arguments": '{"a": 3, "b": 4}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "3 and 4?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "7"},
    ]
    trace = {"prompt": "3 and 4?", "expected": "7", "version": "m@1", "messages": messages, "reward": 1.0}
    values: dict[str, Any] = {
        "gain": 0.6,
        "gain_ci95_low": 0.55,
        "gain_ci95_high": 0.65,
        "tasks": 600,
        "base": 0.3,
        "final": 0.9,
        "best_possible": 1.0,
        "sft_on_successes": 0.92,
        "seconds": 281.4,
        "versions": [
            {"version": "yesterday", "algorithm": "scripted"},
            {"version": "m@1", "dataset_id": "f" * 64, "episodes": 9600, "mean_reward": 0.3, "ci95_low": 0.2, "ci95_high": 0.4},
            {"version": "m@2", "parent": "m@1", "mean_reward": 0.9},
        ],
        "per_agent": {"openai": compared},
        "per_wording": {"unseen": compared},
        "stages": [{"name": "Train the base", "seconds": 72.0}],
        "decisions": [{"version": "m@2", "promoted": True, "reason": "gain +0.6"}],
        "decoders": {"engine": 999, "fallback": 1},
        "trace_before": {**trace, "reward": None},
        "trace_after": trace,
        "notes": ["a note"],
    }  # fmt: skip
    return RunResult.model_validate({**values, **changes})


def test_the_page_says_it_all_and_needs_no_other_file() -> None:
    html = render(result())
    page = parsed(html)
    for words in (
        "+0.60", "better on tasks it had never seen", "600", "m@2 was promoted to production", "9,600", "ffffffffffff",
        "add(a=3, b=4)", "unscored", "Train the base", "4 min 41 s", "99.90 % of 1,000 spans", "a note", "unseen",
    ):  # fmt: skip
        assert words in page.text, words
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?:|url\(|src=|href=", html)
    assert "prefers-color-scheme: dark" in html


def test_the_headline_follows_the_interval() -> None:
    assert "no proven change" in render(result(gain_ci95_low=-0.01))
    assert "worse on tasks" in render(result(gain=-0.2, gain_ci95_low=-0.3, gain_ci95_high=-0.1))
    refused = {"version": "m@2", "promoted": False, "reason": "the interval is not above 0"}
    assert "m@2 was not promoted to production" in parsed(render(result(decisions=[refused]))).text


def test_the_sentence_on_sft_does_not_flatter() -> None:
    paired = {"pairs": 400, "baseline_mean": 0.92, "candidate_mean": 0.9}
    for gain, low, high, words in (
        (-0.02, -0.05, 0.01, "RL did not beat SFT"),
        (-0.02, -0.03, -0.01, "SFT beat RL"),
        (0.02, 0.01, 0.03, "RL beat SFT in this run"),
    ):
        found = {**paired, "gain": gain, "gain_ci95_low": low, "gain_ci95_high": high}
        assert words in sft_sentence(result(final_minus_sft=found))
    assert "proves nothing either way" in sft_sentence(result(sft_on_successes=0.7))
    assert "was not measured" in sft_sentence(result(sft_on_successes=None))


def test_the_least_result_makes_a_page() -> None:
    least = {
        "gain": 0.0,
        "gain_ci95_low": 0.0,
        "gain_ci95_high": 0.0,
        "tasks": 2,
        "base": 0.0,
        "final": 0.0,
        "seconds": 0,
    }
    parsed(render(RunResult.model_validate(least)))


def test_what_agents_said_is_text_and_never_markup() -> None:
    evil = '<script>alert(1)</script><img src="x">'
    call = {"function": {"name": evil, "arguments": evil}}
    messages = [{"role": evil, "content": evil, "tool_calls": [call]}]
    trace = {"prompt": evil, "version": evil, "messages": messages}
    page = parsed(
        render(
            result(
                title=evil,
                trace_before=trace,
                notes=[evil],
                stages=[{"name": evil, "seconds": 1}],
                versions=[{"version": evil, "dataset_id": evil, "mean_reward": 0.5}],
            )
        )
    )
    assert not page.tags & {"script", "img"}
    assert page.text.count("alert(1)") >= 8


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 6)), min_size=1, max_size=6),
)
def test_a_scale_holds_its_values_between_few_round_ticks(values: list[float]) -> None:
    scale = Scale.over(values)
    for value in values:
        slack = 1e-6 * (scale.high - scale.low)
        assert scale.low - slack <= value <= scale.high + slack
        assert -1e-9 <= scale.at(value) <= 100 + 1e-9
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 8
    assert len({text for _, text in ticks}) == len(ticks)


def test_the_command_reads_a_run_and_refuses_what_is_none(tmp_path: Path) -> None:
    save_result(tmp_path, result(extra_field=3))
    done = CliRunner().invoke(command, ["--run", str(tmp_path)])
    assert done.exit_code == 0
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert load_result(tmp_path) == result(extra_field=3)
    with pytest.raises(ReportError, match="cannot be read"):
        load_result(tmp_path / "absent")
    (tmp_path / "result.json").write_text('{"gain": "much"}')
    with pytest.raises(ReportError, match="gain: "):
        load_result(tmp_path)
