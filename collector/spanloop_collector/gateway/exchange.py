"""The exchange with back ends: attempts until one answers, and its answer on to the client, chunk by chunk.

An attempt is repeated only while nothing has reached the client.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from spanloop_collector.gateway.backends import Backend
from spanloop_collector.gateway.errors import ClientError, too_slow, unreachable
from spanloop_collector.gateway.jsonedit import dump, load
from spanloop_collector.gateway.metrics import Metrics
from spanloop_collector.gateway.planning import Plan, named_in
from spanloop_collector.gateway.proxy import abort, answer_headers
from spanloop_collector.gateway.reading import EventReader, TooLong, decoded
from spanloop_collector.gateway.record import Call, error_text
from spanloop_collector.gateway.settings import GatewaySettings
from spanloop_collector.gateway.timing import Clock

_log = logging.getLogger(__name__)

# What proxies and servers answer that cannot work now; another back end may.
_BACKEND_IS_OUT: Final = frozenset({502, 503, 504})
# Before the same back end is asked again; doubled each time.
_FIRST_PAUSE_S: Final = 0.1
_MAX_ANSWER_BYTES: Final = 1 << 30
# A client that takes nothing more must not keep its place when its stream has broken.
_LAST_WORDS_S: Final = 5.0
_EVENT_STREAM: Final = "text/event-stream"


class _Again(Exception):
    """The attempt failed before anything reached the client."""

    def __init__(self, error: ClientError | None) -> None:
        super().__init__()
        self.error = (
            error  # for the client, where there is no other attempt; None: at once, on the same back end
        )


@dataclass(slots=True)
class _Attempt:
    """What one attempt works with."""

    request: web.Request
    call: Call
    plan: Plan
    backend: Backend
    clock: Clock
    last: bool  # nobody else could answer: an error is passed on as it is
    began: float  # when the call came, in the loop's time
    # (endpoint, field) that an earlier refusal of this back end may have been about
    suspected: set[tuple[str, str]]
    response: web.StreamResponse | None = None  # what has begun to reach the client
    reader: EventReader | None = None  # of its stream


class Exchange:
    """Serves plans; one for the life of the gateway."""

    def __init__(
        self, session: aiohttp.ClientSession, settings: GatewaySettings, metrics: Metrics, *, keep_texts: bool
    ) -> None:
        self._session = session
        self._settings = settings
        self._metrics = metrics
        self._keep_texts = keep_texts  # of answers with token ids: redaction will ask for them

    async def run(
        self, request: web.Request, call: Call, plan: Plan, headers: CIMultiDict[str]
    ) -> web.StreamResponse:
        """Have the call answered, and give the answer to the client.

        Args:
            request: the client's.
            call: what is noted on the way.
            plan: where it goes.
            headers: of the request to the back end.

        Raises:
            ClientError: no back end answered; nothing has reached the client.
        """
        settings, pool = self._settings, plan.pool
        loop = asyncio.get_running_loop()
        began = loop.time()
        tried: list[Backend] = []
        suspected: dict[Backend, set[tuple[str, str]]] = {}
        while True:
            backend = await pool.take(
                tried, settings.max_in_flight, settings.max_waiting, settings.max_wait_s
            )
            may_repeat = len(tried) < settings.retries
            last = not (may_repeat and pool.others([*tried, backend]))
            clock = Clock(
                settings.first_byte_timeout_s, settings.idle_timeout_s, began + settings.total_timeout_s
            )
            attempt = _Attempt(
                request, call, plan, backend, clock, last, began, suspected.setdefault(backend, set())
            )
            try:
                return await self._attempt(attempt, headers)
            except _Again as again:
                failed = again.error
            finally:
                pool.release(backend)
            call.status = 0
            if failed is not None:
                if not may_repeat:
                    raise failed
                tried.append(backend)
                if not pool.others(tried):
                    await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (len(tried) - 1))
            call.retries += 1
            self._metrics.retries[pool.label] += 1

    async def _attempt(self, attempt: _Attempt, headers: CIMultiDict[str]) -> web.StreamResponse:
        backend, call, clock = attempt.backend, attempt.call, attempt.clock
        owner = await backend.tokens_from(self._session, headers.get("authorization"))
        raw, added = attempt.plan.for_backend(owner, backend.refused | attempt.suspected)
        try:
            async with (
                clock.scope,
                self._session.post(
                    backend.endpoint(attempt.plan.api.path),
                    headers=backend.headers(headers),
                    data=raw,
                    allow_redirects=False,
                ) as answer,
            ):
                if answer.status in _BACKEND_IS_OUT:
                    backend.failed(f"it answered {answer.status}", said_so=True)
                    if not attempt.last:
                        raise _Again(
                            unreachable(backend.label, backend.shown, f"it answered {answer.status}")
                        )
                elif answer.status < 500:
                    backend.answered()
                if answer.status < 400:
                    backend.refused |= attempt.suspected
                call.status = answer.status
                if answer.status < 400 and answer.content_type == _EVENT_STREAM:
                    return await self._stream(attempt, answer, added, owner)
                return await self._whole(attempt, answer, added, owner)
        except (aiohttp.ClientError, TimeoutError, TooLong) as error:
            late = clock.scope.expired()
            if clock.writing:  # it is the client's connection that failed, not the back end's
                if not late:
                    raise ConnectionResetError("the client is gone") from error
                call.fail("client_stalled", "the client took nothing more of its answer")
                abort(attempt.request)
                assert attempt.response is not None, "it was being written"
                return attempt.response
            reason = clock.phase if late else str(error) or type(error).__name__
            backend.failed(reason)
            make = too_slow if late else unreachable
            failure = make(backend.label, backend.shown, reason)
            if attempt.response is not None:
                return await _broken_off(attempt, attempt.response, failure)
            if late:
                raise failure from error
            raise _Again(failure) from error

    async def _whole(
        self, attempt: _Attempt, answer: aiohttp.ClientResponse, added: Mapping[str, Any], owner: str
    ) -> web.StreamResponse:
        call, api = attempt.call, attempt.plan.api
        attempt.clock.heard()
        self._first_byte(attempt)
        raw = await answer.read()
        text = decoded(raw, answer.headers.get("content-encoding", ""), _MAX_ANSWER_BYTES)
        document = None if text is None else load(text)
        headers = answer_headers(answer.headers)
        if answer.status >= 400:
            said = document["error"] if isinstance(document, dict) and "error" in document else None
            message = error_text(said if said is not None else (text or raw[:1000]).decode(errors="replace"))
            if named := named_in(api, answer.status, f"{message} {said}".lower(), added):
                attempt.suspected |= named
                raise _Again(None)
            call.fail(str(answer.status), message)
        elif not isinstance(document, dict):
            call.fail("unreadable_answer", f"upstream {attempt.backend.label} answered no JSON object")
        elif added and text is not None:
            raw, document = self._without(attempt, text, document, added, owner)
            headers.popall("content-encoding", None)
        headers.update(attempt.plan.headers)
        response = web.Response(status=answer.status, reason=answer.reason, headers=headers, body=raw)
        attempt.response, attempt.clock.writing = response, True
        try:
            # Sent before it is read for the record: the client need not wait for that.
            await response.prepare(attempt.request)
            await response.write_eof()
            attempt.clock.writing = False
        finally:
            if answer.status < 400 and isinstance(document, dict):
                api.absorb(call, document, text=self._keep_texts)
        return response

    def _without(
        self,
        attempt: _Attempt,
        text: bytes,
        document: dict[str, Any],
        added: Mapping[str, Any],
        owner: str,
    ) -> tuple[bytes, dict[str, Any] | None]:
        """The answer less what was added to it; None as document: it has been noted."""
        api = attempt.plan.api
        passed = api.stripped(text, document, added, owner)
        if passed is not None:
            return passed, document
        api.absorb(attempt.call, document, text=self._keep_texts)
        api.strip(document, added, owner)
        return dump(document), None

    async def _stream(
        self, attempt: _Attempt, answer: aiohttp.ClientResponse, added: Mapping[str, Any], owner: str
    ) -> web.StreamResponse:
        call, clock = attempt.call, attempt.clock
        # Before the first piece nothing is sent, so that a back end that dies now can be replaced.
        chunk = await answer.content.readany()
        clock.heard()
        self._first_byte(attempt)
        headers = answer_headers(answer.headers)
        headers.update(attempt.plan.headers)
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        every = attempt.plan.api.gives_tokens(attempt.plan.body)
        keep = self._keep_texts and (every or bool(added))
        reader = EventReader(attempt.plan.api, call, added, owner, every=every, text=keep)
        encoded = "content-encoding" in answer.headers  # against our wish, and so nothing can be read in it
        attempt.response = response
        attempt.reader = None if encoded else reader
        try:
            clock.writing = True
            await response.prepare(attempt.request)
            clock.writing = False
            while chunk:
                passed = chunk if encoded else reader.feed(chunk)
                if passed:
                    clock.writing = True
                    await response.write(passed)
                    clock.writing = False
                reader.settle()
                chunk = await answer.content.readany()
                clock.heard()
            clock.writing = True
            if rest := reader.finish():
                await response.write(rest)
            reader.settle()
            if not (reader.done or call.finished or encoded or call.error):
                call.fail("truncated", "the upstream's stream ended without [DONE] or a finish reason")
            await response.write_eof()
            clock.writing = False
        finally:
            reader.settle()  # what had come when it was cut
        return response

    def _first_byte(self, attempt: _Attempt) -> None:
        waited_s = asyncio.get_running_loop().time() - attempt.began
        self._metrics.first_byte(attempt.plan.pool.label, waited_s)


async def _broken_off(
    attempt: _Attempt, response: web.StreamResponse, failure: ClientError
) -> web.StreamResponse:
    """Tell the client inside the stream (its status line has gone out long ago), then cut the connection."""
    attempt.call.fail(failure.code, failure.message)
    # In the middle of an event whatever is said would be taken for its rest.
    if attempt.reader is not None and not attempt.reader.halfway:
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await response.write(b"data: " + failure.body() + b"\n\n")
                await response.write_eof()
        except TimeoutError:
            _log.info("the client took no word of it: %s", failure.message)
    abort(attempt.request)
    return response
