"""What the SDK was told: on or off, sampling, limits, queue, propagation, and Spanloop's own variables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from spanloop.doctor.check import Check
from spanloop.doctor.trial import Trial
from spanloop_exporter.calls import asking
from spanloop_exporter.errors import RedactionError

# Below this, long conversations lose keys: current instrumentors write messages as one attribute, older ones as five
# attributes a message.
SAFE_ATTRIBUTES = 1024
# The SDK's own defaults, where a variable is not set.
_SDK_QUEUE = 2048
_SDK_BATCH = 512
_SDK_DELAY_MS = 5000
# What a killed process loses at most, without the spool.
_SAFE_DELAY_MS = 5000
# OTLP/HTTP and Spanloop take 64 MiB; 512 spans with 100 KB of messages each are 50 MB.
_SAFE_BATCH = 512
_RATIO = re.compile(r"TraceIdRatioBased\{([\d.e-]+)\}")
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")
_OURS = frozenset({
    "SPANLOOP_ADMIN_TOKEN", "SPANLOOP_READ_TOKEN",
    "SPANLOOP_CAPTURE_TOKENS", "SPANLOOP_COLLECTOR", "SPANLOOP_ENGINE_MEMORY", "SPANLOOP_MAX_ATTRIBUTE_BYTES",
    "SPANLOOP_REDACTION", "SPANLOOP_REDACTION_SALT",
    "SPANLOOP_RETENTION_DAYS", "SPANLOOP_ROLLOUT_ID", "SPANLOOP_RUN_ID", "SPANLOOP_SESSION_ID", "SPANLOOP_SPOOL",
    "SPANLOOP_SPOOL_MAX_AGE_S", "SPANLOOP_SPOOL_MAX_BYTES", "SPANLOOP_STORE", "SPANLOOP_TASK_ID", "SPANLOOP_TOKEN",
})  # fmt: skip
_PREFIXES = ("OTEL_", "SPANLOOP_")
_NEARLY = 0.9  # OTEL_TRACE_EXPORTER is 0.97; names that only share their beginning are below
_FLAGS = ("SPANLOOP_CAPTURE_TOKENS",)
_NUMBERS = ("SPANLOOP_SPOOL_MAX_BYTES", "SPANLOOP_SPOOL_MAX_AGE_S", "SPANLOOP_MAX_ATTRIBUTE_BYTES")


def check_redaction(environ: Mapping[str, str]) -> Check:
    """Secrets stay in the agent: redaction runs, with the settings that are meant."""
    # Late: the others need no engine.
    from spanloop_exporter.redaction.settings import VARIABLE
    from spanloop_exporter.redaction.setup import redactor_for

    try:
        redactor = redactor_for(None, environ)
    except RedactionError as error:
        return Check("redaction", "FAIL", f"no span leaves an agent: {error.message}", error.hint)
    if redactor is None:
        return Check(
            "redaction",
            "warn",
            f"{VARIABLE}={environ.get(VARIABLE)}: spans leave an agent with every secret in them",
            f"unset {VARIABLE}",
        )
    where = environ.get(VARIABLE, "").strip()
    return Check("redaction", "ok", f"on, as {where} says" if "/" in where or "." in where else "on")


def check_disabled(environ: Mapping[str, str]) -> Check:
    """The SDK is not switched off as a whole."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Check("SDK", "FAIL", "OTEL_SDK_DISABLED=true: no span is recorded", "unset OTEL_SDK_DISABLED")
    return Check("SDK", "ok", "enabled")


def check_service(trial: Trial) -> Check:
    """An agent without a name cannot be told from others."""
    if not trial.service or trial.service.startswith("unknown_service"):
        return Check("service name", "warn", "not set", "export OTEL_SERVICE_NAME=my-agent")
    return Check("service name", "ok", trial.service)


def check_sampler(trial: Trial) -> Check:
    """Every trace is kept: an episode that was sampled away teaches nothing, and a part of one misleads."""
    root = trial.sampler.partition("root:")[2] or trial.sampler
    if root.startswith("AlwaysOff"):
        return Check("sampler", "FAIL", "the sampler drops every span", "unset OTEL_TRACES_SAMPLER")
    ratio = _RATIO.match(root)
    if ratio and float(ratio[1]) < 1:
        return Check(
            "sampler",
            "FAIL" if float(ratio[1]) == 0 else "warn",
            f"{float(ratio[1]):.0%} of the traces are kept, the rest is lost for learning",
            "unset OTEL_TRACES_SAMPLER OTEL_TRACES_SAMPLER_ARG",
        )
    return Check("sampler", "ok", "every trace is kept")


