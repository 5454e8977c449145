"""Renders a run's result as one HTML page without any other file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from spanloop_trainer.errors import ReportError
from spanloop_trainer.report import plots
from spanloop_trainer.report.result import Comparison, RunResult, Trace

MINUS = "−"


def render(result: RunResult) -> str:
    """The page as one string: inline CSS and SVG, light and dark, no script, no link out."""
    environment = Environment(
        loader=PackageLoader("spanloop_trainer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(signed=signed, number=number, duration=duration, count=count)
    return environment.get_template("page.html.jinja").render(
        run=result,
        headline=_headline(result),
        rewards=_rewards(result),
        groups=_groups(result),
        stages=_stages(result),
        sft=sft_sentence(result),
        traces=[
            (name, trace, _messages(trace))
            for name, trace in (("Before", result.trace_before), ("After", result.trace_after))
            if trace is not None
        ],
    )


def write_page(result: RunResult, path: Path) -> None:
    """Write the page.

    Raises:
        ReportError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(result), encoding="utf-8")
    except OSError as error:
        raise ReportError(
            f"{path} cannot be written: {error.strerror}", "choose another file with --out"
        ) from error


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, the minus as long as the plus."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS)


def number(value: float | None, digits: int = 2) -> str:
    """A mean; a dash where nothing was measured."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def count(value: int | None) -> str:
    """A whole number in groups of three."""
    return "–" if value is None else f"{value:,}"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


_SAME_OPTIMUM = (
    "That is no surprise: with a reward that only says pass or fail, both lean towards the same behaviour. RL pays off where "
    "successes alone do not carry the answer: graded rewards, long episodes, rare success."
)


def sft_sentence(result: RunResult) -> str:
    """What the run says about reinforcement learning against plain imitation of the successes."""
    if result.sft_on_successes is None:
        return "SFT on the successful episodes was not measured, so this run says nothing about whether RL was needed."
    scores = (
        f"SFT on the successful episodes of the same logs reaches {result.sft_on_successes:.2f}; "
        f"this run's final version reaches {result.final:.2f}"
    )
    paired = result.final_minus_sft
    if paired is None:
        return f"{scores}. The two were not compared in pairs, so their difference proves nothing either way."
    low, high = paired.gain_ci95_low, paired.gain_ci95_high
    scores += f", a paired difference of {signed(paired.gain)} [{signed(low)}, {signed(high)}]."
    if low > 0:
        return f"{scores} RL beat SFT in this run; one run is no rule."
    if high < 0:
        return f"{scores} SFT beat RL here. {_SAME_OPTIMUM}"
    return f"{scores} There is no proven difference: RL did not beat SFT here. {_SAME_OPTIMUM}"


def _headline(result: RunResult) -> dict[str, str]:
    if result.gain_ci95_low > 0:
        words, tone = "better on tasks it had never seen", "good"
    elif result.gain_ci95_high < 0:
        words, tone = "worse on tasks it had never seen", "bad"
    else:
        words, tone = "no proven change on tasks it had never seen", "open"
    return {"words": words, "tone": tone}


def _rewards(result: RunResult) -> dict[str, Any] | None:
    """The table of rewards by version, with one scale for all rows."""
    rows = [version for version in result.versions if version.mean_reward is not None]
    if not rows:
        return None
    marks = {}
    if result.best_possible is not None:
        marks["best"] = result.best_possible
    if result.sft_on_successes is not None:
        marks["sft"] = result.sft_on_successes
    values = [
        value for row in rows for value in (row.mean_reward, row.ci95_low, row.ci95_high) if value is not None
    ]
    scale = plots.Scale.over([*values, *marks.values()], include=(0.0, 1.0))
    decided = result.decisions[-1].version if result.decisions else rows[-1].version
    drawn = [
        (
            row,
            plots.interval(
                scale,
                row.mean_reward or 0.0,
                row.ci95_low,
                row.ci95_high,
                marks=marks,
                emphasis=row.version == decided,
            ),
        )
        for row in rows
    ]
    return {"rows": drawn, "axis": plots.axis(scale), "marks": marks}


def _groups(result: RunResult) -> dict[str, Any] | None:
    """Gains apart, with one scale for all rows."""
    named: list[tuple[str, str, Comparison]] = [
        ("agent", name, part) for name, part in result.per_agent.items()
    ]
    named += [("wording", name, part) for name, part in result.per_wording.items()]
    if not named:
        return None
    ends = [end for _, _, part in named for end in (part.gain_ci95_low, part.gain_ci95_high)]
    scale = plots.Scale.over([*ends, result.gain])
    drawn = [
        (
            kind,
            name,
            part,
            plots.interval(scale, part.gain, part.gain_ci95_low, part.gain_ci95_high, zero=True),
        )
        for kind, name, part in named
    ]
    return {"rows": drawn, "axis": plots.axis(scale)}


def _stages(result: RunResult) -> list[tuple[str, float, str, Any]]:
    largest = max((stage.seconds for stage in result.stages), default=0.0)
    total = sum(stage.seconds for stage in result.stages) or 1.0
    return [
        (
            stage.name,
            stage.seconds,
            f"{100 * stage.seconds / total:.0f} %",
            plots.share(stage.seconds, largest),
        )
        for stage in result.stages
    ]


def _messages(trace: Trace) -> list[dict[str, Any]]:
    """Messages for reading: role, text, tool calls as `name(arguments)`."""
    shown = []
    for message in trace.messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        calls = [_call(call.get("function", {})) for call in message.get("tool_calls") or []]
        shown.append({"role": message.get("role", ""), "text": str(content).strip(), "calls": calls})
    return shown


def _call(function: dict[str, Any]) -> str:
    name, arguments = function.get("name", ""), function.get("arguments", "")
    try:
        values = json.loads(arguments)
    except (TypeError, ValueError):
        return f"{name}({arguments})"
    if not isinstance(values, dict):
        return f"{name}({arguments})"
    return f"{name}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in values.items())})"
