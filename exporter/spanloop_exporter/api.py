"""What an agent may say itself, for those who want to: a reward, a note, a session, a call that no instrumentor knows.

All of it is optional and does nothing without an OpenTelemetry SDK. A wrong argument raises at once, since that is a mistake
of whoever wrote it; whatever fails in recording it is logged and never raised. Every context manager works with `with` and
with `async with`.

    import spanloop

    with spanloop.session(task="invoice-17"):
        answer = run_my_agent()
        spanloop.reward(1.0 if answer == "42" else 0.0)
"""

from __future__ import annotations

import math
import numbers
import uuid
from collections.abc import Mapping
from contextvars import Token
from typing import Final, Self

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext
from opentelemetry.util.types import AttributeValue

from spanloop_exporter.calls import claims
from spanloop_exporter.calls.manual import model_call, tool_call
from spanloop_exporter.safety import detach, quietly

__all__ = ["annotate", "model_call", "reward", "session", "tool_call"]

_EVENT: Final = "gen_ai.evaluation.result"


def reward(
    value: float,
    *,
    name: str = "reward",
    span: Span | model_call | tool_call | None = None,
    response_id: str | None = None,
    label: str | None = None,
    explanation: str | None = None,
) -> None:
    """Judge a call or a run, as an event `gen_ai.evaluation.result`.

    It goes to `span`, else to the call that answered with `response_id`, else to the current span, else to the last model
    call of this thread or task. Where that span has ended already, the event is on a short span `evaluate NAME` below it.

    Args:
        value: the score, a finite number; larger is better.
        name: what is judged; rewards of several names are weighed in `spanloop.toml`.
        span: of the call that is judged.
        response_id: the id that the model server gave its answer.
        label: the score in a word ("pass").
        explanation: why.

    Raises:
        TypeError: `value` is no number, or `name` no text.
        ValueError: `value` is NaN or infinite.
    """
    if not isinstance(value, numbers.Real):
        raise TypeError(f"a reward is a number, not {_a(value)}")
    try:
        score = float(value)
    except OverflowError:  # of a whole number
        score = math.inf
    if not math.isfinite(score):
        raise ValueError(
            f"a reward of {score} cannot be learnt from: give a finite number, or none for unscored"
        )
    texts = {"name": name, "response_id": response_id, "label": label, "explanation": explanation}
    for argument, text in texts.items():
        if not isinstance(text, str) and (text is not None or argument == "name"):
            raise TypeError(f"{argument} is a text, not {_a(text)}")
    if span is not None and not isinstance(span, Span | model_call | tool_call):
        raise TypeError(
            f"span is an OpenTelemetry span or what model_call and tool_call give, not {_a(span)}"
        )
    said: dict[str, AttributeValue | None] = {
        "gen_ai.evaluation.name": name,
        "gen_ai.evaluation.score.value": score,
        "gen_ai.evaluation.score.label": label,
        "gen_ai.evaluation.explanation": explanation,
        "gen_ai.response.id": response_id,
    }
    _judge(name, said, span.span if isinstance(span, model_call | tool_call) else span, response_id)


def annotate(**attributes: AttributeValue) -> None:
    """Set attributes on the current span; inside `session`, on every later span of the session too.

    Dotted keys by unpacking: `annotate(**{"user.tier": "gold"})`.

    Raises:
        TypeError: a value is no text, number, truth value or list of one kind of them.
    """
    for key, value in attributes.items():
        _check_attribute(key, value)
    _annotate(attributes)


class session:  # used as a function: `with spanloop.session(…)`
    """Everything that is recorded inside belongs to one session: one episode to learn from.

    It holds in this thread or task and in tasks started inside; a new thread starts outside of it.

    Args:
        id: its id; None: a fresh one.
        task: what was asked, by its id. The sessions of one task are compared with each other.
        rollout: the attempt, where a session has several.
        run: the experiment or deployment.
        attributes: any other attributes that every span inside should have.

    Attributes:
        id: of the session.

    Raises:
        TypeError: an id is no text, or an attribute has a value that spans cannot carry.
        ValueError: an id is empty.
    """

    def __init__(
        self,
        id: str | None = None,
        *,
        task: str | None = None,
        rollout: str | None = None,
        run: str | None = None,
        **attributes: AttributeValue,
    ) -> None:
        self.id = uuid.uuid4().hex if id is None else id
        named = {
            "session.id": self.id,
            "spanloop.task.id": task,
            "spanloop.rollout.id": rollout,
            "spanloop.run.id": run,
        }
        for key, value in named.items():
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{key} is a text, not {_a(value)}")
            if value == "":
                raise ValueError(f"{key} is empty: leave it out, or name it")
        for key, attribute in attributes.items():
            _check_attribute(key, attribute)
        self._said: dict[str, AttributeValue] = {k: v for k, v in named.items() if v is not None} | attributes
        self._token: Token[Context] | None = None

    def __enter__(self) -> Self:
        self._token = _open_session(self._said)
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            detach(self._token)
            self._token = None

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *error: object) -> None:
        self.__exit__(*error)


@quietly
def _judge(
    name: str, said: Mapping[str, AttributeValue | None], span: Span | None, response_id: str | None
) -> None:
    event = {key: value for key, value in said.items() if value is not None}
    current = context.get_value(claims.SESSION_KEY)
    if isinstance(current, dict):
        event["session.id"] = current["session.id"]
    call = None
    if span is None:
        call = claims.of_response(response_id) if response_id is not None else None
        if call is None:
            span = trace.get_current_span()
            if not span.is_recording() and response_id is None:
                call = claims.last()
    if span is not None and span.is_recording():
        span.add_event(_EVENT, event)
        return
    if call is not None and call.response_id:
        event.setdefault("gen_ai.response.id", call.response_id)
    judged: SpanContext | None = call.reported.span if call is not None else None
    if judged is None and span is not None and span.get_span_context().is_valid:
        judged = span.get_span_context()
    parent = trace.set_span_in_context(NonRecordingSpan(judged)) if judged is not None else None
    with trace.get_tracer(claims.SCOPE).start_as_current_span(f"evaluate {name}", context=parent) as own:
        own.add_event(_EVENT, event)


@quietly
def _annotate(attributes: Mapping[str, AttributeValue]) -> None:
    trace.get_current_span().set_attributes(attributes)
    said = context.get_value(claims.SESSION_KEY)
    if isinstance(said, dict):
        said.update(attributes)


@quietly
def _open_session(said: Mapping[str, AttributeValue]) -> Token[Context]:
    claims.watch_global()
    claims.forget()  # a reward in here judges no call of before
    outer = context.get_value(claims.SESSION_KEY)
    both = {**(outer if isinstance(outer, dict) else {}), **said}
    return context.attach(context.set_value(claims.SESSION_KEY, both))


def _check_attribute(key: str, value: object) -> None:
    items = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(item, str | bool | int | float) for item in items):
        raise TypeError(f"{key} is a text, a number, a truth value or a list of them, not {_a(value)}")


def _a(value: object) -> str:
    return f"a {type(value).__name__}"
