"""Spool, shipper and memory of one process, behind every exporter of it; and what a fork does to them."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Final

from spanloop_exporter.spooling import bounds
from spanloop_exporter.spooling.batches import Target
from spanloop_exporter.spooling.late import late
from spanloop_exporter.spooling.memory import MemoryQueue
from spanloop_exporter.spooling.redacting import Redaction
from spanloop_exporter.spooling.runs import runs_in
from spanloop_exporter.spooling.settings import Settings, read_settings
from spanloop_exporter.spooling.shipping import Shipper
from spanloop_exporter.spooling.spool import Spool
from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

# At the end of a process, in seconds: enough for a collector that answers; one that does not is not waited for at all,
# unless it hangs.
SHUTDOWN_S: Final = 3.0

_pipelines: dict[Settings, Pipeline] = {}
_making = threading.RLock()


def _after_fork_in_child() -> None:
    global _making
    _making = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def get_pipeline(settings: Settings | None = None) -> Pipeline:
    """The pipeline of these settings; exporters of spans and of log records share one.

    Args:
        settings: None: as the environment says.
    """
    settings = settings or read_settings()
    with _making:
        if settings not in _pipelines:
            _pipelines[settings] = Pipeline(settings)
        return _pipelines[settings]


class Pipeline:
    """The way of encoded requests out of this process. Nothing in here raises into the agent."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redaction = Redaction(settings.folder)
        self.memory = MemoryQueue()
        self.spool = (
            None
            if settings.folder is None
            else Spool(
                settings.folder,
                max_bytes=settings.max_bytes,
                max_age_s=settings.max_age_s,
                overflow=self._overflow,
            )
        )

        def make_target(signal: Signal) -> Target:
            target: Target = late("spanloop_exporter.spooling.targets").make_target(settings, signal)
            return target

        self.shipper = Shipper(self.spool, self.memory, make_target, settings.delay_s)
        self._told = False
        self._tried = False  # to send everything at the end, since something was written last
        self._process = os.getpid()
        reinitialise = weakref.WeakMethod(self._after_fork_in_child)

        def after_in_child() -> None:
            if (method := reinitialise()) is not None:
                method()

        os.register_at_fork(after_in_child=after_in_child)

    def write(self, signal: Signal, payloads: Sequence[bytes]) -> bool:
        """Takes export requests of one span or log record each, redacts them; on return they survive this process.

        Where no disk takes them, they wait in memory.

        Returns:
            Whether all of them were taken; False: one could not be redacted, and so does not leave.
        """
        self._notice_fork()
        passed = self.redaction(signal, payloads)
        whole = len(passed) == len(payloads)
        if not passed:
            return whole
        payloads = passed
        self._tried = False
        full = False
        if self.spool is None:
            self._remember(signal, payloads)
        else:
            full = self.spool.append(signal, payloads)
        self.shipper.wake(full=full)
        return whole

    def send_leftovers(self) -> None:
        """Starts to send what dead processes left, if they left anything; else nothing is started."""
        try:
            if self.spool is not None and runs_in(self.spool.folder):
                self._tried = False
                self.shipper.wake()
        except OSError as error:
            log.debug("the spool cannot be looked through: %s", error)

    def flush(self, timeout_s: float, signal: Signal) -> bool:
        """Whether the target has, within this time, everything of a signal that was written before the call."""
        self._notice_fork()
        return self.shipper.flush(timeout_s, signal)

    def shutdown(self, timeout_s: float = SHUTDOWN_S) -> None:
        """A short flush; what does not arrive in time stays in the spool for the next process.

        Tried once, however many exporters share the pipeline: a target that hangs is not waited for again. What is written
        later goes into the spool all the same.
        """
        self._notice_fork()
        if self._tried:
            return
        self._tried = True
        give_up = time.monotonic() + timeout_s
        self.shipper.flush(timeout_s, leftovers=True)
        left = 0 if self.spool is None else self.spool.pending
        if self.shipper.stop(max(0.0, give_up - time.monotonic())) and self.spool is not None:
            self.spool.close()
        if left:
            log.warning(
                "%d spans stay in %s; the next process sends them, and `spanloop import` does",
                left,
                self.settings.folder,
            )
        lost = len(self.memory)
        if lost:
            if self.spool is not None:
                self.spool.books.dropped(bounds.MEMORY, lost, "memory")
            else:
                log.warning("%d spans are lost: %s", lost, bounds.MEMORY)

    def _overflow(self, signal: Signal, payloads: Sequence[bytes], error: OSError) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "the spool cannot be written (%s): spans are sent from memory until it can; SPANLOOP_SPOOL names"
                " another folder",
                error,
            )
        self._remember(signal, payloads)

    def _remember(self, signal: Signal, payloads: Sequence[bytes]) -> None:
        dropped = self.memory.put(signal, payloads)
        if not dropped:
            return
        if self.spool is not None:
            self.spool.books.dropped(bounds.MEMORY, dropped, "memory")
        elif not self._told:
            self._told = True
            log.warning("spans are dropped: %s", bounds.MEMORY)

    def _notice_fork(self) -> None:
        # Servers that embed Python fork without telling it, unless they are set up to.
        if self._process != os.getpid():
            self._after_fork_in_child()

    def _after_fork_in_child(self) -> None:
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        if self.spool is not None:
            self.spool.after_fork_in_child()
        self.memory.clear()
        self.shipper.after_fork_in_child()
