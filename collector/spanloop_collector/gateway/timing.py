"""One timer for all limits of an attempt: the first byte, the pauses between bytes, the whole call."""

from __future__ import annotations

import asyncio
from typing import Final

# A timer is set anew when it would be off by more than this share of the limit: not for every token.
_SLACK: Final = 0.1


class Clock:
    """Cancels the attempt inside `scope` when a limit is reached.

    Args:
        first_byte_s: from now to the answer's first byte.
        idle_s: between two pieces, once it has begun.
        end: when the whole call must be over, in the loop's time.
    """

    def __init__(self, first_byte_s: float, idle_s: float, end: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._end = end
        self._armed = min(self._loop.time() + first_byte_s, end)
        self._heard = 0.0
        self._begun = False
        self._first_byte_s = first_byte_s
        self.scope = asyncio.timeout_at(self._armed)
        self.writing = False  # it waits for the client, and not for the back end

    def heard(self) -> None:
        """Something came."""
        self._heard = self._loop.time()
        when = min(self._heard + self._idle_s, self._end)
        if not self._begun or when - self._armed > self._idle_s * _SLACK:
            self._begun = True
            self._armed = when
            self.scope.reschedule(when)

    @property
    def phase(self) -> str:
        """Which limit was reached."""
        now = self._loop.time()
        if now >= self._end or (self._begun and now - self._heard < self._idle_s * (1 - 2 * _SLACK)):
            return "the whole call is over its limit"
        if self._begun:
            return f"nothing came for {self._idle_s:g} s in the middle of its answer"
        return f"no answer began within {self._first_byte_s:g} s"
