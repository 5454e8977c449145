"""Requests made from an OpenAPI document by schemathesis, as it describes them and against it, then some of them broken further."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bench.fuzz.mutate import mutated
from bench.fuzz.served import Reply, Wire

TOKEN = "fuzz-token"
_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
_PIECES = (
    b'"model"',
    b'"stream":1',
    b"[" * 200,
    b'{"a":' * 120,
    b"\\ud800",
    b"1e999",
    b"-0",
    b"NaN",
    b"\xef\xbb\xbf",
)
_ODD_HEADERS: tuple[tuple[str, bytes], ...] = (
    ("content-encoding", b"gzip"),
    ("content-encoding", b"br"),
    ("content-encoding", b"\xff"),
    ("content-type", b"text/plain"),
    ("content-type", b"application/json; charset=utf-16"),
    ("content-type", b"multipart/form-data"),
    ("content-type", b"\xff\xfe"),
    ("accept", b"text/event-stream;q=nan"),
    ("accept-encoding", b"zstd;q=-1"),
    ("authorization", b"Basic \xff"),
    ("authorization", b"Bearer "),
    ("x-spanloop-token", b"\xc3\x28"),
    ("x-spanloop-session-id", b"\xff" * 40),
    ("baggage", b"session.id=%ff%fe;p=1,,=,session.id="),
    ("tracestate", b"=" * 600),
    ("origin", b"http://elsewhere.example"),
    ("expect", b"100-continue"),
    ("range", b"bytes=0-0"),
    ("idempotency-key", b"\xff"),
    ("idempotency-key", b"k" * 5000),
    ("cookie", b"a=b; " * 100),
    ("connection", b"upgrade"),
    ("upgrade", b"websocket"),
)


@dataclass(frozen=True)
class Sent:
    """One request.

    Args:
        case: as schemathesis made it.
        fits: whether the document allows it.
        token: whether it shows the token.
        body: sent instead of the case's own; None: that one.
        odd: headers besides, as raw bytes.
    """

    case: Any
    fits: bool
    token: bool
    body: bytes | None
    odd: tuple[tuple[str, bytes], ...]

    @property
    def plain(self) -> bool:
        """Whether it is sent just as it was made."""
        return self.body is None and not self.odd


class Described:
    """Sends what is drawn, and looks at the answers; whoever serves the document says what else must hold.

    Args:
        url: where it is served.
        document: the OpenAPI document.
        weights: operation ("POST /v1/x") → how often it is drawn; others are drawn once.
    """

    def __init__(self, url: str, document: dict[str, Any], weights: dict[str, int]) -> None:
        self.url = url
        self.answers: Counter[str] = Counter()
        self._schema = schemathesis.openapi.from_dict(document)
        self._weights = weights
        self._session = requests.Session()
        self._session.trust_env = False
        self._wire = Wire(url)
        self.number = 0

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()
        self._wire.close()

    def requests(self) -> st.SearchStrategy[Sent]:
        """Requests of every operation: half of them fit, a third of all are broken further."""
        made: list[tuple[bool, Any]] = []
        for found in self._schema.get_all_operations():
            operation = found.ok()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                weight = self._weights.get(operation.label, 1)
                if mode is GenerationMode.NEGATIVE and not (operation.body or operation.headers):
                    continue  # there is nothing to get wrong
                strategy = operation.as_strategy(generation_mode=mode)
                made += [(mode is GenerationMode.POSITIVE, strategy)] * weight

        @st.composite
        def sent(draw: st.DrawFn) -> Sent:
            fits, strategy = draw(st.sampled_from(made))
            case = draw(strategy)
            # Hypothesis favours what is first: that is the common case.
            token = draw(st.integers(0, 9)) < 9
            body, odd = None, ()
            if draw(st.integers(0, 2)) == 2:
                raw = _body(case)
                if raw and draw(st.booleans()):
                    body = draw(mutated((raw,), 4, _PIECES))
                else:
                    odd = tuple(draw(st.lists(st.sampled_from(_ODD_HEADERS), min_size=1, max_size=2)))
            return Sent(case, fits, token, body, odd)

        return sent()

    def check(self, sent: Sent) -> None:
        """Sends one request.

        Raises:
            AssertionError: an answer that may not be.
        """
        self.number += 1
        trace_id = f"{self.number:032x}"
        own = {"traceparent": f"00-{trace_id}-{1:016x}-01"}
        own["Authorization"] = f"Bearer {TOKEN}" if sent.token else "Bearer wrong"
        try:
            asked = requests.Request(
                **sent.case.as_transport_kwargs(base_url=self.url, headers=own)
            ).prepare()
        except (UnicodeError, requests.RequestException):
            self.answers["not to be sent"] += 1
            return
        asked.headers["traceparent"] = f"00-{trace_id}-{1:016x}-01"
        asked.headers["Authorization"] = f"Bearer {TOKEN}" if sent.token else "Bearer wrong"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reply = self._plainly(sent, asked) if sent.plain else self._oddly(sent, asked)
        self.answers[str(reply.status)] += 1
        shown = f"{sent.case.method} {sent.case.formatted_path} {sent}: {reply}"
        assert reply.status < 500, f"failed inside: {shown}"
        if not sent.token and not sent.odd:
            assert reply.status in (401, *self.open_statuses(sent)), f"answered without the token: {shown}"
        self.judge(sent, reply, trace_id, shown)

    def open_statuses(self, sent: Sent) -> tuple[int, ...]:  # noqa: ARG002  # what a subclass needs
        """What may be answered to who shows no token, beside 401."""
        return ()

    def judge(self, sent: Sent, reply: Reply, trace_id: str, shown: str) -> None:
        """What else must hold for an answer; noted for `settle`."""
        raise NotImplementedError

    def settle(self) -> None:
        """Compares the tables with what was answered."""
        raise NotImplementedError

    def _plainly(self, sent: Sent, asked: requests.PreparedRequest) -> Reply:
        answer = self._session.send(asked, timeout=60, allow_redirects=False)
        if sent.token:
            try:
                sent.case.validate_response(answer, checks=_CHECKS)
            except FailureGroup as group:
                raise AssertionError(f"{group.exceptions}: {sent}: {answer.text[:2000]}") from None
        headers = {name.lower(): text for name, text in answer.headers.items()}
        return Reply(answer.status_code, headers, answer.content)

    def _oddly(self, sent: Sent, asked: requests.PreparedRequest) -> Reply:
        odd = {name for name, _ in sent.odd}
        skipped = {*odd, "content-length", "transfer-encoding"}
        headers: list[tuple[bytes | str, bytes | str]] = [
            (name, _bytes(text)) for name, text in asked.headers.items() if _text(name).lower() not in skipped
        ]
        body = sent.body if sent.body is not None else _bytes(asked.body or b"")
        reply = self._wire.send(str(asked.method), asked.path_url, body, [*headers, *sent.odd])
        # A request that is none may be answered by a closed connection.
        return reply


def _body(case: Any) -> bytes:
    """The body as it would be sent; nothing where it cannot be."""
    try:
        asked = requests.Request(**case.as_transport_kwargs(base_url="http://x")).prepare()
    except (UnicodeError, requests.RequestException):
        return b""
    return _bytes(asked.body or b"")


def _bytes(text: Any) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)


def _text(name: Any) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else str(name)
