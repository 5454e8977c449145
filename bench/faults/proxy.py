"""A TCP relay on loopback that can be cut: no connections, or requests that arrive and answers that do not."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections.abc import Callable


class Line(enum.Enum):
    """What the relay does."""

    OPEN = "open"
    CUT = "cut"  # every connection is closed at once
    MUTE = "mute"  # requests arrive, and the connection is closed when the answer comes


class Proxy:
    """Relays to 127.0.0.1:`port`; runs in a thread of its own."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._line = Line.OPEN
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.muted = 0  # answers that were swallowed
        self.port = 0

    def __enter__(self) -> Proxy:
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, "127.0.0.1", 0), self._loop
        ).result()
        self.port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.set(Line.CUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def set(self, line: Line) -> None:
        """Changes the line; what is open is closed, so that no old connection lives through it."""

        def change() -> None:
            self._line = line
            for writer in self._writers:
                writer.close()

        self._call(change)

    def _call(self, work: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._line is Line.CUT:
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(
                self._copy(reader, far_writer, answers=False), self._copy(far_reader, writer, answers=True)
            )
        finally:
            self._writers -= {writer, far_writer}

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if answers and self._line is Line.MUTE:
                    self.muted += 1
                    break
                writer.write(data)
                await writer.drain()
        writer.close()
