"""What is installed, as its metadata says it: who fights over a library, which distro and which configurator wins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from spanloop.doctor.check import Check

# The default distro sets what ours sets, and both may be there: `opentelemetry-instrument` then takes ours.
_OWN_DISTROS = {"distro", "spanloop"}
# Brought by the base install; in a fight they are named last among those to remove.
_OURS = ("opentelemetry-instrumentation-openai", "opentelemetry-instrumentation-langchain")


@dataclass(frozen=True)
class Entry:
    """An entry point and the distribution that brings it."""

    name: str
    value: str
    distribution: str
    version: str
    instruments: tuple[str, ...] = ()  # names of the libraries that its distribution says it instruments


def entries(group: str) -> list[Entry]:
    """Entry points of a group, in the order in which OpenTelemetry meets them; a distribution that is shadowed is left out."""
    found: list[Entry] = []
    seen: set[str] = set()
    for distribution in distributions():
        name = canonicalize_name(distribution.metadata["Name"] or "")
        if not name or name in seen:
            continue
        seen.add(name)
        points: list[EntryPoint] = [point for point in distribution.entry_points if point.group == group]
        if points:
            instruments = _instruments(distribution.requires or [])
            found += [
                Entry(point.name, point.value, name, distribution.version, instruments) for point in points
            ]
    return found


def _instruments(requires: list[str]) -> tuple[str, ...]:
    names = set()
    for text in requires:
        if "extra" not in text:
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        # A requirement that holds without any extra is no library that is instrumented.
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            continue
        if any(requirement.marker.evaluate({"extra": extra}) for extra in ("instruments", "instruments-any")):
            names.add(canonicalize_name(requirement.name))
    return tuple(sorted(names))


def check_conflicts(environ: Mapping[str, str]) -> Iterator[Check]:
    """Two instrumentors of one name or of one library: every call is then reported twice, or by neither."""
    off = disabled(environ)
    active = [] if "*" in off else [e for e in entries("opentelemetry_instrumentor") if e.name not in off]
    claims: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in active:
        for claim in {f"the name {entry.name!r}", *(f"the library {name}" for name in entry.instruments)}:
            claims[claim][entry.distribution] = entry
    reported: set[frozenset[str]] = set()
    for claim, claimants in sorted(claims.items()):
        if len(claimants) < 2 or frozenset(claimants) in reported:
            continue
        reported.add(frozenset(claimants))
        shown = " and ".join(f"{name} {entry.version}" for name, entry in sorted(claimants.items()))
        yield Check(
            "instrumentor conflict",
            "FAIL",
            f"{shown} both instrument {claim.removeprefix('the ')}: calls are reported twice",
            f"pip uninstall --yes {' '.join(foreign(claimants))}",
        )
    if not reported:
        yield Check(
            "instrumentor conflict", "ok", f"{len(active)} instrumentors, each with a library of its own"
        )


def foreign(distributions: Iterable[str]) -> list[str]:
    """All but one of the distributions that fight: the one to keep is that of our base install, where it is among them."""
    return sorted(distributions, key=lambda name: (name in _OURS, name))[:-1]


def disabled(environ: Mapping[str, str]) -> set[str]:
    """Names that OTEL_PYTHON_DISABLED_INSTRUMENTATIONS turns off, as OpenTelemetry reads it."""
    items = environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    return {item.strip() for item in items if item.strip()}


def check_distro(environ: Mapping[str, str]) -> Iterator[Check]:
    """One distro configures the SDK; of several OpenTelemetry takes the first that the file system lists."""
    found = {entry.name: entry.distribution for entry in entries("opentelemetry_distro")}
    chosen = environ.get("OTEL_PYTHON_DISTRO", "")
    foreign = sorted(set(found) - _OWN_DISTROS)
    shown = ", ".join(f"{name} ({found[name]})" for name in sorted(found))
    if chosen and chosen not in found:
        yield Check(
            "distro",
            "FAIL",
            f"OTEL_PYTHON_DISTRO={chosen} is not installed (installed: {shown}): no defaults are set",
            "unset OTEL_PYTHON_DISTRO",
        )
    elif chosen:
        detail = f"{chosen}, named by OTEL_PYTHON_DISTRO"
        if chosen == "spanloop":
            yield Check("distro", "ok", detail)
        else:
            yield Check("distro", "warn", detail, "export OTEL_PYTHON_DISTRO=spanloop")
    elif foreign:
        yield Check(
            "distro",
            "warn",
            f"{shown}: any of them may win, and only spanloop's sets the limits that LLM spans need",
            "export OTEL_PYTHON_DISTRO=spanloop",
        )
    else:
        yield Check("distro", "ok", f"spanloop, of {shown}")


def check_configurator(environ: Mapping[str, str]) -> Iterator[Check]:
    """One configurator builds the SDK; a second one is skipped with a line in the log."""
    found = entries("opentelemetry_configurator")
    chosen = environ.get("OTEL_PYTHON_CONFIGURATOR", "")
    names = sorted({entry.name for entry in found})
    shown = ", ".join(f"{entry.name} ({entry.distribution})" for entry in found)
    if not found:
        yield Check(
            "SDK configurator",
            "FAIL",
            "none: nothing builds the SDK",
            "pip install --upgrade opentelemetry-distro",
        )
    elif chosen and chosen not in names:
        yield Check(
            "SDK configurator",
            "FAIL",
            f"OTEL_PYTHON_CONFIGURATOR={chosen} is not installed (installed: {shown}): nothing builds the SDK",
            "unset OTEL_PYTHON_CONFIGURATOR",
        )
    elif len(found) > 1 and not chosen:
        yield Check(
            "SDK configurator",
            "warn",
            f"{shown}: the first that the file system lists builds the SDK",
            "export OTEL_PYTHON_CONFIGURATOR=configurator",
        )
    else:
        yield Check("SDK configurator", "ok", chosen or names[0])
