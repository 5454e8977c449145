"""A store with recorded traces, the gateway's spans beside them, rewards and promotions."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from google.protobuf import json_format
from tests.helpers.stores import laid

from spanloop_store.engine import Engine
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal, message_type

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "otlp"
VERSION = "calculator@2"


@dataclass(frozen=True)
class Recorded:
    """The filled store, and what the tests compare with."""

    engine: Engine
    client: Client
    start: datetime
    end: datetime
    spans: int
    stamped_response: str
    stamped_trace: str
    linked_trace: str


def _protobuf(body: Any) -> bytes:
    """A recorded request as bytes. OTLP's JSON writes ids in hex, protobuf's own JSON form in base64."""

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            key: base64.b64encode(bytes.fromhex(item)).decode()
            if key in ("traceId", "spanId", "parentSpanId") and isinstance(item, str)
            else convert(item)
            for key, item in value.items()
        }

    message = json_format.ParseDict(convert(body), message_type(Signal.TRACES)(), ignore_unknown_fields=True)
    data: bytes = message.SerializeToString()
    return data


def _spans(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        span
        for resource_spans in body["resourceSpans"]
        for scope_spans in resource_spans["scopeSpans"]
        for span in scope_spans["spans"]
    ]


NAMES = [
    "a_sync_basic",
    "a_sync_err429",
    "b_stream_cut",
    "c_langchain_basic",
    "c_langchain_tool_exception",
    "d_agents_responses_basic",
]


def _gateway_span(response_id: str, trace_id: str, linked: str, start: int) -> dict[str, Any]:
    """The gateway's own span of one call: other trace, same response id, the version that served."""
    strings = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "calculator@candidate",
        "gen_ai.response.model": VERSION,
        "gen_ai.response.id": response_id,
        "spanloop.gateway": "true",
        "spanloop.model.alias": "calculator@candidate",
        "spanloop.model.version": VERSION,
        "spanloop.prompt.version": "calculator@4",
        "spanloop.prompt.requested": "calculator@3",
        "spanloop.prompt_token_ids": "[1, 2]",
    }
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in strings.items()]
    # Larger than any recorded call, so that a sum that took this span would show it.
    attributes.append({"key": "gen_ai.usage.input_tokens", "value": {"intValue": "1000000"}})
    span = {
        "traceId": trace_id,
        "spanId": "00f067aa0ba902b7",
        "name": "chat calculator@candidate",
        "kind": 2,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + 1_000_000),
        "attributes": attributes,
        "events": [{"timeUnixNano": str(start + 500), "name": "first token", "attributes": attributes[:1]}],
        "links": [{"traceId": linked, "spanId": "0facb51ea259beb9", "attributes": attributes[:1]}],
    }
    service = {"attributes": [{"key": "service.name", "value": {"stringValue": "spanloop-gateway"}}]}
    scope_spans = [{"scope": {"name": "spanloop", "version": "0.1.0"}, "spans": [span]}]
    return {"resourceSpans": [{"resource": service, "scopeSpans": scope_spans}]}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("dashboards")
    engine = Engine(laid(folder / "store"))
    try:
        yield _fill(engine)
    finally:
        engine.close()


def _fill(engine: Engine) -> Recorded:
    bodies = [json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES]
    call = _spans(bodies[0])[0]
    (response_id,) = (
        a["value"]["stringValue"] for a in call["attributes"] if a["key"] == "gen_ai.response.id"
    )
    gateway_trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    start = int(call["startTimeUnixNano"])
    bodies.append(_gateway_span(response_id, gateway_trace, call["traceId"], start + 1000))
    # A client that nobody instrumented: the gateway's span alone is no call of an agent.
    bodies.append(
        _gateway_span("chatcmpl-of-nobody", "4bf92f3577b34da6a3ce929d0e0e4737", call["traceId"], start)
    )
    segment = engine.url.log_path / "recorded.traces"
    segment.write_bytes(b"".join(frame(_protobuf(body)) for body in bodies))
    client = engine.client()
    inserter = SegmentInserter(client, embedded=True, quarantine=engine.url.quarantine_path)
    spans = sum(len(_spans(body)) for body in bodies)
    assert inserter.insert(segment, Signal.TRACES).rows == spans
    first, last = client.query("SELECT min(Timestamp), max(Timestamp) FROM otel_traces").result_rows[0]
    judged = last + timedelta(seconds=1)
    columns = [
        "id",
        "time",
        "received",
        "trace_id",
        "span_id",
        "response_id",
        "session_id",
        "name",
        "value",
        "source",
    ]
    trace, span = call["traceId"], call["spanId"]
    later = judged + timedelta(seconds=1)
    rewards = [
        # A rule judged the episode, and its next version judged it again: the newer value counts.
        ["r0", judged, judged, trace, span, response_id, "episode-1", "exact_match", 0.25, "rule"],
        ["r1", judged, later, trace, span, response_id, "episode-1", "exact_match", 1.0, "rule"],
        # Sent twice: one fact.
        ["r1", judged, later, trace, span, response_id, "episode-1", "exact_match", 1.0, "rule"],
        # A rule judged two calls of the episode.
        ["rule/call:r5", judged, judged, trace, span, "", "episode-1", "concise", 1.0, "rule"],
        ["rule/call:r6", judged, judged, trace, "c" * 16, "", "episode-1", "concise", 0.5, "rule"],
        # Unscored: not a 0.
        ["r2", judged, judged, trace, span, "", "", "exact_match", None, "event"],
        # Judges a call that is not here.
        ["r3", judged, judged, "f" * 32, "", "", "", "exact_match", 0.0, "event"],
        ["r4", judged, judged, trace, "", "", "", "helpful", 0.5, "event"],
    ]
    client.insert("rewards", rewards, column_names=columns)
    promotion = [judged, "model", "calculator", "candidate", "point", 2, 1, "", "d1", "someone", "trained"]
    names = ["time", "kind", "name", "alias", "action", "version", "previous_version"]
    names += ["evaluation_id", "dataset_id", "who", "why"]
    client.insert("promotions", [promotion], column_names=names)
    start = first.replace(tzinfo=UTC) - timedelta(seconds=60)
    end = last.replace(tzinfo=UTC) + timedelta(seconds=60)
    return Recorded(engine, client, start, end, spans, response_id, call["traceId"], gateway_trace)
