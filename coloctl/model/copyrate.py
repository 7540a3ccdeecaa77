"""Compute how fast a copy goes, and how long the rest of it takes.

`supervisor.acting` feeds a `CopyRate` with what an act reports, and asks it for each status; the
figures are those of `model.view.ActProgress`. Pure; time is an argument, in monotonic seconds.

Invariant: a copy that stands still shows a rate that falls to 0 within the window, and no time
left. No figure is shown of less than a second.
"""

from __future__ import annotations

from collections import deque

#: The rate is that of so many seconds: long enough to be steady, short enough to show a change.
WINDOW_S = 10.0
#: Reports are kept at this distance, so that the window holds a bounded number of them.
APART_S = 0.25
#: A shorter time shows no rate: the first bytes of a copy go into buffers.
LEAST_S = 1.0


class CopyRate:
    """The bytes that one step of an act has copied, by time."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()
        self._done = 0

    def at(self, now: float, done: int) -> None:
        """Take the report that ``done`` bytes are copied; fewer than before begin another copy."""
        if done < self._done:
            self._marks.clear()
        if not self._marks or now - self._marks[-1][0] >= APART_S:
            self._marks.append((now, done))
        self._done = done
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Keep one mark from before the window, from which the rate is computed."""
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW_S:
            self._marks.popleft()

    def bytes_per_s(self, now: float) -> float | None:
        """Return the rate of the last `WINDOW_S`; None where less than `LEAST_S` are known."""
        self._forget(now)
        if not self._marks:
            return None
        began, done = self._marks[0]
        return (self._done - done) / (now - began) if now - began >= LEAST_S else None

    def left_s(self, now: float, total: int) -> float | None:
        """Return how long the rest of ``total`` bytes takes at this rate; None: not known."""
        rate = self.bytes_per_s(now)
        return max(0, total - self._done) / rate if rate else None
