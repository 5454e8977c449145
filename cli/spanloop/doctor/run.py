"""The order of the checks: what is installed, then a trial run, then what it shows, then the way out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from spanloop.doctor import captured, installed, reach, settings, spool, store, versions
from spanloop.doctor.check import Check
from spanloop.doctor.trial import run_trial


def run_checks(store_url: str) -> Iterator[Check]:
    """All checks of the environment that this process was started in, cheap ones first.

    Args:
        store_url: the store that the other commands would use.
    """
    environ = dict(os.environ)
    # It warns of numbers that are none, and so do we.
    logging.getLogger("spanloop_exporter.spooling.settings").setLevel(logging.ERROR)
    found = versions.installed_versions()
    yield versions.check_train(found)
    yield from versions.check_pairs(found)
    yield from versions.check_requirements(found)
    yield from installed.check_distro(environ)
    yield from installed.check_configurator(environ)
    yield from installed.check_conflicts(environ)
    yield settings.check_disabled(environ)
    yield from settings.check_names(environ)
    yield from settings.check_values(environ)
    yield settings.check_redaction(environ)
    collected = False
    trial, trouble = run_trial()
    if trial is None or not trial.sdk:
        yield settings.check_queue(environ)
        yield Check(
            "instrumentation",
            "FAIL",
            "no span leaves an agent that is started here" + (f": {trouble}" if trouble else ""),
            "env | grep OTEL_ and correct what this names; else pip install --upgrade spanloop",
        )
    else:
        # What the agent has: the defaults that our distro sets included.
        effective = {**trial.settings, **{name: value for name, value in environ.items() if value}}
        yield Check("instrumentation", "ok", "opentelemetry-instrument sets up the SDK")
        yield settings.check_service(trial)
        yield from captured.check_libraries(trial, trouble, environ)
        yield captured.check_twice(trial)
        yield captured.check_content(trial, effective)
        yield captured.check_tokens(trial, effective)
        yield settings.check_sampler(trial)
        yield settings.check_limits(trial)
        yield settings.check_queue(effective)
        yield settings.check_propagation(trial, environ)
        for check in reach.check_exporters(trial, effective):
            collected |= check.name == "collector"
            yield check
        if any(processor.exporter.endswith(reach.SPANLOOP_EXPORTER) for processor in trial.processors):
            yield from spool.check_spool(environ)
    yield store.check_store(store_url, collected=collected)
