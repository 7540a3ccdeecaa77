"""Measure the round trip to an agent, and convert times of its clock into those of this process.

Made by `host.remote.contact` for each session. The client sends its time with each beat. The agent
sends the newest of these times back, with the seconds for which it held it.

Invariant: no difference is taken between two clocks but by the offset, and no converted time is
later than now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

#: Times that were sent and not answered; only the oldest counts.
_PENDING_MAX = 256
#: Two clocks drift apart by so much at most: quartz is good to 100 parts in a million.
_DRIFT = 1e-4


class Echo:
    """Round trip and offset of one session with an agent."""

    def __init__(self) -> None:
        self.round_trip_s = 0.0  #: of the newest echo; 0 before the first
        self._pending: deque[float] = deque(maxlen=_PENDING_MAX)
        self._offset_s: float | None = None  #: the agent's clock less ours
        self._error_s = 0.0  #: how wrong the offset may be at the moment it was measured
        self._measured_s = 0.0

    def send(self, now_s: float) -> dict[str, Any]:
        """Return the document of a beat, and note that it was sent."""
        if len(self._pending) < _PENDING_MAX:
            self._pending.append(now_s)
        return {"t": now_s}

    def receive(self, document: Mapping[str, Any], now_s: float) -> None:
        """Note the echo in a beat of the agent, if it has one."""
        sent_s, held_s, theirs_s = (document.get(key) for key in ("echo", "held", "t"))
        if not isinstance(theirs_s, int | float):
            return
        if isinstance(sent_s, int | float) and isinstance(held_s, int | float):
            while self._pending and self._pending[0] <= sent_s:
                self._pending.popleft()
            self.round_trip_s = max(0.0, now_s - sent_s - held_s)
            self._measure(theirs_s, self.round_trip_s, now_s)

    def _measure(self, theirs_s: float, round_trip_s: float, now_s: float) -> None:
        """Take the offset over where it is better than the known one has become by now."""
        aged = self._error_s + (now_s - self._measured_s) * _DRIFT
        if self._offset_s is None or round_trip_s / 2 <= aged:
            self._offset_s = theirs_s + round_trip_s / 2 - now_s
            self._error_s, self._measured_s = round_trip_s / 2, now_s

    def delay_s(self, now_s: float) -> float:
        """Return how late the agent's reports may be: the round trip, or a longer silence."""
        waiting_s = now_s - self._pending[0] if self._pending else 0.0
        return max(self.round_trip_s, waiting_s)

    def ours(self, theirs_s: float, now_s: float) -> float:
        """Convert a time of the agent's clock; without an echo so far it is now."""
        if self._offset_s is None:
            return now_s
        return min(now_s, theirs_s - self._offset_s)
