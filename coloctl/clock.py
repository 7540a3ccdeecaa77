"""Pass time as an argument: every wait takes a `Clock` or a `Deadline`, never the wall clock.

Used by every layer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Monotonic seconds, and a way to let some of them pass."""

    def now(self) -> float:
        """Return monotonic seconds; only differences have a meaning."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait until ``seconds`` have passed on this clock."""
        ...


class MonotonicClock:
    """The clock of the machine."""

    def now(self) -> float:
        """See `Clock.now`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(max(0.0, seconds))


CLOCK: Clock = MonotonicClock()


class Deadline:
    """A point in time that every step of one act shares.

    Note the difference: a `Deadline` is the end of an act; a wait of a caller is a number of
    seconds.
    """

    def __init__(self, seconds: float, clock: Clock = CLOCK) -> None:
        self._clock = clock
        self.seconds = seconds
        self.at = clock.now() + seconds

    def remaining(self) -> float:
        """Return the seconds left, never below zero."""
        return max(0.0, self.at - self._clock.now())

    @property
    def expired(self) -> bool:
        return self._clock.now() >= self.at

    def at_most(self, seconds: float) -> float:
        """Return the seconds for one step: what it may take, or what is left if that is less."""
        return min(seconds, self.remaining())

    def within(self, seconds: float) -> Deadline:
        """Make the deadline of a part that must not take longer than ``seconds``, nor than this."""
        return Deadline(self.at_most(seconds), self._clock)

    async def poll(
        self, ask: Callable[[], Awaitable[T]], every_s: float, done: Callable[[T], object] = bool
    ) -> T:
        """Ask until ``done`` accepts the answer or no time is left; return the last answer.

        For what sends no event when it changes. It is asked at once, and once more at the end.
        """
        while not done(answer := await ask()) and not self.expired:
            await self._clock.sleep(every_s)
        return answer

    def poll_blocking(
        self, ask: Callable[[], T], every_s: float, done: Callable[[T], object] = bool
    ) -> T:
        """Do what `poll` does where no event loop runs, on the clock of the machine."""
        while not done(answer := ask()) and not self.expired:
            time.sleep(every_s)
        return answer

    def renew(self) -> None:
        """Begin again: something moved, so the whole time is available again."""
        self.at = self._clock.now() + self.seconds
