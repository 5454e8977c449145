"""Versions that do not go together: release trains, requirements that are not met, and pairs known to fail."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from spanloop.doctor.check import Check

# opentelemetry-instrumentation 0.N goes with opentelemetry-sdk 1.(N - 21): 0.48 with 1.27, 0.66 with 1.45.
MINOR_OFFSET = 21
TRAIN = ("opentelemetry-sdk", "opentelemetry-instrumentation", "opentelemetry-distro")
# Whose requirements are looked at: what captures, and what is captured. Other packages are their owner's affair.
_CAPTURE = re.compile(r"opentelemetry-|openinference-|langchain|langgraph|openai$|openai-agents$|spanloop$")


@dataclass(frozen=True)
class Pair:
    """Two packages that are installed together and do not work together.

    Args:
        package: requirement that the first one meets.
        other: requirement that the second one meets; a package that is not installed meets it only if it begins with `no `.
        why: what happens.
        fix: the command that gets out of it.
    """

    package: str
    other: str
    why: str
    fix: str


# Each was installed and run (November 2026); a row may go when pip can no longer resolve to it.
KNOWN_PAIRS = (
    Pair(
        "opentelemetry-instrumentation<=0.48b0",
        "no setuptools<82",
        "it imports pkg_resources, which new versions of setuptools do not have, and opentelemetry-instrument ends at"
        " once; an unpinned pip walks back to it",
        "pip install --upgrade 'opentelemetry-distro>=0.66b1' 'opentelemetry-instrumentation>=0.66b1'",
    ),
    Pair(
        "opentelemetry-instrumentation-openai<0.48.1",
        "opentelemetry-api>=1.44",
        "it imports opentelemetry._events, which the API no longer has; OpenTelemetry skips it in silence",
        "pip install --upgrade 'opentelemetry-instrumentation-openai>=0.62.4'",
    ),
    Pair(
        "opentelemetry-instrumentation-langchain<0.48.1",
        "opentelemetry-api>=1.44",
        "it imports opentelemetry._events, which the API no longer has; OpenTelemetry skips it in silence",
        "pip install --upgrade 'opentelemetry-instrumentation-langchain>=0.62.4'",
    ),
    Pair(
        "opentelemetry-instrumentation-langchain<0.61",
        "wrapt>=2",
        "it calls wrapt in a way that is gone, and what it raises stops every other instrumentor too",
        "pip install --upgrade 'opentelemetry-instrumentation-langchain>=0.62.4'",
    ),
)


def installed_versions() -> dict[str, str]:
    """Canonical name → version of everything on sys.path; the first of a name wins, as for imports."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(canonicalize_name(name), distribution.version)
    return found


def check_train(installed: Mapping[str, str]) -> Check:
    """Distro, instrumentation and SDK come from one release train."""
    missing = [name for name in TRAIN if name not in installed]
    if missing:
        return Check(
            "versions", "FAIL", f"{', '.join(missing)} not installed", "pip install --upgrade spanloop"
        )
    shown = ", ".join(f"{name.removeprefix('opentelemetry-')} {installed[name]}" for name in TRAIN)
    sdk, instrumentation, distro = (installed[name] for name in TRAIN)
    if not versions_match(sdk, instrumentation, distro):
        upgrade = "pip install --upgrade " + " ".join((*TRAIN, "opentelemetry-exporter-otlp-proto-http"))
        return Check("versions", "FAIL", f"{shown}: not of one release", upgrade)
    return Check("versions", "ok", shown)


def versions_match(sdk: str, instrumentation: str, distro: str) -> bool:
    """Whether the three belong to one release of OpenTelemetry Python."""
    return _minor(distro) == _minor(instrumentation) and _minor(instrumentation) == _minor(sdk) + MINOR_OFFSET


def _minor(number: str) -> int:
    found = re.match(r"\d+\.(\d+)", number)
    return int(found[1]) if found else -1


def check_pairs(installed: Mapping[str, str]) -> Iterator[Check]:
    """No two packages are installed of which it is known that they fail together."""
    failing = [
        pair for pair in KNOWN_PAIRS if _meets(pair.package, installed) and _meets(pair.other, installed)
    ]
    for pair in failing:
        name = Requirement(pair.package).name
        with_what = "" if pair.other.startswith("no ") else f" with {_shown(pair.other, installed)}"
        yield Check("version pairs", "FAIL", f"{name} {installed[name]}{with_what}: {pair.why}", pair.fix)
    if not failing:
        yield Check("version pairs", "ok", "none that is known to fail")


def _shown(requirement: str, installed: Mapping[str, str]) -> str:
    name = Requirement(requirement).name
    return f"{name} {installed[name]}"


def _meets(text: str, installed: Mapping[str, str]) -> bool:
    if text.startswith("no "):
        return not _meets(text.removeprefix("no "), installed)
    requirement = Requirement(text)
    version = installed.get(canonicalize_name(requirement.name))
    return version is not None and _allows(requirement.specifier, version)


def _allows(specifier: SpecifierSet, version: str) -> bool:
    return specifier.contains(version, prereleases=True)


def check_requirements(installed: Mapping[str, str]) -> Iterator[Check]:
    """What captures, and what is captured, has the versions that it asks for."""
    unmet = list(_unmet(installed))
    for name, requirement, found in unmet:
        asked = f"{requirement.name}{requirement.specifier}"
        yield Check(
            "requirements",
            # What it breaks, if it does, shows in the trial.
            "warn",
            f"{name} {installed[name]} needs {asked}, and {found or 'nothing'} is installed",
            _requirement_fix(name, asked),
        )
    if not unmet:
        yield Check("requirements", "ok", "every instrumentor and SDK package has what it asks for")


def _requirement_fix(name: str, asked: str) -> str:
    # 1.5.0 asks for a langchain-core that pip cannot complete.
    if name == "langchain":
        return "pip install 'langchain<1.5'"
    return f"pip install --upgrade {name} '{asked}'"


def _unmet(installed: Mapping[str, str]) -> Iterator[tuple[str, Requirement, str]]:
    seen: set[str] = set()
    for distribution in distributions():
        name = canonicalize_name(distribution.metadata["Name"] or "")
        if name in seen or not _CAPTURE.match(name):
            continue
        seen.add(name)
        for text in distribution.requires or []:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            found = installed.get(canonicalize_name(requirement.name), "")
            if not found or not _allows(requirement.specifier, found):
                yield name, requirement, found
