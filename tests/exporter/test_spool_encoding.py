"""The hand-written encoder says what OpenTelemetry's own says, field by field; merged requests hold what their parts held."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from spanloop_exporter.spooling.encoding import SpanEncoder
from spanloop_exporter.spooling.merging import merge

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
scalars = st.one_of(
    texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary(max_size=40)
)
values = st.recursive(
    st.one_of(scalars, st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
attributes = st.dictionaries(texts, values, max_size=6)
nanoseconds = st.integers(0, 2**63)
scopes = st.none() | st.builds(
    InstrumentationScope, texts, texts, texts, st.dictionaries(texts, texts, max_size=2)
)


@st.composite
def contexts(draw: st.DrawFn) -> SpanContext:
    state = draw(st.sampled_from([None, TraceState([("vendor", "1"), ("other", "a:b")])]))
    return SpanContext(
        draw(st.integers(1, 2**128 - 1)),
        draw(st.integers(1, 2**64 - 1)),
        draw(st.booleans()),
        TraceFlags(1),
        state,
    )


@st.composite
def spans(
    draw: st.DrawFn,
    resource: Resource | None = None,
    scopes: st.SearchStrategy[InstrumentationScope | None] = scopes,
) -> ReadableSpan:
    return ReadableSpan(
        name=draw(texts),
        context=draw(contexts()),
        parent=draw(st.none() | contexts()),
        resource=resource or Resource(draw(st.dictionaries(texts, texts, max_size=3)), draw(texts)),
        attributes=draw(attributes),
        events=[
            Event(draw(texts), draw(attributes), draw(nanoseconds)) for _ in range(draw(st.integers(0, 2)))
        ],
        links=[Link(draw(contexts()), draw(attributes)) for _ in range(draw(st.integers(0, 2)))],
        kind=draw(st.sampled_from(SpanKind)),
        status=Status(draw(st.sampled_from(StatusCode)), draw(st.none() | texts)),
        start_time=draw(nanoseconds),
        end_time=draw(nanoseconds),
        instrumentation_scope=draw(scopes),
    )


def decoded(data: bytes) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(data)


@given(spans())
def test_a_span_is_encoded_as_upstream_encodes_it(span: ReadableSpan) -> None:
    assert decoded(SpanEncoder().encode(span)) == encode_spans([span])


two_scopes = st.builds(InstrumentationScope, st.sampled_from(["openai", "langchain"]), st.just("0.62.4"))


@given(st.lists(spans(Resource({"service.name": "agent"}), two_scopes), min_size=1, max_size=5))
def test_merging_keeps_every_span_under_its_resource_and_scope(batch: list[ReadableSpan]) -> None:
    encoder = SpanEncoder()
    merged = decoded(merge(encoder.encode(span) for span in batch))
    assert merged == encode_spans(batch)
    assert len(merged.resource_spans) == 1


two_agents = st.sampled_from([Resource({"service.name": name}, "https://schema") for name in ("one", "two")])


@given(st.lists(st.lists(two_agents.flatmap(lambda agent: spans(agent, two_scopes)), max_size=3), max_size=4))
def test_merging_takes_requests_of_any_number_of_spans_and_agents(requests: list[list[ReadableSpan]]) -> None:
    mixed = [encode_spans(request).SerializeToString() for request in requests]
    mixed += [SpanEncoder().encode(span) for request in requests for span in request]
    merged = decoded(merge(mixed))
    held = [
        (each.resource.attributes[0].value.string_value, scope.scope.name, span.SerializeToString())
        for each in merged.resource_spans
        for scope in each.scope_spans
        for span in scope.spans
    ]
    sent = [
        (span.resource.attributes["service.name"], span.instrumentation_scope.name, encoded)
        for request in requests
        for span in request
        for encoded in [
            encode_spans([span]).resource_spans[0].scope_spans[0].spans[0].SerializeToString()
        ] * 2
    ]  # fmt: skip
    assert sorted(held) == sorted(sent)


def test_merging_shares_resource_and_scope() -> None:
    resource = Resource({"service.name": "agent", "host.name": "h" * 200})
    scope = InstrumentationScope("opentelemetry.instrumentation.openai.v1", "0.62.4")
    context = SpanContext(1, 2, False, TraceFlags(1))
    span = ReadableSpan(
        "chat", context, resource=resource, instrumentation_scope=scope, start_time=1, end_time=2
    )
    payloads = [SpanEncoder().encode(span)] * 100
    assert len(merge(payloads)) < 0.2 * sum(map(len, payloads))


def test_merging_leaves_what_it_does_not_know_as_it_is() -> None:
    strange = b"\x98\x06\x05"  # field 99, a varint
    known = SpanEncoder().encode(ReadableSpan("x", SpanContext(1, 2, False), resource=Resource({})))
    assert merge([strange, known, known]) == merge([known, known]) + strange


@pytest.mark.parametrize(
    ("value", "kept"),
    [("half \ud800 a pair", "half ? a pair"), (2**63, None), (object(), None), (math.inf, math.inf)],
    ids=["surrogate", "large", "object", "infinite"],
)
def test_a_value_that_otlp_cannot_carry_does_not_cost_the_span(value: Any, kept: Any) -> None:
    span = ReadableSpan(
        "x", SpanContext(1, 2, False), resource=Resource({}), attributes={"bad": value, "good": 1}
    )
    (encoded,) = decoded(SpanEncoder().encode(span)).resource_spans[0].scope_spans[0].spans
    found = {pair.key: pair.value for pair in encoded.attributes}
    assert found["good"].int_value == 1
    if kept is None:
        assert "bad" not in found
    else:
        assert kept in (found["bad"].string_value, found["bad"].double_value)
