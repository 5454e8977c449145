"""Turns a recorded call into one SERVER span and sends it to the collector, as OTLP over HTTP.

The attribute names are the contract with `build`, which joins this span to the agent's own by `gen_ai.response.id`.
No message content is in it: the agent's span has that, under the agent's own content settings.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence

import orjson
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from spanloop_collector.gateway.record import Call

_log = logging.getLogger(__name__)

SERVICE_NAME = "spanloop-gateway"
# At 100 calls/s the queue bridges a collector that is away for nearly three minutes; a span is about 3 kB.
MAX_QUEUED_SPANS = 16_384
BATCH_SPANS = 512
BATCH_DELAY_MS = 500
# How long one batch is offered again before it is given up, in seconds. The SDK's exporter alone gives up after 8 s,
# less than a collector's restart; token ids that are lost here cannot be had again.
PATIENCE_S = 120.0
FLUSH_TIMEOUT_MS = 30_000
RETRY_PAUSE_S = 1.0

_traceparent = TraceContextTextMapPropagator()


class PatientExporter(SpanExporter):
    """Offers a batch again until the collector takes it, patience ends, or the process shuts down."""

    def __init__(self, inner: SpanExporter, patience_s: float = PATIENCE_S) -> None:
        self._inner = inner
        self._patience_s = patience_s
        self._closing = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send one batch; blocks the SDK's exporting thread, never a request."""
        give_up = time.monotonic() + self._patience_s
        while True:
            result = self._inner.export(spans)
            if result is SpanExportResult.SUCCESS:
                return result
            if self._closing.is_set() or time.monotonic() > give_up:
                _log.error("%d gateway spans lost: the collector did not take them", len(spans))
                return result
            self._closing.wait(RETRY_PAUSE_S)

    def hurry(self) -> None:
        """From now on each batch is offered once."""
        self._closing.set()

    def shutdown(self) -> None:
        """Close the connection to the collector."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002  # the SDK's signature
        """Nothing is held here between two calls of `export`."""
        return True


class CallTracer:
    """Opens a span when a call comes in and closes it with everything that the call left behind."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        # Explicit limits and sampler: OTEL_* variables meant for agents must not cut or drop the gateway's stamp.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({"service.name": SERVICE_NAME}),
            span_limits=SpanLimits(
                max_span_attributes=SpanLimits.UNSET, max_span_attribute_length=SpanLimits.UNSET
            ),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=MAX_QUEUED_SPANS,
                schedule_delay_millis=BATCH_DELAY_MS,
                max_export_batch_size=BATCH_SPANS,
            )
        )
        self._tracer = self._provider.get_tracer("spanloop.gateway")

    @classmethod
    def to_collector(cls, otlp_http: str, token: str | None) -> CallTracer:
        """Send to `otlp_http` (base URL, without /v1/traces); `token` goes along as a bearer token."""
        return cls(
            PatientExporter(
                OTLPSpanExporter(
                    endpoint=otlp_http.rstrip("/") + "/v1/traces",
                    headers={"authorization": f"Bearer {token}"} if token else None,
                )
            )
        )

    def start(self, call: Call, headers: Mapping[str, str]) -> Span:
        """Open the span under the caller's `traceparent`, where the request has one."""
        parent = headers.get("traceparent")
        carrier = {"traceparent": parent, "tracestate": headers.get("tracestate", "")} if parent else {}
        return self._tracer.start_span(
            f"chat {call.requested_model}",
            context=_traceparent.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=call.start_ns,
        )

    @staticmethod
    def headers_of(span: Span) -> dict[str, str]:
        """`traceparent` for the back end, so that its own spans hang below the gateway's."""
        carrier: dict[str, str] = {}
        _traceparent.inject(carrier, context=set_span_in_context(span))
        return carrier

    @staticmethod
    def end(span: Span, call: Call) -> None:
        """Write the call's attributes and close the span."""
        span.set_attributes(attributes_of(call))
        if call.error is not None:
            span.set_status(Status(StatusCode.ERROR, call.error))
        span.end(call.end_ns or None)

    def flush(self) -> bool:
        """Send what is queued now; False: not all of it went out in time."""
        return self._provider.force_flush(FLUSH_TIMEOUT_MS)

    def shutdown(self) -> None:
        """Send what is queued (a collector that is away is tried once more for each batch), then close."""
        if isinstance(self._exporter, PatientExporter):
            self._exporter.hurry()
        self._provider.shutdown()


_REQUEST_ATTRIBUTES = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}


def attributes_of(call: Call) -> dict[str, AttributeValue]:
    """The gateway's stamp (`spanloop.*`, strings) beside the attributes of the GenAI semantic conventions."""
    choices = [choice for _, choice in sorted(call.choices.items())]
    found: dict[str, AttributeValue | None] = {
        "spanloop.gateway": "true",
        "spanloop.model.alias": call.requested_model,
        "spanloop.model.version": call.version,
        "spanloop.error": call.error,
        "error.type": call.error_type,
        "http.response.status_code": call.status or None,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": call.sent_model or call.requested_model,
        "gen_ai.request.stream": True if call.stream else None,
        "gen_ai.response.model": call.response_model,
        "gen_ai.response.id": call.response_id,
        "gen_ai.response.finish_reasons": [c.finish_reason for c in choices if c.finish_reason] or None,
    }
    for parameter, value in call.sampling.items():
        found[_REQUEST_ATTRIBUTES[parameter]] = value
    input_tokens, output_tokens = call.input_tokens, call.output_tokens
    if call.prompt_token_ids is not None:
        found["spanloop.prompt_token_ids"] = _json(call.prompt_token_ids)
        input_tokens = len(call.prompt_token_ids) if input_tokens is None else input_tokens
    if any(choice.token_ids for choice in choices):
        found["spanloop.completion_token_ids"] = _json([choice.token_ids for choice in choices])
        if output_tokens is None:
            output_tokens = sum(len(choice.token_ids) for choice in choices)
        if call.aligned:
            found["spanloop.completion_logprobs"] = _json([choice.logprobs for choice in choices])
        else:
            # Never guessed: ids without their own log-probabilities are worth more than a shifted pairing.
            _log.warning("response %s: token ids and log-probabilities differ in number", call.response_id)
    found["gen_ai.usage.input_tokens"] = input_tokens
    found["gen_ai.usage.output_tokens"] = output_tokens
    return {key: value for key, value in found.items() if value is not None}


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
