"""Convert moments and latencies to places in a picture; pure.

Used by `chaos.report.chart` and `chaos.report.lanes`; `duration` also by `chaos.report.sections`
and `chaos.run.junit`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: The gutter with the names of the lanes, and the whole width of the picture, in pixels.
LEFT, WIDTH = 200.0, 1200.0


@dataclass(frozen=True)
class Window:
    """A stretch of time drawn from `LEFT` to `WIDTH`; ``zero_s`` is shown as 0.

    All are monotonic seconds.
    """

    from_s: float
    to_s: float
    zero_s: float

    @property
    def px_per_s(self) -> float:
        return (WIDTH - LEFT) / max(self.to_s - self.from_s, 1e-6)

    def x(self, at_s: float) -> float:
        """Convert a moment to its place; moments outside lie on the border."""
        return LEFT + (min(max(at_s, self.from_s), self.to_s) - self.from_s) * self.px_per_s

    def span(self, from_s: float, to_s: float, least: float = 0.0) -> tuple[float, float]:
        """Convert a stretch of time to its place and its width, ``least`` pixels at least."""
        x = self.x(from_s)
        return x, max(self.x(to_s) - x, least)

    def holds(self, at_s: float) -> bool:
        """Return whether the moment is in the window."""
        return self.from_s <= at_s <= self.to_s

    def meets(self, from_s: float, to_s: float) -> bool:
        """Return whether any of that stretch is in the window."""
        return from_s <= self.to_s and to_s >= self.from_s

    def ticks(self) -> list[tuple[float, str]]:
        """Choose about ten moments for lines, with their names."""
        step = round_step((self.to_s - self.from_s) / 10)
        first = math.ceil((self.from_s - self.zero_s) / step)
        last = math.floor((self.to_s - self.zero_s) / step)
        milli = step < 1 and self.to_s - self.from_s < 3
        return [
            (self.zero_s + n * step, _moment(n * step, milli=milli)) for n in range(first, last + 1)
        ]


def _moment(at_s: float, *, milli: bool) -> str:
    return f"{at_s * 1000:.0f} ms".replace("-", "−") if milli else f"{at_s:g} s".replace("-", "−")


def round_step(least: float) -> float:
    """Return the smallest of ... 0.1, 0.2, 0.5, 1, 2, 5, 10, ... that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(max(least, 1e-6)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * 0.999)


@dataclass(frozen=True)
class Latency:
    """Milliseconds on a logarithmic scale, from ``low`` at the bottom to ``high`` at the top."""

    low: float
    high: float
    height: float
    top: float = 0.0  #: pixels above it that are kept free for words

    def y(self, ms: float) -> float:
        """Convert a latency to its place."""
        share = math.log(max(min(ms, self.high), self.low) / self.low) / math.log(
            self.high / self.low
        )
        return self.top + (self.height - self.top) * (1 - share)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the powers of ten, with their names."""
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        return [(10.0**n, duration(10.0**n)) for n in range(first, last + 1)]


def duration(ms: float | None) -> str:
    """Format milliseconds for people, with three digits at most."""
    if ms is None:
        return "–"
    if ms >= 60_000:
        return f"{ms / 60_000:.3g} min"
    return f"{ms / 1000:.3g} s" if ms >= 1000 else f"{ms:.3g} ms"
