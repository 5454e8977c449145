"""`spanloop doctor`: checks this environment, and prints the fix for each problem."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import click

from spanloop.options import echo_json, example, json_option, store_option

# A call of two instrumented libraries, imports included, on a busy machine.
PROBE_TIMEOUT_S = 120
HTTP_TIMEOUT_S = 5
# Below this, long conversations lose keys: current instrumentors write messages as one attribute, older ones as five
# attributes a message.
SAFE_ATTRIBUTES = 1024
# opentelemetry-instrumentation 0.N goes with opentelemetry-sdk 1.(N - 21): 0.48 with 1.27, 0.66 with 1.45.
MINOR_OFFSET = 21
COLORS = {"ok": "green", "warn": "yellow", "FAIL": "red"}

Status = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report; `fix` is empty where all is well."""

    name: str
    status: Status
    detail: str
    fix: str = ""


@click.command(
    epilog=example(
        "OTEL_SERVICE_NAME=my-agent OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 spanloop doctor"
    )
)
@store_option
@json_option
def command(store: str, as_json: bool) -> None:
    """Check this environment as an agent would find it: instrumentors, exporter, content, limits, store, versions.

    Makes one model call against a server of its own, under opentelemetry-instrument with the variables set here;
    nothing of it is sent anywhere. Exit status 1 when something would lose spans.
    """
    checks: list[Check] = []
    for check in run_checks(store):
        checks.append(check)
        if not as_json:
            click.echo(
                f"{click.style(f'{check.status:4}', fg=COLORS[check.status])} {check.name}: {check.detail}"
            )
            if check.fix:
                click.echo(f"     fix: {check.fix}")
    failed = any(check.status == "FAIL" for check in checks)
    if as_json:
        echo_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    if failed:
        sys.exit(1)


def run_checks(store: str) -> Iterator[Check]:
    """All checks, cheap ones first."""
    yield check_versions()
    report, trouble = probe()
    if report is None or not report["sdk"]:
        yield Check(
            "instrumentation",
            "FAIL",
            "no span leaves an agent that is started here" + (f": {trouble}" if trouble else ""),
            "pip install --upgrade spanloop, and check the OTEL_* variables that are set: env | grep OTEL_",
        )
    else:
        yield Check("instrumentation", "ok", "opentelemetry-instrument sets up the SDK")
        yield check_service(report)
        yield from check_libraries(report, trouble)
        yield check_content(report)
        yield check_limits(report)
        yield from check_exporters(report)
    yield check_store(store)


def probe() -> tuple[dict[str, Any] | None, str]:
    """Start `spanloop_exporter.probe` as an agent is started; its report, and the last thing it complained about."""
    launcher = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
    with tempfile.TemporaryDirectory(prefix="spanloop-doctor-") as folder:
        out = Path(folder) / "report.json"
        command_line = [
            sys.executable,
            "-c",
            launcher,
            sys.executable,
            "-m",
            "spanloop_exporter.probe",
            str(out),
        ]
        try:
            ended = subprocess.run(
                command_line, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False, cwd=folder
            )
        except subprocess.TimeoutExpired:
            return None, f"the trial run took over {PROBE_TIMEOUT_S} s"
        complaints = [line for line in ended.stderr.splitlines() if line.strip()]
        trouble = complaints[-1].strip() if complaints else ""
        if not out.exists():
            return None, trouble or f"the trial run ended with status {ended.returncode}"
        report: dict[str, Any] = json.loads(out.read_text())
        return report, trouble


def check_versions() -> Check:
    """Distro, instrumentation and SDK come from one release train."""
    names = ("opentelemetry-sdk", "opentelemetry-instrumentation", "opentelemetry-distro")
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            return Check("versions", "FAIL", f"{name} is not installed", "pip install --upgrade spanloop")
    shown = ", ".join(f"{name.removeprefix('opentelemetry-')} {number}" for name, number in found.items())
    sdk, instrumentation, distro = (found[name] for name in names)
    if not versions_match(sdk, instrumentation, distro):
        upgrade = "pip install --upgrade " + " ".join(names)
        return Check("versions", "FAIL", f"{shown}: not of one release", upgrade)
    return Check("versions", "ok", shown)


def versions_match(sdk: str, instrumentation: str, distro: str) -> bool:
    """Whether the three belong to one release of OpenTelemetry Python."""
    return distro == instrumentation and _minor(instrumentation) == _minor(sdk) + MINOR_OFFSET


def _minor(number: str) -> int:
    found = re.match(r"\d+\.(\d+)", number)
    return int(found[1]) if found else -1


def check_service(report: dict[str, Any]) -> Check:
    """An agent without a name cannot be told from others."""
    name = str(report["service"] or "")
    if not name or name.startswith("unknown_service"):
        return Check("service name", "warn", "not set", "OTEL_SERVICE_NAME=my-agent")
    return Check("service name", "ok", name)


def check_libraries(report: dict[str, Any], trouble: str) -> Iterator[Check]:
    """Each library that is installed was called, and its call left a span."""
    for name, result in report["libraries"].items():
        if result["library"] is None:
            yield Check(name, "ok", "not installed here, nothing to instrument")
        elif result["spans"]:
            yield Check(
                name, "ok", f"{result['library']}: instrumented, a call left {len(result['spans'])} span(s)"
            )
        else:
            reason = (
                result["import_error"] or result.get("call_error") or trouble or "its calls leave no span"
            )
            fix = f"pip install --upgrade opentelemetry-instrumentation-{name}"
            if _disabled(name):
                reason = "turned off by OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
                fix = "unset OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
            elif os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
                reason, fix = "OTEL_SDK_DISABLED turns everything off", "unset OTEL_SDK_DISABLED"
            elif os.environ.get("OTEL_TRACES_SAMPLER", "").endswith("off"):
                reason, fix = "the sampler drops every span", "unset OTEL_TRACES_SAMPLER"
            yield Check(name, "FAIL", f"{result['library']}: not instrumented ({reason})", fix)


