"""Picks checks of `spanloop doctor` out, and makes the trials that some of them look at."""

from __future__ import annotations

from collections.abc import Iterator

from spanloop.doctor.check import Check
from spanloop.doctor.trial import Call, Library, SpanFacts, Trial


def only(checks: Iterator[Check]) -> Check:
    (check,) = list(checks)
    return check


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def span(**facts: object) -> SpanFacts:
    keys = ["gen_ai.input.messages"]
    defaults = {
        "name": "chat",
        "scope": "s",
        "keys": keys,
        "prompt_in": keys,
        "whole_in": keys,
        "model_call": True,
    }
    return SpanFacts(**{**defaults, **facts})  # type: ignore[arg-type]  # by name


def trial(*spans: SpanFacts, **more: object) -> Trial:
    libraries = {"openai": Library("3.52.0", {"chat completion": Call("", list(spans))})}
    return Trial(sdk=True, libraries=libraries, **more)  # type: ignore[arg-type]  # by name
