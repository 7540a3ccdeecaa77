"""Count and time checkpoints from QEMU's STOP and RESUME events; pure.

Used by `supervisor.seat`, one object per node and COLO session, and by `check.trial_run`; its view
goes into `model.view`.

Source: docs/qemu.md. STOP and RESUME come in pairs at every checkpoint on both sides, in QEMU 7.2,
10.0 and 11.1. The RESUME that starts COLO has no STOP of its own here, because counting begins at
the MIGRATION status ``colo``.
"""

from __future__ import annotations

from collections import deque

from coloctl.model.figures import quantile
from coloctl.model.view import CheckpointView

#: The number of checkpoints that the quantiles cover.
WINDOW = 1000


class CheckpointStats:
    """The checkpoints of one node in one COLO session; times are seconds of QEMU's own clock."""

    def __init__(self) -> None:
        self.count = 0
        self.stopped_at: float | None = None
        self._last_stop: float | None = None
        self._pauses: deque[float] = deque(maxlen=WINDOW)
        self._periods: deque[float] = deque(maxlen=WINDOW)
        self.longest_pause_s = 0.0  #: of the last `WINDOW` checkpoints
        self.held_s = 0.0  #: all pauses of this session together

    @property
    def last_period_s(self) -> float | None:
        """Time from the last STOP but one to the last; None before the second."""
        return self._periods[-1] if self._periods else None

    def stop(self, at_s: float) -> None:
        """Note that the vCPUs stopped for a checkpoint."""
        if self._last_stop is not None:
            self._periods.append(at_s - self._last_stop)
        self._last_stop = self.stopped_at = at_s

    def resume(self, at_s: float) -> float | None:
        """Count the checkpoint that ends and return its pause in seconds; None for a RESUME without
        a STOP.
        """
        if self.stopped_at is None:
            return None
        pause = at_s - self.stopped_at
        self.stopped_at = None
        self.count += 1
        self.held_s += pause
        self._pauses.append(pause)
        self.longest_pause_s = max(self._pauses)
        return pause

    def view(self, delay_ms: int) -> CheckpointView:
        """Return the figures in milliseconds."""

        def ms(seconds: float | None) -> float | None:
            return None if seconds is None else round(seconds * 1000, 1)

        return CheckpointView(
            count=self.count,
            delay_ms=delay_ms,
            last_pause_ms=ms(self._pauses[-1] if self._pauses else None),
            pause_p50_ms=ms(quantile(self._pauses, 0.5)),
            pause_p99_ms=ms(quantile(self._pauses, 0.99)),
            last_period_ms=ms(self._periods[-1] if self._periods else None),
            period_p50_ms=ms(quantile(self._periods, 0.5)),
        )