def _disabled(name: str) -> bool:
    off = {item.strip() for item in os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}
    return bool(off & {name, "*"})


def check_content(report: dict[str, Any]) -> Check:
    """Prompts are in the spans: without them there is nothing to learn from."""
    blind: list[str] = []
    seen: list[str] = []
    for name, result in report["libraries"].items():
        if result["spans"]:
            (seen if any(span["prompt_in"] for span in result["spans"]) else blind).append(name)
    if blind:
        return Check(
            "content",
            "FAIL",
            f"spans of {', '.join(blind)} carry no messages, and nothing can be learned from them",
            "unset TRACELOOP_TRACE_CONTENT, or set it to true",
        )
    if not seen:
        return Check("content", "warn", "not known: no instrumented library was called", "pip install openai")
    return Check("content", "ok", f"messages are captured ({', '.join(seen)})")


def check_limits(report: dict[str, Any]) -> Check:
    """The SDK's limits cut spans without a word."""
    count, length = report["max_attributes"], report["max_length"]
    if length is not None:
        return Check(
            "limits",
            "FAIL",
            f"attribute values are cut after {length} characters, which leaves invalid JSON",
            "unset OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        )
    if count is not None and count < SAFE_ATTRIBUTES:
        return Check(
            "limits",
            "FAIL" if count <= 128 else "warn",
            f"{count} attributes a span: the oldest keys (operation name, first messages) are dropped beyond that",
            "unset OTEL_ATTRIBUTE_COUNT_LIMIT OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
        )
    return Check("limits", "ok", f"{count or 'unlimited'} attributes a span, values uncut")


def check_exporters(report: dict[str, Any]) -> Iterator[Check]:
    """Something takes the spans at the address that the exporter will use."""
    exporters = report["exporters"]
    if not exporters:
        yield Check(
            "exporter", "FAIL", "none: spans are thrown away", "unset OTEL_TRACES_EXPORTER, or set it to otlp"
        )
    for exporter in exporters:
        endpoint = str(exporter["endpoint"] or "")
        if not endpoint:
            yield Check("exporter", "warn", f"{exporter['class']} sends to no address that can be checked")
        elif "/v1/" not in endpoint:
            yield Check(
                "exporter",
                "warn",
                f"{endpoint} (gRPC, not checked)",
                "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
            )
        else:
            yield from _check_endpoint(endpoint)


def _check_endpoint(endpoint: str) -> Iterator[Check]:
    # An export request without spans is valid OTLP, and leaves nothing behind.
    status, text = _http(endpoint, b"", {"content-type": "application/x-protobuf"})
    if status == 0:
        yield Check(
            "exporter",
            "FAIL",
            f"{endpoint} does not answer: {text}",
            "start `spanloop up`, or set OTEL_EXPORTER_OTLP_ENDPOINT to where the collector is",
        )
        return
    if status >= 300:
        fix = (
            "check OTEL_EXPORTER_OTLP_ENDPOINT (base URL, without /v1/traces) and OTEL_EXPORTER_OTLP_HEADERS"
        )
        yield Check("exporter", "FAIL", f"{endpoint} answers {status}: {text[:120]}", fix)
        return
    yield Check("exporter", "ok", f"{endpoint} takes spans")
    parts = urlsplit(endpoint)
    base = urlunsplit((parts.scheme, parts.netloc, parts.path.removesuffix("/v1/traces"), "", ""))
    status, text = _http(base + "/healthz")
    if status == 200:
        yield Check("collector", "ok", f"{base}/healthz is well")
    elif status == 404:
        yield Check("collector", "ok", f"{base} is a collector, but not Spanloop's (no /healthz)")
    else:
        yield Check(
            "collector",
            "warn",
            f"{base}/healthz answers {status or 'nothing'}: {text[:120]}",
            "spanloop status",
        )


def _http(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and text of an answer; status 0 and the reason where there was none."""
    if urlsplit(url).scheme not in ("http", "https"):
        return 0, "not an http or https URL"
    extra = {}
    for pair in filter(None, os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",")):
        name, _, value = pair.partition("=")
        extra[name.strip()] = value.strip()
    request = urllib.request.Request(url, data=body, headers=extra | (headers or {}))  # noqa: S310  (checked above)
    # No proxy: a collector is near, and a proxy's error page would be taken for its answer.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=HTTP_TIMEOUT_S) as answer:
            return int(answer.status), answer.read(1000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(1000).decode(errors="replace")
    except (OSError, ValueError) as error:
        return 0, str(getattr(error, "reason", error))


def check_store(url: str) -> Check:
    """Who owns the embedded store, or whether the server answers; nothing is opened or created."""
    import spanloop_store as store
    from spanloop_store.errors import SpanloopError

    try:
        parsed = store.StoreUrl.parse(url)
        if parsed.kind == "chdb":
            owner = store.read_owner(parsed)
            if owner is None:
                return Check(
                    "store",
                    "warn",
                    f"{parsed.redacted()}: nobody serves it now",
                    f"spanloop up --store {url}",
                )
            return Check(
                "store", "ok", f"{parsed.redacted()}: owned by process {owner.pid}, {owner.clickhouse}"
            )
        client = store.connect(parsed, migrate=False)
        try:
            return Check("store", "ok", f"{parsed.redacted()}: ClickHouse {client.server_version}")
        finally:
            client.close()
    except SpanloopError as error:
        return Check("store", "FAIL", error.message, error.hint)
