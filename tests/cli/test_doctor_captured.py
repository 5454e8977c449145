"""What `spanloop doctor` says of the spans that its trial left, or did not leave."""

from __future__ import annotations

import pytest
from tests.cli.doctor_checks import by_name, span, trial

from spanloop.doctor import captured
from spanloop.doctor.trial import Instrumentor, SpanFacts


@pytest.mark.parametrize(
    ("spans", "environ", "status", "detail", "fix"),
    [
        ([span()], {}, "ok", "whole messages", ""),
        ([span(whole_in=[])], {}, "FAIL", "cut", "unset OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"),
        ([span(prompt_in=[], whole_in=[])], {}, "FAIL", "no messages", "export TRACELOOP_TRACE_CONTENT=true"),
        (
            [span(prompt_in=[], whole_in=[])],
            {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "NO_CONTENT"},
            "FAIL",
            "no messages",
            "unset OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
        ),
        (
            [span()],
            {"OPENINFERENCE_HIDE_INPUTS": "true"},
            "warn",
            "for some",
            "unset OPENINFERENCE_HIDE_INPUTS",
        ),
        ([], {}, "warn", "not known", "pip install openai"),
    ],
    ids=["whole", "cut", "blind", "blind by a variable", "hidden by the other family", "nothing called"],
)
def test_content(spans: list[SpanFacts], environ: dict[str, str], status: str, detail: str, fix: str) -> None:
    check = captured.check_content(trial(*spans), environ)
    assert (check.status, detail in check.detail) == (status, True)
    assert check.fix.startswith(fix)


def test_token_ids_that_are_asked_for_are_recorded() -> None:
    asked = {"SPANLOOP_CAPTURE_TOKENS": "true"}
    assert captured.check_tokens(trial(span()), {}).status == "ok"
    assert captured.check_tokens(trial(span()), asked).status == "FAIL"
    # The exporter takes this for a yes as well.
    assert captured.check_tokens(trial(span()), {"SPANLOOP_CAPTURE_TOKENS": "Yes"}).status == "FAIL"
    assert captured.check_tokens(trial(span(keys=["spanloop.completion_token_ids"])), asked).status == "ok"


def instrumentor(**more: object) -> Instrumentor:
    defaults = {
        "name": "openai", "value": "m:C", "distribution": "some-instrumentation", "active": False,
        "error": "", "missing": False, "conflict": "",
    }  # fmt: skip
    return Instrumentor(**{**defaults, **more})  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize(
    ("instrumentors", "sampler", "environ", "detail", "fix"),
    [
        (
            [],
            "",
            {},
            "no instrumentor for it is installed",
            "pip install opentelemetry-instrumentation-openai",
        ),
        (
            [instrumentor(error="ImportError: gone")],
            "",
            {},
            "ImportError: gone",
            "pip install --upgrade some-",
        ),
        (
            [instrumentor(conflict="does not instrument openai 9.0")],
            "",
            {},
            "does not instrument openai 9.0",
            "pip install --upgrade some-instrumentation",
        ),
        (
            [instrumentor()],
            "",
            {"OTEL_SDK_DISABLED": "TRUE"},
            "turns everything off",
            "unset OTEL_SDK_DISABLED",
        ),
        ([instrumentor()], "AlwaysOffSampler", {}, "drops every span", "unset OTEL_TRACES_SAMPLER"),
        ([instrumentor()], "", {}, "the last complaint", "pip install --upgrade some-instrumentation"),
    ],
    ids=["none", "import error", "wrong version", "SDK off", "sampler", "who knows"],
)
def test_why_a_call_leaves_no_span(
    instrumentors: list[Instrumentor], sampler: str, environ: dict[str, str], detail: str, fix: str
) -> None:
    silent = trial(instrumentors=instrumentors, sampler=sampler)
    check = by_name(captured.check_libraries(silent, "the last complaint", environ))["openai"]
    assert check.status == "FAIL"
    assert detail in check.detail
    assert check.fix.startswith(fix)