def check_limits(trial: Trial) -> Check:
    """The SDK's limits cut spans without a word."""
    if trial.max_length is not None:
        return Check(
            "limits",
            "FAIL",
            f"attribute values are cut after {trial.max_length} characters, which leaves invalid JSON",
            "unset OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        )
    count = trial.max_attributes
    if count is not None and count < SAFE_ATTRIBUTES:
        return Check(
            "limits",
            "FAIL" if count <= 128 else "warn",
            f"{count} attributes a span: the oldest keys (operation name, first messages) are dropped beyond that",
            "unset OTEL_ATTRIBUTE_COUNT_LIMIT OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
        )
    events = trial.max_events
    if events is not None and events < 128:
        return Check(
            "limits",
            "warn",
            f"{events} events a span: rewards and messages that are written as events are dropped beyond that",
            "unset OTEL_SPAN_EVENT_COUNT_LIMIT",
        )
    return Check(
        "limits", "ok", f"{count or 'unlimited'} attributes and {events} events a span, values uncut"
    )


def check_queue(environ: Mapping[str, str]) -> Check:
    """The batch processor's queue takes what an agent makes while a batch is on its way.

    Args:
        environ: the variables as the agent has them, defaults included.
    """
    fix = "unset OTEL_BSP_MAX_QUEUE_SIZE OTEL_BSP_MAX_EXPORT_BATCH_SIZE OTEL_BSP_SCHEDULE_DELAY"
    numbers = {}
    for name, default in (
        ("OTEL_BSP_MAX_QUEUE_SIZE", _SDK_QUEUE),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _SDK_BATCH),
        ("OTEL_BSP_SCHEDULE_DELAY", _SDK_DELAY_MS),
    ):
        value = number(environ.get(name) or str(default))
        if value is None or value <= 0:
            return Check("queue", "FAIL", f"{name}={environ[name]} is no positive number", f"unset {name}")
        numbers[name] = value
    queue, batch, delay = numbers.values()
    if batch > queue:
        return Check(
            "queue",
            "FAIL",
            f"a batch of {batch:g} is larger than the queue of {queue:g} spans: the SDK does not start",
            fix,
        )
    if batch > _SAFE_BATCH:
        return Check(
            "queue",
            "warn",
            f"batches of {batch:g} spans: with long prompts a request passes 64 MiB and is refused",
            fix,
        )
    if delay > _SAFE_DELAY_MS:
        return Check(
            "queue",
            "warn",
            f"spans wait up to {delay / 1000:g} s before they are sent; a kill loses them",
            fix,
        )
    return Check("queue", "ok", f"{queue:g} spans, batches of {batch:g}, every {delay / 1000:g} s")


def check_propagation(trial: Trial, environ: Mapping[str, str]) -> Check:
    """Trace ids travel to the gateway and to other agents, so that their spans join."""
    if "traceparent" not in trial.propagates:
        return Check(
            "propagation",
            "warn",
            "traceparent is not sent: spans of the gateway and of other services stay apart",
            "export OTEL_PROPAGATORS=tracecontext,baggage",
        )
    given = environ.get("TRACEPARENT", "")
    if given and not _TRACEPARENT.match(given.strip()):
        return Check(
            "propagation", "warn", f"TRACEPARENT={given} is malformed and is ignored", "unset TRACEPARENT"
        )
    return Check("propagation", "ok", "traceparent" + (", and TRACEPARENT is joined" if given else ""))


def check_names(environ: Mapping[str, str]) -> Iterator[Check]:
    """No variable is misspelt: nobody reads one that is, and nobody says so."""
    from opentelemetry import environment_variables as api
    from opentelemetry.instrumentation import environment_variables as instrumentation
    from opentelemetry.sdk import environment_variables as sdk

    known = {name for module in (api, instrumentation, sdk) for name in vars(module)} | _OURS
    for name in sorted(set(environ) - known):
        meant = get_close_matches(name, known, n=1, cutoff=_NEARLY) if name.startswith(_PREFIXES) else []
        if meant:
            yield Check(
                "settings",
                "warn",
                f"{name} is no variable that is read; {meant[0]} is",
                f'export {meant[0]}="${name}"; unset {name}',
            )


def check_values(environ: Mapping[str, str]) -> Iterator[Check]:
    """Spanloop's own values can be read: an agent must not fail on one, so it would be ignored."""
    for name in _NUMBERS:
        given = environ.get(name, "").strip()
        if given and (value := number(given)) is not None and value > 0:
            continue
        if given:
            yield Check(
                "settings", "warn", f"{name}={given} is no positive number and is ignored", f"unset {name}"
            )
    for name in _FLAGS:
        given = environ.get(name, "").strip()
        if given.lower() not in ("", *asking.YES, "false", "0", "no", "off"):
            yield Check(
                "settings", "warn", f"{name}={given} is neither true nor false", f"export {name}=true"
            )


def number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
