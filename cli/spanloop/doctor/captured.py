"""What the trial's calls left: instrumentors that are active and not merely installed, whole messages, token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from spanloop.doctor.check import Check
from spanloop.doctor.installed import disabled, foreign
from spanloop.doctor.trial import Call, Library, Trial
from spanloop_exporter.calls import asking

_TOKEN_KEY = "spanloop.completion_token_ids"  # noqa: S105  # an attribute's name
# Variables that switch content off, of both families: OpenLLMetry and OpenTelemetry's own, and OpenInference.
_CONTENT_OFF = {
    "TRACELOOP_TRACE_CONTENT": ("false", "0", "no"),
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": ("false", "no_content", "event_only"),
    "OPENINFERENCE_HIDE_INPUTS": ("true", "1"),
    "OPENINFERENCE_HIDE_OUTPUTS": ("true", "1"),
    "OPENINFERENCE_HIDE_INPUT_MESSAGES": ("true", "1"),
    "OPENINFERENCE_HIDE_OUTPUT_MESSAGES": ("true", "1"),
    "OPENINFERENCE_HIDE_INPUT_TEXT": ("true", "1"),
    "OPENINFERENCE_HIDE_OUTPUT_TEXT": ("true", "1"),
}


def check_libraries(trial: Trial, trouble: str, environ: Mapping[str, str]) -> Iterator[Check]:
    """Each library that is installed was called, and its call left a span.

    Args:
        trial: what the trial run found.
        trouble: its last complaint, which names what nothing else does.
        environ: the variables that are set here.
    """
    for name, library in trial.libraries.items():
        silent = [kind for kind, call in library.calls.items() if not call.spans]
        if not silent:
            count = sum(len(call.spans) for call in library.calls.values())
            yield Check(
                name, "ok", f"{library.version}: instrumented, {_calls(library)} left {count} span(s)"
            )
        elif len(silent) < len(library.calls):
            call = library.calls[silent[0]]
            reason = call.error or "nothing was raised"
            yield Check(
                name,
                "warn",
                f"{library.version}: a {silent[0]} leaves no span ({reason})",
                f"pip install --upgrade {_distribution(trial, name)}",
            )
        else:
            yield Check(name, "FAIL", *_why_silent(name, library, trial, trouble, environ))
    if not trial.libraries:
        yield Check(
            "model calls",
            "warn",
            "neither openai nor langchain is installed here: no call was tried",
            "pip install openai",
        )
    yield from _check_others(trial, environ)


def _calls(library: Library) -> str:
    return " and ".join(f"a {kind}" for kind in library.calls)


def _distribution(trial: Trial, name: str) -> str:
    found = [i.distribution for i in trial.instrumentors if i.name == name and i.distribution]
    return found[0] if found else f"opentelemetry-instrumentation-{name}"


def _why_silent(
    name: str, library: Library, trial: Trial, trouble: str, environ: Mapping[str, str]
) -> tuple[str, str]:
    """Detail and fix for a library whose calls leave no span."""
    named = [instrumentor for instrumentor in trial.instrumentors if instrumentor.name == name]
    errors = [call.error for call in library.calls.values() if call.error]
    upgrade = f"pip install --upgrade {_distribution(trial, name)}"
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        reason, fix = "OTEL_SDK_DISABLED turns everything off", "unset OTEL_SDK_DISABLED"
    elif disabled(environ) & {name, "*"}:
        reason = "turned off by OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
        fix = "unset OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
    elif trial.sampler.startswith("AlwaysOff") or "root:AlwaysOff" in trial.sampler:
        reason, fix = "the sampler drops every span", "unset OTEL_TRACES_SAMPLER"
    elif not named:
        reason, fix = "no instrumentor for it is installed", f"pip install {_distribution(trial, name)}"
    elif broken := [i for i in named if i.error]:
        reason, fix = f"{broken[0].distribution} cannot be imported: {broken[0].error}", upgrade
    elif conflicting := [i for i in named if i.conflict]:
        reason, fix = f"{conflicting[0].distribution} {conflicting[0].conflict}", upgrade
    elif errors:
        reason, fix = f"the call itself fails: {errors[0]}", f"pip install --upgrade {name}"
    else:
        reason, fix = trouble or "its calls leave no span", upgrade
    return f"{library.version}: not instrumented ({reason})", fix


def _check_others(trial: Trial, environ: Mapping[str, str]) -> Iterator[Check]:
    """Instrumentors of libraries that the trial does not call: active, or why not."""
    off = disabled(environ)
    for instrumentor in trial.instrumentors:
        if instrumentor.name in trial.libraries or instrumentor.missing or off & {instrumentor.name, "*"}:
            continue
        name = f"instrumentor {instrumentor.name}"
        if instrumentor.active:
            yield Check(name, "ok", f"{instrumentor.distribution} is active; its library was not called")
        else:
            reason = instrumentor.error or instrumentor.conflict or "it was not loaded"
            yield Check(
                name,
                "FAIL",
                f"{instrumentor.distribution} is installed and not active: {reason}",
                f"pip install --upgrade {instrumentor.distribution}",
            )


def check_twice(trial: Trial) -> Check:
    """One model call is one span: two are two instrumentors, whatever their names."""
    for name, library in trial.libraries.items():
        for kind, call in library.calls.items():
            scopes = sorted({span.scope for span in call.spans if span.model_call})
            if len(scopes) > 1:
                active = {i.distribution for i in trial.instrumentors if i.name == name and i.active}
                detail = f"a {kind} is reported by {' and by '.join(scopes)}"
                return Check(
                    "reported once", "FAIL", detail, f"pip uninstall --yes {' '.join(foreign(active))}"
                )
    return Check("reported once", "ok", "no call is reported by two instrumentors")


def check_content(trial: Trial, environ: Mapping[str, str]) -> Check:
    """Prompts are in the spans, and whole: without them there is nothing to learn from."""
    off = [
        f"{name}={environ[name]}"
        for name, values in _CONTENT_OFF.items()
        if environ.get(name, "").lower() in values
    ]
    unset = "unset " + " ".join(item.partition("=")[0] for item in off)
    called = [
        (name, call)
        for name, library in trial.libraries.items()
        for call in library.calls.values()
        if call.spans
    ]
    blind = _names(called, lambda call: not any(span.prompt_in for span in call.spans))
    if blind:
        return Check(
            "content",
            "FAIL",
            f"spans of {blind} carry no messages, and nothing can be learned from them"
            + (f" ({', '.join(off)})" if off else ""),
            unset if off else "export TRACELOOP_TRACE_CONTENT=true",
        )
    cut = _names(called, lambda call: not any(span.whole_in for span in call.spans))
    if cut:
        return Check(
            "content",
            "FAIL",
            f"a long prompt is cut in the spans of {cut}",
            "unset OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        )
    if off:
        # It may belong to an instrumentor of a library that was not called here.
        return Check(
            "content", "warn", f"{', '.join(off)} switches content off for some instrumentors", unset
        )
    if not called:
        return Check("content", "warn", "not known: no instrumented library was called", "pip install openai")
    return Check("content", "ok", f"whole messages are captured ({_names(called, lambda _: True)})")


def _names(called: list[tuple[str, Call]], which: object) -> str:
    assert callable(which)
    return ", ".join(dict.fromkeys(name for name, call in called if which(call)))


def check_tokens(trial: Trial, environ: Mapping[str, str]) -> Check:
    """Where token ids are asked for, they are recorded."""
    if environ.get(asking.VARIABLE, "").strip().lower() not in asking.YES:
        return Check(
            "token ids",
            "ok",
            f"recorded where a server sends them; asking for them is off ({asking.VARIABLE})",
        )
    openai = trial.libraries.get("openai")
    if openai is None:
        return Check("token ids", "warn", "asked for, and openai is not installed here", "pip install openai")
    if any(_TOKEN_KEY in span.keys for call in openai.calls.values() for span in call.spans):
        return Check("token ids", "ok", "asked for, and recorded where the server sends them")
    return Check(
        "token ids",
        "FAIL",
        "asked for, and not recorded although the server sends them",
        "pip install --upgrade spanloop opentelemetry-instrumentation-openai",
    )
