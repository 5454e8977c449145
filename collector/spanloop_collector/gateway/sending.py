"""Spans on their way to the collector: a bounded queue, and a thread that sends batches until they are taken."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from itertools import count
from typing import Final

from spanloop_collector.gateway.privacy import OPEN, Privacy
from spanloop_exporter.spooling.batches import Batch, Outcome
from spanloop_exporter.spooling.settings import Endpoint
from spanloop_exporter.spooling.targets import OtlpTarget
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.signals import Signal
from spanloop_store.otlp.wire import field

_log = logging.getLogger(__name__)

# At 100 calls/s the queue bridges a collector that is away for nearly three minutes; a span is about 3 kB.
MAX_QUEUED: Final = 16_384
BATCH_SPANS: Final = 512
BATCH_DELAY_S: Final = 0.5
# How long one batch is offered again before it is given up. Token ids that are lost here cannot be had again; a collector's
# restart takes seconds.
PATIENCE_S: Final = 120.0
RETRY_PAUSE_S: Final = 1.0
TIMEOUT_S: Final = 10.0


class Sender:
    """Sends spans, in order, from one thread.

    Args:
        url: of the traces endpoint.
        token: sent as a bearer token; None: none.
        resource: all of a ResourceSpans but its scope_spans.
        scope: all of a ScopeSpans but its spans.
        privacy: what redacts them.
    """

    def __init__(
        self, url: str, token: str | None, resource: bytes, scope: bytes, privacy: Privacy = OPEN
    ) -> None:
        self._privacy = privacy
        headers = (("authorization", f"Bearer {token}"),) if token else ()
        self._target = OtlpTarget(Endpoint(url, headers, TIMEOUT_S))
        self._resource, self._scope = resource, scope
        self._queue: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._urgent = False  # somebody waits: send at once
        self._closing = False
        self._thread: threading.Thread | None = None
        self._numbers = count()
        self._put = 0  # spans that were ever queued,
        self._settled = 0  # … and that were taken or given up
        self._flushed = threading.Event()
        self.lost = 0  # spans that the collector never took
        self._complained = False

    @property
    def waiting(self) -> int:
        """Spans that the collector does not have yet."""
        return self._put - self._settled

    def put(self, span: bytes) -> None:
        """Queue one span; beyond MAX_QUEUED the oldest goes."""
        if self._thread is None:
            self._start()
        self._queue.append(span)
        self._put += 1
        if len(self._queue) >= BATCH_SPANS:
            with self._changed:
                if len(self._queue) > MAX_QUEUED:
                    self._queue.popleft()
                    self._settled += 1
                    self._lose(1, "its queue is full")
                self._changed.notify()

    def flush(self, timeout_s: float) -> bool:
        """Whether everything queued before this call has gone out within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            goal, lost = self._put, self.lost
            self._urgent = True
            self._changed.notify_all()
            while self._settled < goal:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return self.lost == lost

    def shutdown(self) -> None:
        """Offer each batch that is left once, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="spanloop-spans", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                # One wait a batch, not one a span: spans that come meanwhile do not wake this thread.
                if not (self._urgent or self._closing) and len(self._queue) < BATCH_SPANS:
                    self._changed.wait(BATCH_DELAY_S)
                if not self._queue:
                    self._urgent = False
                    if self._closing:
                        return
                    continue
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_SPANS))]
            try:
                self._send(batch)
            except Exception:  # the thread must live: without it nothing is sent any more
                _log.exception("sending %d spans failed in a way that we did not foresee", len(batch))
                self.lost += len(batch)
            with self._changed:
                self._settled += len(batch)
                self._changed.notify_all()

    def _send(self, spans: list[bytes]) -> None:
        scope = field(0x12, self._scope + b"".join(field(0x12, span) for span in spans))
        request = self._privacy.request(field(0x0A, self._resource + scope))
        batch = Batch(
            f"gateway-{next(self._numbers)}", Signal.TRACES, frame(request), None, len(spans), again=False
        )
        give_up = time.monotonic() + PATIENCE_S
        while True:
            answer = self._target.send(batch)
            if answer.outcome is Outcome.DELIVERED:
                self._complained = False
                if answer.rejected:
                    self._lose(answer.rejected, answer.reason)
                return
            if answer.outcome is not Outcome.LATER or self._closing or time.monotonic() > give_up:
                self._lose(len(spans), answer.reason)
                return
            if not self._complained:
                self._complained = True
                _log.warning("the collector takes no spans now (%s); they wait", answer.reason)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=answer.retry_after_s or RETRY_PAUSE_S)

    def _lose(self, spans: int, reason: str) -> None:
        self.lost += spans
        _log.error("%d gateway spans lost: the collector did not take them (%s)", spans, reason)
