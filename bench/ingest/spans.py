"""The spans of the benchmark: model calls with a dozen attributes, one of them a long prompt."""

from __future__ import annotations

import os
import random

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SPANS_A_REQUEST = 64  # what an SDK's batch of long prompts comes to
_START = 1_795_208_087_000_000_000  # ns
_RUN_BYTES = 8  # of a trace id; the same in all spans of a request


def make_requests(
    spans: int, size: int, resource_attributes: dict[str, str] | None = None
) -> tuple[list[bytes], list[bytes]]:
    """Export requests, and the first half of the trace ids of each.

    Args:
        spans: in all requests.
        size: bytes of one span, about.
        resource_attributes: besides the service's name.
    """
    source = random.Random(1)
    words = [f"{source.getrandbits(30):x}" for _ in range(5000)]
    requests, runs = [], []
    for begin in range(0, spans, SPANS_A_REQUEST):
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        for key, text in {"service.name": "bench", **(resource_attributes or {})}.items():
            resource.resource.attributes.add(key=key).value.string_value = text
        scope = resource.scope_spans.add()
        scope.scope.name = "opentelemetry.instrumentation.openai.v1"
        run = os.urandom(_RUN_BYTES)
        for _ in range(min(SPANS_A_REQUEST, spans - begin)):
            start = _START + source.randrange(10**12)
            span = scope.spans.add(
                trace_id=run + os.urandom(8),
                span_id=os.urandom(8),
                name="openai.chat",
                kind=3,
                start_time_unix_nano=start,
                end_time_unix_nano=start + source.randrange(10**9),
            )
            for key, text in (
                ("operation.name", "chat"),
                ("provider.name", "openai"),
                ("request.model", "m"),
            ):
                span.attributes.add(key=f"gen_ai.{key}").value.string_value = text
            for key in ("usage.input_tokens", "usage.output_tokens", "request.max_tokens"):
                span.attributes.add(key=f"gen_ai.{key}").value.int_value = source.randrange(5000)
            span.attributes.add(key="gen_ai.request.temperature").value.double_value = source.random()
            span.attributes.add(key="gen_ai.request.top_p").value.double_value = source.random()
            span.attributes.add(key="gen_ai.request.stream").value.bool_value = False
            reasons = span.attributes.add(key="gen_ai.response.finish_reasons").value.array_value
            reasons.values.add().string_value = "stop"
            span.attributes.add(key="gen_ai.response.id").value.string_value = f"chatcmpl-{start:x}"
            text = " ".join(source.choice(words) for _ in range((size - span.ByteSize()) // 9))
            messages = f'[{{"role":"user","parts":[{{"type":"text","content":"{text}"}}]}}]'
            span.attributes.add(key="gen_ai.input.messages").value.string_value = messages
        requests.append(request.SerializeToString())
        runs.append(run)
    return requests, runs


def fresh(request: bytes, run: bytes) -> bytes:
    """The same request with trace ids that nobody has seen: a collector takes a repeated request for a resend."""
    return request.replace(run, os.urandom(_RUN_BYTES))
