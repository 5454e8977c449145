"""`POST /v1/chat/completions`: alias to version, the question to the back end, the answer back, one span per call."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from opentelemetry.trace import Span

from spanloop_collector.gateway.errors import ClientError, no_upstream, unreachable
from spanloop_collector.gateway.proxy import abort, forwarded, secrets
from spanloop_collector.gateway.record import Additions, Call, absorb, error_text, sampling_of
from spanloop_collector.gateway.spans import CallTracer
from spanloop_collector.gateway.sse import DONE, EventSplitter, data_of, with_data
from spanloop_collector.gateway.upstreams import Upstream, Upstreams
from spanloop_collector.gateway.versions import Versions

VERSION_HEADER = "x-spanloop-model-version"
# The answer is read on its way, so it must not be compressed between back end and gateway (both usually sit
# on one machine); the gateway's own trace headers replace the client's.
_NOT_FORWARDED = frozenset({"accept-encoding", "traceparent", "tracestate"})
_NOTHING: frozenset[str] = frozenset()
NOTHING_ADDED = Additions()


@dataclass(frozen=True)
class Plan:
    """One request, resolved: it keeps these until its last byte, whatever the registry says meanwhile."""

    upstream: Upstream
    body: bytes
    additions: Additions
    headers: dict[str, str]  # for the answer


class Chat:
    """Handles chat calls; one for the life of the gateway."""

    def __init__(
        self,
        upstreams: Upstreams,
        token: str | None,
        versions: Versions,
        tracer: CallTracer,
        session: aiohttp.ClientSession,
    ) -> None:
        self._upstreams = upstreams
        self._versions = versions
        self._tracer = tracer
        self._session = session
        self._token = token

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve and record one call; a client that goes away cancels the back end's work too."""
        start_ns = time.time_ns()
        raw = await request.read()
        body = parse_body(raw)
        call = Call(requested_model=str(body["model"]), start_ns=start_ns)
        call.sampling, call.stream = sampling_of(body), bool(body.get("stream"))
        span = self._tracer.start(call, request.headers)
        try:
            plan = await self._plan(request, call, body, raw)
            return await self._exchange(request, call, plan, span)
        except ClientError as error:
            call.status = call.status or error.status
            call.fail(error.code, error.message)
            return error.response()
        except asyncio.CancelledError:
            call.fail("client_disconnected", "the client went away before the answer was complete")
            raise
        except ConnectionError:
            # Writing to a client that has closed its end; aiohttp closes ours.
            call.fail("client_disconnected", "the client went away before the answer was complete")
            raise
        except Exception as error:
            call.fail(type(error).__name__, str(error))
            raise
        finally:
            call.end_ns = time.time_ns()
            self._tracer.end(span, call)

    async def _plan(self, request: web.Request, call: Call, body: dict[str, Any], raw: bytes) -> Plan:
        call.version = await self._versions.resolve(call.requested_model)
        call.sent_model = call.version or call.requested_model
        upstream = self._upstreams.find(call.sent_model)
        if upstream is None:
            raise no_upstream(f"model {call.requested_model!r}")
        additions = NOTHING_ADDED
        private = secrets(request.headers, self._token)
        authorization = None if "authorization" in private else request.headers.get("authorization")
        if await upstream.gives_token_ids(self._session, authorization):
            additions = Additions(
                token_ids=not body.get("return_token_ids"), logprobs=not body.get("logprobs")
            )
        if additions or call.sent_model != call.requested_model:
            body["model"] = call.sent_model
            if additions.token_ids:
                body["return_token_ids"] = True
            if additions.logprobs:
                body["logprobs"] = True
            raw = _dump(body)
        return Plan(upstream, raw, additions, {VERSION_HEADER: call.version} if call.version else {})

    async def _exchange(self, request: web.Request, call: Call, plan: Plan, span: Span) -> web.StreamResponse:
        headers = forwarded(request.headers, drop=_NOT_FORWARDED | secrets(request.headers, self._token))
        headers["accept-encoding"] = "identity"
        headers.update(self._tracer.headers_of(span))
        try:
            answer = await self._session.post(
                plan.upstream.url("/chat/completions"), headers=headers, data=plan.body, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise unreachable(plan.upstream.label, plan.upstream.base, error) from error
        async with answer:
            call.status = answer.status
            if answer.status < 400 and answer.content_type == "text/event-stream":
                return await self._stream(request, call, plan, answer)
            return await self._whole(call, plan, answer)

    async def _whole(self, call: Call, plan: Plan, answer: aiohttp.ClientResponse) -> web.Response:
        try:
            raw = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise unreachable(plan.upstream.label, plan.upstream.base, error) from error
        document = _load(raw)
        if answer.status >= 400:
            message = (
                document["error"]
                if isinstance(document, dict) and "error" in document
                else raw.decode(errors="replace")
            )
            call.fail(str(answer.status), error_text(message))
        elif isinstance(document, dict):
            absorb(call, document, plan.additions)
            if plan.additions:
                raw = _dump(document)
        else:
            call.fail("unreadable_answer", f"upstream {plan.upstream.label} answered no JSON object")
        headers = forwarded(answer.headers, drop=_NOTHING)
        headers.update(plan.headers)
        return web.Response(status=answer.status, reason=answer.reason, headers=headers, body=raw)

    async def _stream(
        self, request: web.Request, call: Call, plan: Plan, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        headers = forwarded(answer.headers, drop=_NOTHING)
        headers.update(plan.headers)
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        await response.prepare(request)
        splitter, done = EventSplitter(), False
        try:
            async for chunk in answer.content.iter_any():
                kept = [_event(call, plan.additions, event) for event in splitter.feed(chunk)]
                done = done or any(data == DONE for _, data in kept)
                if not plan.additions:
                    await response.write(chunk)
                elif kept:
                    await response.write(b"".join(event for event, _ in kept))
        except (aiohttp.ClientError, TimeoutError) as error:
            return await _broken_off(request, response, call, plan, error)
        rest = splitter.rest()
        if rest:
            event, data = _event(call, plan.additions, rest)
            done = done or data == DONE
            if plan.additions:
                await response.write(event)
        if not done and not any(choice.finish_reason for choice in call.choices.values()):
            call.fail("truncated", "the upstream's stream ended without [DONE] or a finish reason")
        await response.write_eof()
        return response


async def _broken_off(
    request: web.Request, response: web.StreamResponse, call: Call, plan: Plan, error: BaseException
) -> web.StreamResponse:
    """Tell the client inside the stream (its status line has gone out long ago), then cut the connection."""
    failure = unreachable(plan.upstream.label, plan.upstream.base, error)
    call.fail(failure.code, failure.message)
    await response.write(b"data: " + failure.body() + b"\n\n")
    await response.write_eof()
    abort(request)
    return response


def _event(call: Call, additions: Additions, event: bytes) -> tuple[bytes, bytes | None]:
    """Record one event; gives what the client shall see, and the event's data."""
    data = data_of(event)
    if data is None or data == DONE:
        return event, data
    document = _load(data)
    if not isinstance(document, dict):
        return event, data
    absorb(call, document, additions)
    return (with_data(event, _dump(document)) if additions else event), data


def parse_body(raw: bytes) -> dict[str, Any]:
    """The request as an object with a model's name in it.

    Raises:
        ClientError: 400, in OpenAI's form.
    """
    body = _load(raw)
    if not isinstance(body, dict):
        raise ClientError(
            400, "invalid_request_error", "the request body is not a JSON object", "invalid_json"
        )
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise ClientError(
            400,
            "invalid_request_error",
            'the request names no model. Next: set "model", for example to "NAME@candidate".',
            "model_missing",
        )
    return body


def _load(raw: bytes) -> Any:
    """JSON, or None where it is none. The slower parser takes what orjson refuses (NaN, integers over 64 bits)."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            return json.loads(raw)
        except ValueError:
            return None


def _dump(document: Any) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError:  # an integer over 64 bits
        return json.dumps(document).encode()
