"""Turns a recorded call into one SERVER span of OTLP.

The attribute names are the contract with `build`, which joins this span to the agent's own by `gen_ai.response.id`.
No message content is in it: the agent's span has that, under the agent's own content settings.

The bytes are made here and not by OpenTelemetry's SDK, whose span costs 0.2 ms of the 0.9 ms that a call took.
"""

from __future__ import annotations

import logging
import math
import random
import re
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from spanloop_collector.gateway.privacy import OPEN, Privacy
from spanloop_collector.gateway.record import Call, Choice
from spanloop_collector.gateway.sending import Sender
from spanloop_exporter.spooling.encoding import attribute_fields
from spanloop_store.otlp.wire import field

_log = logging.getLogger(__name__)

SERVICE_NAME: Final = "spanloop-gateway"
SCOPE: Final = "spanloop.gateway"
_KIND_SERVER: Final = b"\x30\x02"
_STATUS_ERROR: Final = b"\x18\x02"
# trace-context, section 3.2.2; unknown later versions may go on behind the flags, version 00 may not.
_TRACEPARENT: Final = re.compile(
    r"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?"
)
_FIXED64: Final = struct.Struct("<Q").pack
_MAX_TRACESTATE_CHARS: Final = 512
# Of a name, an id, a reason, each of which a client or a back end makes as long as it likes.
MAX_TEXT_CHARS: Final = 1000
# Half of what the collector takes as one request; the tokens of a longer one are left off.
MAX_SPAN_BYTES: Final = 32 << 20
_ids: Final = random.SystemRandom()  # seeds the generator below once a process; nothing secret hangs on ids
_random: Final = random.Random(_ids.getrandbits(256))  # noqa: S311  # ids must differ, no more


class Span(NamedTuple):
    """Identity of one call's span."""

    trace_id: int
    span_id: int
    parent_id: int  # 0: it is a root
    tracestate: str

    @property
    def traceparent(self) -> str:
        """For the back end, so that its own spans hang below the gateway's."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"

    def headers(self) -> dict[str, str]:
        """`traceparent`, and `tracestate` where the caller sent one."""
        found = {"traceparent": self.traceparent}
        if self.tracestate:
            found["tracestate"] = self.tracestate
        return found


class CallTracer:
    """Opens a span when a call comes in, and queues it when the call has left everything behind.

    Args:
        sender: takes the spans; it is started with the first one.
    """

    def __init__(self, sender: Sender) -> None:
        self.sender = sender

    @classmethod
    def to_collector(cls, otlp_http: str, token: str | None, privacy: Privacy = OPEN) -> CallTracer:
        """Send to `otlp_http` (base URL, without /v1/traces); `token` goes along as a bearer token."""
        resource = {"service.name": SERVICE_NAME, "telemetry.sdk.language": "python"}
        prefix = field(0x0A, attribute_fields(0x0A, resource))
        scope = field(0x0A, field(0x0A, SCOPE.encode()))
        return cls(Sender(otlp_http.rstrip("/") + "/v1/traces", token, prefix, scope, privacy))

    @staticmethod
    def start(headers: Mapping[str, str]) -> Span:
        """A span under the caller's `traceparent`, where the request has one."""
        match = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        if match is not None:
            trace_id, parent_id = int(match[1], 16), int(match[2], 16)
            if trace_id and parent_id:
                state = headers.get("tracestate", "")
                return Span(
                    trace_id, _new(64), parent_id, state if len(state) <= _MAX_TRACESTATE_CHARS else ""
                )
        return Span(_new(128), _new(64), 0, "")

    def end(self, span: Span, call: Call, *, secret: bool = False) -> None:
        """Queue the finished span. Raises nothing: the answer is with the client already.

        Args:
            span: its identity.
            call: everything else.
            secret: what was said holds what redaction takes out, and token ids would say it again.
        """
        try:
            encoded = _encoded(span, call, attributes_of(call, secret=secret))
            if len(encoded) > MAX_SPAN_BYTES:
                _log.warning("response %s: %d bytes of tokens are left off", call.response_id, len(encoded))
                encoded = _encoded(span, call, attributes_of(call, tokens=False))
            self.sender.put(encoded)
        except (TypeError, ValueError, OverflowError):
            _log.exception("the span of response %s cannot be written", call.response_id)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Send what is queued now; False: not all of it went out in time. Blocks."""
        return self.sender.flush(timeout_s)

    def shutdown(self) -> None:
        """Send what is queued (each batch is tried once more, within `sending.CLOSING_S`), then end. Blocks."""
        self.sender.shutdown()


def _new(bits: int) -> int:
    return _random.getrandbits(bits) or 1


def _encoded(span: Span, call: Call, attributes: Mapping[str, Any]) -> bytes:
    """The bytes of trace.proto's Span."""
    name = f"{call.operation} {call.requested_model}"[:MAX_TEXT_CHARS].encode("utf-8", "replace")
    parts = [b"\x0a\x10", span.trace_id.to_bytes(16, "big"), b"\x12\x08", span.span_id.to_bytes(8, "big")]
    if span.tracestate:
        parts.append(field(0x1A, span.tracestate.encode("utf-8", "replace")))
    if span.parent_id:
        parts += (b"\x22\x08", span.parent_id.to_bytes(8, "big"))
    parts += (field(0x2A, name), _KIND_SERVER)
    parts += (b"\x39", _FIXED64(call.start_ns), b"\x41", _FIXED64(call.end_ns or time.time_ns()))
    parts.append(attribute_fields(0x4A, attributes))
    if call.error is not None:
        parts.append(field(0x7A, field(0x12, call.error.encode("utf-8", "replace")) + _STATUS_ERROR))
    return b"".join(parts)


