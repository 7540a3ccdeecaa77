"""Limit how often something may happen: a burst at once, then so much per second; pure.

Called by `supervisor.pacing` and `supervisor.reactor` for notes, by `control.daemon.http` for
clients and by `nbd.mend` for bytes.

Invariant: of any interval of s seconds, at most ``burst + s * per_second`` is let through.
"""

from __future__ import annotations

import math

#: Seconds of a monotonic clock are exact to about a nanosecond; a token is never lost to that.
_ROUNDING_S = 1e-6


class RateLimit:
    """A token bucket that is full at first; times are seconds of one clock, never decreasing.

    It keeps one number: the moment at which the whole burst would be free again.
    """

    def __init__(self, burst: float, per_second: float) -> None:
        self._every_s = 1 / per_second
        self._burst_s = burst * self._every_s
        self._free_at_s = -math.inf

    def ready(self, now_s: float, amount: float = 1.0) -> bool:
        """Return whether ``amount`` may be taken now."""
        after = max(self._free_at_s, now_s) + amount * self._every_s
        return after - now_s <= self._burst_s + _ROUNDING_S

    def take(self, now_s: float, amount: float = 1.0) -> bool:
        """Take ``amount`` if it may be taken now; returns whether it was."""
        if not self.ready(now_s, amount):
            return False
        self.wait_s(now_s, amount)
        return True

    def wait_s(self, now_s: float, amount: float = 1.0) -> float:
        """Take ``amount`` in any case; returns how many seconds to wait before it is allowed.

        Capacity that is not used is saved up to the burst, and no further.
        """
        self._free_at_s = max(self._free_at_s, now_s) + amount * self._every_s
        return max(0.0, self._free_at_s - now_s - self._burst_s)
