"""Summarize many measurements in few numbers; pure.

Used by `chaos.run.result` and by the benches; computes quantiles with `model.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from coloctl.model.figures import quantile


def summary(values: Iterable[float | None]) -> dict[str, Any]:
    """Compute ``n``, ``p50``, ``p99`` and ``max`` of the known values; None without any."""
    known = [value for value in values if value is not None]
    rounded = {
        "p50": quantile(known, 0.5),
        "p99": quantile(known, 0.99),
        "max": max(known, default=None),
    }
    return {
        "n": len(known),
        **{key: None if value is None else round(value, 2) for key, value in rounded.items()},
    }


@dataclass(frozen=True)
class Bin:
    """The number of values from ``low`` (counted) to ``high`` (not counted)."""

    low: float
    high: float
    count: int


def histogram(values: Sequence[float], most: int = 12) -> list[Bin]:
    """Count values in equal bins with round borders: at most ``most``, none without values.

    The first bin begins at or below the least value, the last one holds the greatest.
    """
    if not values:
        return []
    low, high = min(values), max(values)
    width = _round_width((high - low) / most)
    first, last = math.floor(low / width), math.floor(high / width)
    while last - first + 1 > most:
        width = _round_width(width * 1.01)
        first, last = math.floor(low / width), math.floor(high / width)
    counts = [0] * (last - first + 1)
    for value in values:
        counts[math.floor(value / width) - first] += 1
    return [
        Bin((first + i) * width, (first + i + 1) * width, count) for i, count in enumerate(counts)
    ]


def _round_width(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is not below ``least``."""
    power = 1.0
    while True:
        for step in (1, 2, 5):
            if step * power >= least:
                return step * power
        power *= 10