def attributes_of(call: Call, *, secret: bool = False, tokens: bool = True) -> dict[str, Any]:
    """The gateway's stamp (`spanloop.*`, strings) beside the attributes of the GenAI semantic conventions.

    Args:
        call: what is known of it.
        secret: tokens are left off, since they would say what redaction takes out.
        tokens: False: they are left off for another reason.
    """
    choices = [choice for _, choice in sorted(call.choices.items())]
    reasons = [(choice.finish_reason or "")[:MAX_TEXT_CHARS] for choice in choices]
    input_tokens, output_tokens = call.input_tokens, call.output_tokens
    if call.prompt_token_ids is not None and input_tokens is None:
        input_tokens = len(call.prompt_token_ids)
    if any(choice.token_ids for choice in choices) and output_tokens is None:
        output_tokens = sum(len(choice.token_ids) for choice in choices)
    found: dict[str, Any] = {
        "spanloop.gateway": "true",
        "spanloop.model.alias": call.requested_model,
        "spanloop.model.version": call.version,
        "spanloop.model.canary": None if call.canary is None else str(call.canary).lower(),
        "spanloop.prompt.version": call.prompt.version if call.prompt else None,
        "spanloop.prompt.requested": call.prompt.requested if call.prompt else None,
        "spanloop.prompt.skipped": call.prompt.skipped if call.prompt else None,
        "spanloop.error": call.error,
        "spanloop.retries": str(call.retries) if call.retries else None,
        "spanloop.redacted": "true" if secret else None,
        "error.type": call.error_type,
        "http.response.status_code": call.status or None,
        "gen_ai.operation.name": call.operation,
        "gen_ai.request.model": call.sent_model or call.requested_model,
        "gen_ai.request.stream": True if call.stream else None,
        "gen_ai.response.model": call.response_model,
        "gen_ai.response.id": call.response_id,
        "gen_ai.response.finish_reasons": reasons if any(reasons) else None,  # "": one that was cut
        "gen_ai.usage.input_tokens": input_tokens,
        "gen_ai.usage.output_tokens": output_tokens,
        **call.sampling,
    }
    kept = {
        key: value[:MAX_TEXT_CHARS] if isinstance(value, str) else value
        for key, value in found.items()
        if value is not None
    }
    return kept if secret or not tokens else kept | _tokens(call, choices)


def _tokens(call: Call, choices: Sequence[Choice]) -> dict[str, str]:
    found: dict[str, str | None] = {}
    if call.prompt_token_ids is not None:
        found["spanloop.prompt_token_ids"] = _json(call, call.prompt_token_ids, [call.prompt_token_ids])
    if any(choice.token_ids for choice in choices):
        ids = [choice.token_ids for choice in choices]
        found["spanloop.completion_token_ids"] = _json(call, ids, ids)
        if found["spanloop.completion_token_ids"] is not None:
            found["spanloop.completion_logprobs"] = _logprobs(call, choices)
    return {key: value for key, value in found.items() if value is not None}


def _json(call: Call, value: object, lists: Iterable[list[int]]) -> str | None:
    """Token ids as text; None where a back end has put something else in their place, which may be message text."""
    if all(set(map(type, ids)) <= {int} for ids in lists):
        try:
            return orjson.dumps(value).decode()
        except TypeError:  # more than 64 bits
            pass
    _log.warning("response %s: its token ids are none", call.response_id)
    return None


def _logprobs(call: Call, choices: Sequence[Choice]) -> str | None:
    if not call.aligned:
        # Never guessed: ids without their own log-probabilities are worth more than a shifted pairing.
        _log.warning("response %s: token ids and log-probabilities differ in number", call.response_id)
        return None
    try:
        logprobs = [list(map(float, choice.logprobs)) for choice in choices]
    except OverflowError:
        logprobs = [[math.inf]]
    if not all(math.isfinite(sum(of_one)) for of_one in logprobs):
        _log.warning("response %s: infinite log-probabilities, JSON has no word for them", call.response_id)
        return None
    return orjson.dumps(logprobs).decode()
