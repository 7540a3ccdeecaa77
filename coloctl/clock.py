"""Time as an argument: every wait takes a `Clock` or a `Deadline`, never the wall clock."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds, and a way to let some of them pass."""

    def now(self) -> float:
        """Monotonic seconds; only differences mean anything."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns once ``seconds`` have passed on this clock."""
        ...


class MonotonicClock:
    """The clock of the machine."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class FakeClock:
    """A clock that moves only when a test calls `advance`."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake = asyncio.Event()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), wake))
        await wake.wait()

    def advance(self, seconds: float) -> None:
        """Lets ``seconds`` pass; sleepers whose time has come run at the next loop turn."""
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            heapq.heappop(self._sleepers)[2].set()


CLOCK: Clock = MonotonicClock()


class Deadline:
    """A point in time that every step of one act shares."""

    def __init__(self, seconds: float, clock: Clock = CLOCK) -> None:
        self._clock = clock
        self.seconds = seconds
        self.at = clock.now() + seconds

    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.at - self._clock.now())

    @property
    def expired(self) -> bool:
        return self._clock.now() >= self.at

    def at_most(self, seconds: float) -> float:
        """Seconds for one step: what it may take, or what is left if that is less."""
        return min(seconds, self.remaining())

    def within(self, seconds: float) -> Deadline:
        """Make the deadline of a part that must not take longer than ``seconds``, nor than this."""
        return Deadline(self.at_most(seconds), self._clock)

    def renew(self) -> None:
        """Begin anew: something moved, so the whole time is there again."""
        self.at = self._clock.now() + self.seconds
