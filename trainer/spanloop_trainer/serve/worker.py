"""The one thread that runs models: steps every engine that has rows, and hands results back to the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from spanloop_trainer.errors import ServeError
from spanloop_trainer.serve.engine import Engine, Row
from spanloop_trainer.serve.models import LoadedModel
from spanloop_trainer.serve.sampling import Sampling

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Token:
    """One sampled token of a stream."""

    choice: int  # which of n answers
    token: int
    logprob: float


class Worker:
    """Owns the model thread. `generate` and `stream` are called on the event loop."""

    def __init__(self) -> None:
        self._engines: dict[LoadedModel, Engine] = {}
        self._wake = threading.Condition()
        self._stopping = False
        self._arrivals: list[tuple[LoadedModel, Row]] = []
        self._thread = threading.Thread(target=self._run, name="spanloop-model", daemon=True)

    def start(self) -> None:
        """Start the thread that runs the models."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step under way; rows still running end with an error."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    async def generate(self, model: LoadedModel, prompt: list[int], samplings: list[Sampling]) -> list[Row]:
        """Sample one answer for each of `samplings`; they share the prompt's computation where they start together.

        Raises:
            ServeError: the model failed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        left = len(samplings)

        def done(_: Row) -> None:  # in the worker thread, the only one that counts
            nonlocal left
            left -= 1
            if left == 0:
                loop.call_soon_threadsafe(_resolve, future)

        rows = [Row(prompt, sampling, done) for sampling in samplings]
        self._submit(model, rows)
        try:
            await future
        except asyncio.CancelledError:
            for row in rows:
                row.cancelled = True
            raise
        _raise_failed(rows)
        return rows

    async def stream(
        self, model: LoadedModel, prompt: list[int], samplings: list[Sampling]
    ) -> AsyncGenerator[Token | Row, None]:
        """Yield tokens as they are sampled, and each row when it has ended.

        Raises:
            ServeError: the model failed.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Token | Row] = asyncio.Queue()

        def on_token(row: Row, token: int, logprob: float) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, Token(row.sampling.index, token, logprob))

        def done(row: Row) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, row)

        rows = [Row(prompt, sampling, done, on_token) for sampling in samplings]
        self._submit(model, rows)
        left = len(rows)
        try:
            while left:
                event = await queue.get()
                if isinstance(event, Row):
                    left -= 1
                    _raise_failed([event])
                yield event
        finally:
            for row in rows:  # without effect on rows that have ended
                row.cancelled = True

    def _submit(self, model: LoadedModel, rows: list[Row]) -> None:
        with self._wake:
            if self._stopping:
                raise ServeError("the server is stopping", "send the request again in a moment")
            self._arrivals += [(model, row) for row in rows]
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._arrivals or self._engines or self._stopping):
                    self._wake.wait()
                arrivals, self._arrivals = self._arrivals, []
                stopping = self._stopping
            for model, row in arrivals:
                # An engine lives while it has rows, so that an unloaded version takes its buffers along.
                engine = self._engines.get(model) or self._engines.setdefault(model, Engine(model))
                engine.waiting.append(row)
            for model, engine in list(self._engines.items()):
                if stopping:
                    engine.fail("the server is stopping")
                else:
                    self._step(engine)
                if not engine.busy:
                    del self._engines[model]
            if stopping:
                return

    def _step(self, engine: Engine) -> None:
        try:
            engine.step()
        except Exception as error:
            # The boundary of the model code: whatever it raises ends these requests with a 500, not the thread.
            logger.exception("%s failed", engine.model.version)
            engine.fail(f"{engine.model.version} failed: {type(error).__name__}: {error}")


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _raise_failed(rows: list[Row]) -> None:
    for row in rows:
        if row.error:
            raise ServeError(row.error, "see the server's log; another version may still serve")
