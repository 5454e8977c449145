"""What `spanloop doctor` says of installed packages: against the metadata of real and of made ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.doctor_checks import only
from tests.cli.test_doctor import install

from spanloop.doctor import installed, versions

GOOD = {
    "opentelemetry-sdk": "1.45.1",
    "opentelemetry-instrumentation": "0.66b1",
    "opentelemetry-distro": "0.66b1",
}


@pytest.mark.parametrize(
    ("sdk", "instrumentation", "distro", "status"),
    [
        ("1.45.1", "0.66b1", "0.66b1", "ok"),
        ("1.45.2", "0.66b2", "0.66b1", "ok"),
        ("1.27.0", "0.48b0", "0.48b0", "ok"),
        ("1.45.1", "0.66b1", "0.48b0", "FAIL"),
        ("1.45.1", "0.65b0", "0.65b0", "FAIL"),
    ],
)
def test_a_release_train(sdk: str, instrumentation: str, distro: str, status: str) -> None:
    names = dict(zip(versions.TRAIN, (sdk, instrumentation, distro), strict=True))
    check = versions.check_train(names)
    assert check.status == status
    assert ("opentelemetry-distro" in check.fix) is (status == "FAIL")


def test_a_part_of_the_train_that_is_missing() -> None:
    check = versions.check_train({"opentelemetry-sdk": "1.45.1"})
    assert check.status == "FAIL"
    assert "opentelemetry-instrumentation, opentelemetry-distro not installed" in check.detail


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"opentelemetry-instrumentation": "0.48b0"}, "pkg_resources"),
        ({"opentelemetry-instrumentation": "0.48b0", "setuptools": "83.0"}, "pkg_resources"),
        ({"opentelemetry-instrumentation": "0.48b0", "setuptools": "75.0"}, ""),
        ({"opentelemetry-instrumentation-openai": "0.47.5", "opentelemetry-api": "1.45.1"}, "_events"),
        ({"opentelemetry-instrumentation-openai": "0.47.5", "opentelemetry-api": "1.43.0"}, ""),
        ({"opentelemetry-instrumentation-langchain": "0.60.0", "wrapt": "2.1"}, "stops every other"),
        ({"opentelemetry-instrumentation-langchain": "0.62.4", "wrapt": "2.1"}, ""),
    ],
)
def test_pairs_known_to_fail(found: dict[str, str], why: str) -> None:
    check = only(versions.check_pairs(GOOD | {"wrapt": "2.5"} | found))
    assert check.status == ("FAIL" if why else "ok")
    assert why in check.detail
    assert check.fix.startswith("pip install --upgrade ") is bool(why)


def test_a_requirement_that_is_not_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        tmp_path,
        "langchain-elsewhere",
        "1.5.0",
        {},
        "opentelemetry-api>=9",
        "nowhere-to-be-found",
        "x; extra == 'y'",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    unmet = list(versions.check_requirements(versions.installed_versions()))
    assert [check.status for check in unmet] == ["warn", "warn"]
    assert "needs opentelemetry-api>=9, and 1." in unmet[0].detail
    assert "needs nowhere-to-be-found, and nothing is installed" in unmet[1].detail
    assert "'opentelemetry-api>=9'" in unmet[0].fix


def test_this_environment_has_what_it_asks_for() -> None:
    found = versions.installed_versions()
    checks = [*versions.check_requirements(found), *versions.check_pairs(found), versions.check_train(found)]
    assert [check.status for check in checks] == ["ok", "ok", "ok"]


def test_two_instrumentors_of_one_library_under_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {"opentelemetry_instrumentor": "openai_v9 = somewhere:Instrumentor"}
    install(
        tmp_path,
        "opentelemetry-instrumentation-openai-v9",
        "2.0",
        points,
        'openai>=1; extra == "instruments"',
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    check = only(installed.check_conflicts({}))
    assert check.status == "FAIL"
    assert "both instrument library openai" in check.detail
    assert check.fix == "pip uninstall --yes opentelemetry-instrumentation-openai-v9"
    # Turned off, it fights no more.
    environ = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "openai_v9"}
    assert only(installed.check_conflicts(environ)).status == "ok"


def test_a_second_distro_and_a_second_configurator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"opentelemetry_distro": "vendor = v:D", "opentelemetry_configurator": "vendor = v:C"}
    install(tmp_path, "vendor-distro", "1.0", points)
    monkeypatch.syspath_prepend(str(tmp_path))
    distro = only(installed.check_distro({}))
    assert distro.status == "warn"
    assert "vendor (vendor-distro)" in distro.detail
    assert distro.fix == "export OTEL_PYTHON_DISTRO=spanloop"
    assert only(installed.check_distro({"OTEL_PYTHON_DISTRO": "spanloop"})).status == "ok"
    assert only(installed.check_distro({"OTEL_PYTHON_DISTRO": "gone"})).status == "FAIL"
    configurator = only(installed.check_configurator({}))
    assert configurator.status == "warn"
    name, value = configurator.fix.removeprefix("export ").split("=")
    assert only(installed.check_configurator({name: value})).status == "ok"
    assert only(installed.check_configurator({name: "gone"})).status == "FAIL"
