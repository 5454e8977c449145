"""Watches the openai client at the one place that all of its calls pass, inside whatever span an instrumentor has opened.

Wrapped are three methods of the client's base classes: `request` (a call begins; retries are inside it), `_process_response`
(the HTTP answer, with its headers) and `_process_response_data` (a parsed body, or one event of a stream). So `create`,
`parse`, `stream`, `with_raw_response` and hand-made `post` calls, sync and async, chat and Responses, Azure and every
other base URL are one case, and what the agent gets back is the client's own object, untouched. A stream is read as the
agent reads it, as far as the agent reads it.
"""

from __future__ import annotations

import copy
import functools
import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from spanloop_exporter.calls import asking, claims, tools
from spanloop_exporter.calls.record import (
    VERSION_HEADER,
    Call,
    read_chat,
    read_response,
    request_attributes,
)
from spanloop_exporter.safety import quietly

_log = logging.getLogger(__name__)

_KEY: Final = "spanloop.call"  # of an HTTP response's extensions
_READERS: Final = (("/completions", read_chat), ("/responses", read_response))
_MAX_RETREATS: Final = 2  # once for each field that may be refused by itself


class Sending:
    """One call of `request`: what is sent, and to whom.

    Attributes:
        options: what the client is given to send.
        asked: the fields in it that are ours, not the agent's.
        call: what is known of the call.
        read: takes in an answer.
        named: whether the answer's id was seen.
    """

    def __init__(self, client: Any, options: Any, path: str, read: Callable[..., None]) -> None:
        self.options = options
        self.read = read
        self.named = False
        self.call = Call()
        self._own = options
        self._path = path
        self._given_up: frozenset[str] = frozenset()
        self.asked: dict[str, Any] = {}
        extra = options.extra_json
        self.body: dict[str, Any] = {**options.json_data, **extra} if extra else options.json_data
        self._server = (str(client.base_url), str(self.body.get("model", "")))

    def ask(self) -> None:
        """Add what the user wants to have asked for."""
        fields = asking.additions(self._path, self.body, self._server)
        self.asked = {name: value for name, value in fields.items() if name not in self._given_up}
        self.options = self._own
        if self.asked:
            # A copy: the agent may send the same options again.
            self.options = copy.copy(self._own)
            self.options.extra_json = {**(self._own.extra_json or {}), **self.asked}

    def retreat(self, error: Exception) -> bool:
        """Whether to send once more, without what the server's error refuses."""
        refused = asking.refused_by(error, self.asked, self._server)
        if not refused or len(self._given_up) >= _MAX_RETREATS:
            return False
        self._given_up |= refused
        self.ask()
        return True

    def settle(self) -> None:
        """The request went through: what was given up for it need not be tried again."""
        if self.asked or self._given_up:
            asking.settled(self._server, self._given_up)
            self._given_up = frozenset()

    def drop_request(self) -> None:
        """The answer is there: what was sent, which may be large, is not held any longer than the agent holds it."""
        self.options = self._own = None
        self.body = {}


_sending: ContextVar[Sending | None] = ContextVar("spanloop_sending", default=None)


@quietly
def _begin(client: Any, options: Any) -> Sending | None:
    """Start watching, if this is a model call; emits the tool steps whose results it brings."""
    url, body = options.url, options.json_data
    if not isinstance(url, str) or not isinstance(body, dict) or options.method.lower() != "post":
        return None
    path = url.partition("?")[0]
    read = next((reader for ending, reader in _READERS if path.endswith(ending)), None)
    if read is None or not is_instrumentation_enabled():
        return None
    sending = Sending(client, options, path, read)
    sending.call.request = request_attributes(sending.body)
    reported = claims.begin(sending.call)
    tools.STEPS.results(sending.body, sending.call)
    # The span of a Responses call is made afterwards; a chat call without one is nobody's to record.
    if (reported or read is read_response) and asking.wanted():
        sending.ask()
    return sending


@quietly
def _answered(arguments: dict[str, Any]) -> None:
    sending, response = _sending.get(), arguments.get("response")
    if sending is None or response is None:
        return
    sending.settle()
    sending.call.version = response.headers.get(VERSION_HEADER, "")
    sending.drop_request()
    response.extensions[_KEY] = sending


@quietly
def _seen(arguments: dict[str, Any]) -> None:
    found = arguments["response"].extensions.get(_KEY)
    if found is None:
        return
    data = arguments.get("data")
    if isinstance(data, dict) and data.keys() == {"data", "event"}:
        data = data["data"]
    if isinstance(data, dict):
        sending: Sending = found
        call = sending.call
        call.reported.answered_ns = time.time_ns()
        sending.read(call, data)
        if sending.asked:
            asking.strip(data, sending.asked)
        if call.response_id and not sending.named:
            sending.named = True
            claims.named(call)
        if call.new_tools:
            tools.STEPS.asked(call)


def _sync_request(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def request(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        sending = _begin(self, options)
        if sending is None:
            return original(self, cast_to, options, *args, **kwargs)
        before = _sending.get()
        _sending.set(sending)
        try:
            while True:
                try:
                    return original(self, cast_to, sending.options, *args, **kwargs)
                except Exception as error:
                    if not quietly(sending.retreat)(error):
                        raise
        finally:
            _sending.set(before)  # not by a token: a coroutine may be closed in another context

    return request


def _async_request(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def request(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        sending = _begin(self, options)
        if sending is None:
            return await original(self, cast_to, options, *args, **kwargs)
        before = _sending.get()
        _sending.set(sending)
        try:
            while True:
                try:
                    return await original(self, cast_to, sending.options, *args, **kwargs)
                except Exception as error:
                    if not quietly(sending.retreat)(error):
                        raise
        finally:
            _sending.set(before)  # not by a token: a coroutine may be closed in another context

    return request


def _before(note: Callable[[dict[str, Any]], object]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A wrapper that shows a call's keyword arguments to `note` first; what it wraps may be a coroutine function."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            note(kwargs)
            return original(self, *args, **kwargs)

        return noted

    return wrap


_installed: list[tuple[type, str, Callable[..., Any]]] = []


def install(_openai: Any = None) -> None:
    """Wrap the client; runs once openai is imported. A client that is built otherwise is left alone, and that is logged."""
    if _installed:
        return
    try:
        places = _places()
    except (ImportError, AttributeError) as error:  # long ago, or another module of that name
        _log.warning("this openai client is unknown: tokens and tool steps are not recorded: %s", error)
        return
    missing = [name for cls, name, _ in places if not callable(cls.__dict__.get(name))]
    if missing:
        _log.warning(
            "this openai client has no %s: tokens and tool steps are not recorded", ", ".join(missing)
        )
        return
    for cls, name, wrap in places:
        original = cls.__dict__[name]
        _installed.append((cls, name, original))
        setattr(cls, name, wrap(original))


def _places() -> list[tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]]:
    from openai import _base_client as base

    return [
        (base.SyncAPIClient, "request", _sync_request),
        (base.AsyncAPIClient, "request", _async_request),
        (base.SyncAPIClient, "_process_response", _before(_answered)),
        (base.AsyncAPIClient, "_process_response", _before(_answered)),
        (base.BaseClient, "_process_response_data", _before(_seen)),
    ]


def uninstall() -> None:
    """Put the client's own methods back."""
    while _installed:
        cls, name, original = _installed.pop()
        setattr(cls, name, original)
