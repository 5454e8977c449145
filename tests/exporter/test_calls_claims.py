"""Which span gets which call's facts where ids, starts and contexts alone could mislead; and who may say what was said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Tracer

import spanloop
from spanloop_exporter.calls import claims
from spanloop_exporter.calls.record import Call, read_chat


class Recorded:
    """A provider whose spans' ends are watched, and what it has exported; not the process's own."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = self.provider.get_tracer("t")

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def report(self, response_id: str, start_ns: int | None = None) -> Any:
        """An instrumentor's span of a call, made and ended now; gives the token ids that it got."""
        attributes = {"gen_ai.operation.name": "chat"}
        if response_id:
            attributes["gen_ai.response.id"] = response_id
        self.tracer.start_span("chat", kind=SpanKind.CLIENT, start_time=start_ns, attributes=attributes).end()
        return (self.spans[-1].attributes or {}).get("spanloop.completion_token_ids")


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    found = Recorded()
    claims.forget()
    claims.install(found.provider, lambda span, end_ns: None)
    yield found
    claims.uninstall()
    claims.forget()


def call(response_id: str, token: int) -> None:
    """A call that no span has claimed yet."""
    made = Call()
    claims.begin(made)
    read_chat(made, {"id": response_id, "choices": [{"token_ids": [token], "message": {}}]})
    claims.named(made)


def test_a_span_that_comes_late_gets_its_own_calls_facts(recorded: Recorded) -> None:
    """A background response that is fetched when another call has been made since."""
    first = time.time_ns()
    call("resp_first", 1)
    second = time.time_ns()
    call("resp_second", 2)
    assert recorded.report("resp_second", second) == "[[2]]"
    assert recorded.report("resp_first", first) == "[[1]]"


def test_a_second_span_that_comes_late_and_without_an_id_gets_the_facts_too(recorded: Recorded) -> None:
    """An instrumentor's span of a dropped stream, below a framework's span of the same call."""
    with recorded.tracer.start_as_current_span("framework", attributes={"gen_ai.operation.name": "chat"}):
        start = time.time_ns()
        call("resp_1", 1)
        assert recorded.report("", start) == "[[1]]"
    assert [(span.attributes or {})["spanloop.completion_token_ids"] for span in recorded.spans] == [
        "[[1]]",
        "[[1]]",
    ]


def test_a_server_with_one_id_for_all_answers_gives_the_newest(recorded: Recorded) -> None:
    call("chatcmpl-0", 1)
    assert recorded.report("chatcmpl-0") == "[[1]]"
    call("chatcmpl-0", 2)
    assert recorded.report("chatcmpl-0") == "[[2]]"


class Annotating(list[int]):
    """A value that adds to the session while a span takes it, as another thread may."""

    def __iter__(self) -> Iterator[int]:
        spanloop.annotate(later=1)
        return super().__iter__()


def test_a_span_may_start_while_its_session_is_annotated(recorded: Recorded) -> None:
    with spanloop.session("s", numbers=Annotating([1, 2])):
        recorded.tracer.start_span("step").end()
    (span,) = recorded.spans
    assert span.attributes is not None
    assert (span.attributes["session.id"], span.attributes["numbers"]) == ("s", (1, 2))


@pytest.mark.parametrize(
    ("variables", "allowed"),
    [
        ({}, True),
        ({"TRACELOOP_TRACE_CONTENT": "True"}, True),
        ({"TRACELOOP_TRACE_CONTENT": "on"}, True),
        ({"TRACELOOP_TRACE_CONTENT": "0"}, False),
        ({"TRACELOOP_TRACE_CONTENT": "disabled"}, False),
        ({"TRACELOOP_TRACE_CONTENT": ""}, False),
        ({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_only"}, True),
        ({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "event_only"}, False),
        ({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "NO_CONTENT"}, False),
    ],
    ids=["unset", "true", "on", "zero", "a-word", "empty", "spans", "events", "none"],
)
def test_no_more_is_said_than_instrumentors_say(
    variables: dict[str, str], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRACELOOP_TRACE_CONTENT", "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert claims.content_allowed() is allowed
