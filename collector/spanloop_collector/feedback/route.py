"""`POST /v1/feedback`: judgements as JSON, through the same log as OTLP; an answer for each, and durable when answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import grpc
from aiohttp import web

from spanloop_collector.answers import Refusal, refusal_for
from spanloop_collector.feedback.judgement import (
    MAX_KEY,
    Feedback,
    FeedbackRefused,
    Problem,
    export_request,
    load_json,
    read_feedback,
    shown,
)
from spanloop_collector.feedback.openapi import document
from spanloop_collector.intake import Intake
from spanloop_collector.space import InFlight
from spanloop_store.expiry import KEEP_MORE, Expiry
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

PATH: Final = "/v1/feedback"
MAX_ITEMS: Final = 1000
MAX_BODY_BYTES: Final = 8 << 20  # with room for a thousand comments of some length
KEY_HEADER: Final = "Idempotency-Key"
_TOO_LARGE: Final = "send fewer items at once"
_KINDS: Final = ("application/json",)
ReadBody = Callable[..., Awaitable[bytes]]  # of http_receiver: the request, room for it, kinds, limit, advice


class _Batch(NamedTuple):
    """What a body held, item by item."""

    items: list[Feedback | FeedbackRefused]
    single: bool


class FeedbackRoute:
    """The route and its description.

    Args:
        intake: where judgements go.
        read_body: checks the token, reads and unpacks the body.
        max_body_bytes: of the whole receiver.
    """

    def __init__(self, intake: Intake, read_body: ReadBody, max_body_bytes: int) -> None:
        self._intake = intake
        self._read_body = read_body
        self._limit = min(MAX_BODY_BYTES, max_body_bytes)

    def add_to(self, app: web.Application) -> None:
        """Adds the routes."""
        app.router.add_post(PATH, self.post)
        app.router.add_get("/openapi.json", self.openapi)

    async def openapi(self, request: web.Request) -> web.Response:
        """The description of this port, for programs."""
        del request
        return web.json_response(document(PATH, MAX_ITEMS, KEY_HEADER))

    async def post(self, request: web.Request) -> web.Response:
        """Takes one judgement or a list; an item that is refused stops no other."""
        try:
            with self._intake.space.in_flight() as room:
                answer = await self._post(request, room)
        except FeedbackRefused as error:
            answer = _refused(422, *error.problems)
        except Exception as error:
            answer = self._failed(request, error)
        self._intake.statistics.add(
            "spanloop_requests_total",
            signal="feedback",
            protocol="http",
            outcome={200: "ok", 207: "partial", 429: "busy", 503: "busy"}.get(answer.status, "refused"),
        )
        return answer

    async def _post(self, request: web.Request, room: InFlight) -> web.Response:
        body = await self._read_body(request, room, kinds=_KINDS, limit=self._limit, advice=_TOO_LARGE)
        key = _key_of(request)
        expiry = self._intake.expiry(Signal.LOGS)
        batch = await self._intake.parse_json(_read, body, key, time.time_ns(), expiry)
        taken = [item for item in batch.items if isinstance(item, Feedback)]
        status = "stored"
        if taken:
            done = await self._intake.take(Signal.LOGS, export_request(taken))
            if done.checked.rejected:
                # Which items the log has is not known here; sent again they are the same facts, each with its answer.
                raise Refusal(503, grpc.StatusCode.UNAVAILABLE, "the store's retention was just changed", 1)
            status = "repeated" if done.repeated else status
        answers = [
            {"id": item.id, "status": status} if isinstance(item, Feedback) else _told(item.problems)
            for item in batch.items
        ]
        if batch.single:
            return web.json_response(answers[0], status=200 if taken else 422)
        refused = len(answers) - len(taken)
        return web.json_response(
            {"items": answers, "taken": len(taken), "refused": refused},
            status=200 if not refused else 207 if taken else 422,
        )

    def _failed(self, request: web.Request, error: Exception) -> web.Response:
        refusal = refusal_for(error)
        if refusal.http == 500:
            log.exception("%s %s failed", request.method, request.path)
        answer = _refused(refusal.http, Problem("", refusal.message))
        if refusal.retry_after_s is not None:
            answer.headers["Retry-After"] = str(refusal.retry_after_s)
        if refusal.http == 401:
            answer.headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, 11.6.1
        if refusal.http == 408:
            answer.force_close()
        return answer


def _key_of(request: web.Request) -> str:
    key = request.headers.get(KEY_HEADER, "")
    if KEY_HEADER in request.headers and not 0 < len(key) <= MAX_KEY:
        raise FeedbackRefused(Problem(KEY_HEADER, f"has {len(key)} characters; 1 to {MAX_KEY} are allowed"))
    if not key.isprintable() or not key.isascii():
        raise FeedbackRefused(Problem(KEY_HEADER, "holds other than printable ASCII characters"))
    return key


def _read(body: bytes, key: str, now_ns: int, expiry: Expiry | None) -> _Batch:
    """The judgements of a body, each checked.

    Raises:
        Refusal: it is no JSON.
        FeedbackRefused: it is neither an object nor a list nor {"items": [...]}.
    """
    try:
        found: Any = load_json(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, grpc.StatusCode.INVALID_ARGUMENT, f"the body is no JSON: {error}") from error
    single = isinstance(found, dict) and "items" not in found
    given = [found] if single else found
    if isinstance(found, dict) and not single:
        if unknown := sorted(found.keys() - {"items"}):
            raise FeedbackRefused(Problem(shown(unknown[0]), "stands beside `items`, which says it all"))
        given = found["items"]
    if not isinstance(given, list):
        raise FeedbackRefused(Problem("items", 'send one object, a list of them, or {"items": [...]}'))
    if not 1 <= len(given) <= MAX_ITEMS:
        raise FeedbackRefused(Problem("items", f"has {len(given)}; 1 to {MAX_ITEMS} are allowed"))
    seen: dict[str, int] = {}
    items: list[Feedback | FeedbackRefused] = []
    for place, fields in enumerate(given):
        try:
            # One request, one key: its items are told apart by their place.
            item = read_feedback(fields, now_ns=now_ns, key=key if single or not key else f"{key}/{place}")
            if expiry is not None and (why := expiry.why(item.time_ns)):
                raise FeedbackRefused(Problem("time", f"has {why}; {KEEP_MORE}"))
            named = bool(key) or fields.get("id") is not None
            if (first := seen.setdefault(item.id, place)) != place and named:
                # Of two with one id the newer counts, and these have one time.
                raise FeedbackRefused(Problem("id", f"is that of item {first}, too"))
            items.append(item)
        except FeedbackRefused as error:
            items.append(error)
    return _Batch(items, single)


def _refused(status: int, *problems: Problem) -> web.Response:
    return web.json_response(_told(problems), status=status)


def _told(problems: tuple[Problem, ...]) -> dict[str, Any]:
    return {"status": "refused", "errors": [vars(problem) for problem in problems]}
