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

# At 100 calls/s the queue bridges a collector that is away for nearly three minutes; a span is about 3 kB, one of a long
# conversation with its token ids a hundred times that.
MAX_QUEUED: Final = 16_384
MAX_QUEUED_BYTES: Final = 256 << 20
BATCH_SPANS: Final = 512
BATCH_BYTES: Final = 8 << 20  # the collector refuses a request of more than 64 MiB, and all its spans with it
BATCH_DELAY_S: Final = 0.5
RETRY_PAUSE_S: Final = 1.0
TIMEOUT_S: Final = 10.0
CLOSING_S: Final = 20.0  # after that no batch is offered any more: a collector may hang, and a stop must end


class Sender:
    """Sends spans, in order, from one thread; a batch is offered until it is taken.

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
        self._bytes = 0  # in it
        self._changed = threading.Condition()
        self._urgent = False  # somebody waits: send at once
        self._closing = False
        self._deadline = float("inf")  # of closing
        self._thread: threading.Thread | None = None
        self._numbers = count()
        self._put = 0  # spans that were ever queued,
        self._settled = 0  # … and that were taken or given up
        self._flushed = threading.Event()
        self.lost = 0  # spans that the collector never took
        self._complained = False  # that the collector takes nothing,
        self._full = False  # … and that spans were lost for it

    @property
    def waiting(self) -> int:
        """Spans that the collector does not have yet."""
        return self._put - self._settled

    def put(self, span: bytes) -> None:
        """Queue one span; beyond MAX_QUEUED or MAX_QUEUED_BYTES the oldest goes."""
        if self._thread is None:
            self._start()
        with self._changed:
            self._queue.append(span)
            self._bytes += len(span)
            self._put += 1
            while len(self._queue) > MAX_QUEUED or self._bytes > MAX_QUEUED_BYTES:
                self._bytes -= len(self._queue.popleft())
                self._settled += 1
                self.lost += 1
                if not self._full:
                    self._full = True
                    _log.error(
                        "the queue of gateway spans is full: the oldest are lost until the collector takes some"
                    )
            if len(self._queue) >= BATCH_SPANS or self._bytes >= BATCH_BYTES:
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
        """Offer each batch that is left once, for CLOSING_S at most, then end the thread."""
        with self._changed:
            self._closing = True
            self._deadline = time.monotonic() + CLOSING_S
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
                if (
                    not (self._urgent or self._closing)
                    and len(self._queue) < BATCH_SPANS
                    and self._bytes < BATCH_BYTES
                ):
                    self._changed.wait(BATCH_DELAY_S)
                if not self._queue:
                    self._urgent = False
                    if self._closing:
                        return
                    continue
                batch = self._next()
            try:
                self._send(batch)
            except Exception:  # the thread must live: without it nothing is sent any more
                _log.exception("sending %d spans failed in a way that we did not foresee", len(batch))
                self.lost += len(batch)
            with self._changed:
                self._settled += len(batch)
                self._changed.notify_all()

    def _next(self) -> list[bytes]:
        """The oldest spans, as many as one request takes, and at least one."""
        batch: list[bytes] = []
        size = 0
        while self._queue and len(batch) < BATCH_SPANS:
            size += len(self._queue[0])
            if batch and size > BATCH_BYTES:
                break
            batch.append(self._queue.popleft())
        self._bytes -= sum(map(len, batch))
        return batch

    def _send(self, spans: list[bytes]) -> None:
        scope = field(0x12, self._scope + b"".join(field(0x12, span) for span in spans))
        request = self._privacy.request(field(0x0A, self._resource + scope))
        batch = Batch(
            f"gateway-{next(self._numbers)}", Signal.TRACES, frame(request), None, len(spans), again=False
        )
        while True:
            if time.monotonic() > self._deadline:
                self._lose(len(spans), "it took too long to stop")
                return
            answer = self._target.send(batch)
            if answer.outcome is Outcome.DELIVERED:
                self._complained = self._full = False
                if answer.rejected:
                    self._lose(answer.rejected, answer.reason)
                return
            if answer.outcome is not Outcome.LATER or self._closing:
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
