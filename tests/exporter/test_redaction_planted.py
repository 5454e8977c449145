"""Every kind × every place of spans and log records × plain, nested and streamed: nothing planted is in any byte."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.exporter.planted import Planted, everything

from spanloop_exporter.redaction.otlp import redact_request
from spanloop_exporter.redaction.redactor import Redactor
from spanloop_store.otlp.signals import Signal

PLANTED = everything()
REDACTOR = Redactor(b"a salt of the tests")
FORMS = {"plain": 0, "nested": 1, "nested thrice": 3}
CLEAN = "nothing to see here"


def nested(text: str, depth: int) -> str:
    """The text as JSON that holds JSON that holds it, as tool results do."""
    for level in range(depth):
        text = json.dumps({"role": "tool", "content": text, "level": level})
    return text


def as_stored(secret: str, depth: int) -> list[bytes]:
    """What of a secret may be in the bytes."""
    found = [secret]
    for _ in range(depth):
        found.append(json.dumps(found[-1])[1:-1])
    return [one.encode() for one in dict.fromkeys(found)]


def _attribute(owner: Any, text: str) -> None:
    owner.attributes.add(key="k").value.string_value = text


def _deep(value: Any, text: str) -> None:
    inner = value.kvlist_value.values.add(key="list").value.array_value.values.add()
    inner.kvlist_value.values.add(key="k").value.string_value = text


# How a text is put into a resource (spans or logs), a scope, or an item.
RESOURCE: dict[str, Callable[[Any, str], None]] = {
    "resource attribute": lambda group, text: _attribute(group.resource, text),
    "resource key": lambda group, text: setattr(
        group.resource.attributes.add(key=text).value, "string_value", CLEAN
    ),
    "resource schema": lambda group, text: setattr(group, "schema_url", text),
}
SCOPE: dict[str, Callable[[Any, str], None]] = {
    "scope name": lambda group, text: setattr(group.scope, "name", text),
    "scope version": lambda group, text: setattr(group.scope, "version", text),
    "scope attribute": lambda group, text: _attribute(group.scope, text),
    "scope schema": lambda group, text: setattr(group, "schema_url", text),
}
ITEM: dict[str, Callable[[Any, str], None]] = {
    "attribute": _attribute,
    "key": lambda item, text: setattr(item.attributes.add(key=text).value, "string_value", CLEAN),
    "array": lambda item, text: setattr(
        item.attributes.add(key="k").value.array_value.values.add(), "string_value", text
    ),
    "map": lambda item, text: _deep(item.attributes.add(key="k").value, text),
    "bytes": lambda item, text: setattr(item.attributes.add(key="k").value, "bytes_value", text.encode()),
}
SPAN: dict[str, Callable[[Any, str], None]] = {
    **ITEM,
    "name": lambda span, text: setattr(span, "name", text),
    "trace state": lambda span, text: setattr(span, "trace_state", text),
    "status": lambda span, text: setattr(span.status, "message", text),
    "event name": lambda span, text: setattr(span.events.add(), "name", text),
    "event attribute": lambda span, text: _attribute(span.events.add(name="e"), text),
    "link attribute": lambda span, text: _attribute(
        span.links.add(trace_id=bytes(15) + b"1", span_id=bytes(7) + b"1"), text
    ),
    "link state": lambda span, text: setattr(
        span.links.add(trace_id=bytes(15) + b"1", span_id=bytes(7) + b"1"), "trace_state", text
    ),
}
RECORD: dict[str, Callable[[Any, str], None]] = {
    **ITEM,
    "body": lambda record, text: setattr(record.body, "string_value", text),
    "body map": lambda record, text: _deep(record.body, text),
    "severity": lambda record, text: setattr(record, "severity_text", text),
    "event name": lambda record, text: setattr(record, "event_name", text),
}


def request(signal: Signal, place: str, texts: list[str]) -> Any:
    """One request with each of the texts at that place, and clean texts beside them."""
    message: Any = ExportTraceServiceRequest() if signal is Signal.TRACES else ExportLogsServiceRequest()
    groups = message.resource_spans if signal is Signal.TRACES else message.resource_logs
    for number, text in enumerate(texts, 1):
        group = groups.add()
        group.resource.attributes.add(key="service.name").value.string_value = CLEAN
        scope = (group.scope_spans if signal is Signal.TRACES else group.scope_logs).add()
        items = scope.spans if signal is Signal.TRACES else scope.log_records
        item = items.add(trace_id=number.to_bytes(16, "big"), span_id=number.to_bytes(8, "big"))
        _attribute(item, CLEAN)
        own = SPAN if signal is Signal.TRACES else RECORD
        if place in RESOURCE:
            RESOURCE[place](group, text)
        elif place in SCOPE:
            SCOPE[place](scope, text)
        else:
            own[place](item, text)
        _attribute(item, CLEAN)
    return message


def leaves(message: Message) -> Iterator[tuple[Any, Any, Any]]:
    """(owner, field, value) of every text and bytes value; ids are none."""
    for field, value in message.ListFields():
        if field.message_type:
            inner = list(value) if field.is_repeated else [value]
            for item in inner:
                yield from leaves(item)
        elif isinstance(value, str) or field.name in ("bytes_value",):
            yield message, field, value


def skeleton(message: Any) -> bytes:
    """All of it but its texts, whose lengths stay."""
    for owner, field, value in list(leaves(message)):
        setattr(owner, field.name, "." * len(value.encode()) if isinstance(value, str) else b"." * len(value))
    return bytes(message.SerializeToString(deterministic=True))


PLACES = [
    *((Signal.TRACES, place) for place in (*RESOURCE, *SCOPE, *SPAN)),
    *((Signal.LOGS, place) for place in (*RESOURCE, *SCOPE, *RECORD)),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("signal", "place"), PLACES, ids=[f"{s.value}-{place}" for s, place in PLACES])
def test_nothing_planted_is_in_any_byte(signal: Signal, place: str, form: str) -> None:
    depth = FORMS[form]
    sent = request(signal, place, [nested(planted.text, depth) for planted in PLANTED])
    data = sent.SerializeToString()
    redacted = redact_request(data, signal, REDACTOR)
    leaked = {
        planted.kind for planted in PLANTED for one in as_stored(planted.secret, depth) if one in redacted
    }
    assert not leaked
    # It is the same message but for these texts, and a second look changes nothing.
    assert len(redacted) == len(data)
    kept = type(sent).FromString(redacted)
    texts = [value for _, _, value in leaves(sent)]
    changed = [(old, new) for old, (_, _, new) in zip(texts, leaves(kept), strict=True) if old != new]
    assert len(changed) == len(PLANTED)
    if not depth:
        assert skeleton(kept) == skeleton(sent)
    assert redact_request(redacted, signal, REDACTOR) == redacted
    if depth and place != "bytes":
        for old, new in changed:
            assert json.loads(new)["level"] == json.loads(old)["level"]


def pieces(text: str, chance: random.Random) -> list[str]:
    """Cut as a model streams: a few characters at a time."""
    found = []
    while text:
        size = chance.randint(2, 7)
        found.append(text[:size])
        text = text[size:]
    return found


@pytest.mark.parametrize("form", ["plain", "in JSON"])
def test_what_a_stream_cut_is_found(form: str) -> None:
    chance = random.Random(5)
    sent = ExportTraceServiceRequest()
    spans = sent.resource_spans.add().scope_spans.add().spans
    for number, planted in enumerate(PLANTED, 1):
        span = spans.add(trace_id=number.to_bytes(16, "big"), span_id=number.to_bytes(8, "big"))
        for index, piece in enumerate(pieces(planted.text, chance)):
            event = span.events.add(name="gen_ai.content.chunk", time_unix_nano=index)
            event.attributes.add(key="index").value.int_value = index
            text = (
                piece
                if form == "plain"
                else json.dumps({"index": index, "delta": {"content": piece}}, ensure_ascii=False)
            )
            event.attributes.add(key="content").value.string_value = text
            event.attributes.add(key="number").value.string_value = str(index)
    redacted = redact_request(sent.SerializeToString(), Signal.TRACES, REDACTOR)
    kept = ExportTraceServiceRequest.FromString(redacted)
    leaked = set()
    for planted, span in zip(PLANTED, kept.resource_spans[0].scope_spans[0].spans, strict=True):
        chunks = [event.attributes[1].value.string_value for event in span.events]
        text = "".join(
            chunks if form == "plain" else [json.loads(chunk)["delta"]["content"] for chunk in chunks]
        )
        if planted.secret in text or json.dumps(planted.secret)[1:-1] in text:
            leaked.add(planted.kind)
    assert not leaked
    assert len(redacted) == sent.ByteSize()
    assert redact_request(redacted, Signal.TRACES, REDACTOR) == redacted


def test_there_are_at_least_a_hundred_kinds() -> None:
    assert len({planted.kind for planted in PLANTED}) >= 170


def test_equal_values_stay_equal_and_different_ones_different() -> None:
    """At every depth and in every place, so that de-duplication and prefix chains go on working."""
    first, second = Planted("", "a" + "@example.org", ""), Planted("", "b" + "@example.org", "")
    texts = [nested(f"to {one.secret}!", depth) for one in (first, second) for depth in (0, 1, 3)]
    sent = request(Signal.TRACES, "attribute", texts)
    kept = ExportTraceServiceRequest.FromString(
        redact_request(sent.SerializeToString(), Signal.TRACES, REDACTOR)
    )
    said = []
    for text, group in zip(texts, kept.resource_spans, strict=True):
        value = group.scope_spans[0].spans[0].attributes[1].value.string_value
        while text.startswith("{"):
            text, value = json.loads(text)["content"], json.loads(value)["content"]
        said.append(value)
    assert len(set(said[:3])) == len(set(said[3:])) == 1
    assert said[0] != said[3]


def test_a_match_never_crosses_a_field() -> None:
    """The length of the second text is the byte "1", which would make its digits one number with the first."""
    sent = ExportTraceServiceRequest()
    span = sent.resource_spans.add().scope_spans.add().spans.add(trace_id=b"1" * 16, span_id=b"1" * 8)
    card = "4111" + "1111" + "1111" + "1111"
    span.attributes.add(key="a").value.string_value = "id 99999"
    span.attributes.add(key=card + " " * 33).value.string_value = card + "x" * 33
    span.attributes.add(key="b").value.string_value = card
    redacted = ExportTraceServiceRequest.FromString(
        redact_request(sent.SerializeToString(), Signal.TRACES, REDACTOR)
    )
    values = redacted.resource_spans[0].scope_spans[0].spans[0].attributes
    assert values[0].value.string_value == "id 99999"
    assert card not in values[1].key
    assert values[1].value.string_value == card + "x" * 33  # a longer word, and so none
    assert card not in values[2].value.string_value
