"""What `spanloop doctor` says of variables, and of what they made of the SDK."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.cli.doctor_checks import only, trial

from spanloop.doctor import settings

CONFIGURATION = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.mark.parametrize(
    ("sampler", "status"),
    [
        ("ParentBased{root:AlwaysOnSampler,remoteParentSampled:AlwaysOnSampler}", "ok"),
        ("AlwaysOnSampler", "ok"),
        ("ParentBased{root:AlwaysOffSampler,remoteParentSampled:AlwaysOnSampler}", "FAIL"),
        ("ParentBased{root:TraceIdRatioBased{0.25},remoteParentSampled:AlwaysOnSampler}", "warn"),
        ("TraceIdRatioBased{0.0}", "FAIL"),
        ("TraceIdRatioBased{1.0}", "ok"),
    ],
)
def test_sampler(sampler: str, status: str) -> None:
    assert settings.check_sampler(trial(sampler=sampler)).status == status


def test_limits() -> None:
    assert settings.check_limits(trial(max_attributes=4096, max_events=128)).status == "ok"
    assert settings.check_limits(trial(max_attributes=None, max_events=None)).status == "ok"
    assert settings.check_limits(trial(max_attributes=500, max_events=128)).status == "warn"
    cut = settings.check_limits(trial(max_attributes=4096, max_length=4000))
    assert (cut.status, "4000 characters" in cut.detail) == ("FAIL", True)
    assert settings.check_limits(trial(max_events=10)).fix == "unset OTEL_SPAN_EVENT_COUNT_LIMIT"


def test_queue_propagation_and_numbers() -> None:
    assert settings.check_queue({}).status == "ok"
    assert settings.check_queue({"OTEL_BSP_MAX_QUEUE_SIZE": "many"}).fix == "unset OTEL_BSP_MAX_QUEUE_SIZE"
    assert settings.check_queue({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2000"}).status == "warn"
    sent = trial(propagates=["traceparent"])
    assert settings.check_propagation(sent, {}).status == "ok"
    joined = {"TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01"}
    assert "joined" in settings.check_propagation(sent, joined).detail
    assert settings.check_propagation(sent, {"TRACEPARENT": f"00-{'0' * 32}-{'b' * 16}-01"}).status == "warn"
    assert (
        only(settings.check_values({"SPANLOOP_SPOOL_MAX_AGE_S": "-1"})).fix
        == "unset SPANLOOP_SPOOL_MAX_AGE_S"
    )
    assert (
        list(settings.check_values({"SPANLOOP_SPOOL_MAX_AGE_S": "60", "SPANLOOP_CAPTURE_TOKENS": "Yes"}))
        == []
    )
    flag = only(settings.check_values({"SPANLOOP_CAPTURE_TOKENS": "ture"}))
    assert (flag.status, flag.fix) == ("warn", "export SPANLOOP_CAPTURE_TOKENS=true")
    assert settings.check_disabled({"OTEL_SDK_DISABLED": "true"}).fix == "unset OTEL_SDK_DISABLED"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OTEL_TRACE_EXPORTER", "OTEL_TRACES_EXPORTER"),
        ("OTEL_EXPORTER_OTLP_ENPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ("OTEL_SERVICENAME", "OTEL_SERVICE_NAME"),
        ("OTEL_PYTHON_DISABLED_INSTRUMENTATION", "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"),
        ("SPANLOOP_CAPTURE_TOKEN", "SPANLOOP_CAPTURE_TOKENS"),
        ("SPANLOOP_SPOL", "SPANLOOP_SPOOL"),
    ],
)
def test_a_variable_that_is_misspelt(name: str, meant: str) -> None:
    check = only(settings.check_names({name: "secret", "PATH": "/bin"}))
    assert (check.status, check.fix) == ("warn", f'export {meant}="${name}"; unset {name}')
    assert "secret" not in str(check)


def test_variables_that_are_not_misspelt() -> None:
    described = re.findall(
        r"^\| `(SPANLOOP_\w+)` \|", CONFIGURATION.read_text(encoding="utf-8"), re.MULTILINE
    )
    # Of other programs: of Grafana, of other instrumentations, of a signal that is not in the SDK yet.
    foreign = ["SPANLOOP_READER_USER", "SPANLOOP_DASHBOARDS", "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS"]
    foreign += ["OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT", "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"]
    assert list(settings.check_names(dict.fromkeys([*described, *foreign], "x"))) == []
    assert set(described) == settings._OURS


def test_redaction_runs_is_off_or_stops_the_export(tmp_path: Path) -> None:
    assert settings.check_redaction({}).status == "ok"
    assert settings.check_redaction({"SPANLOOP_REDACTION": "off"}).status == "warn"
    check = settings.check_redaction({"SPANLOOP_REDACTION": str(tmp_path / "missing.toml")})
    assert check.status == "FAIL"
    assert "no span leaves" in check.detail
    assert "missing.toml" in check.detail
    assert check.fix
