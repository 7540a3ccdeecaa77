"""Compute the quantiles that `status` and the benches show; pure.

Called by `colo.checkpoint` for a running pair and by `chaos.run.result` and the rooms of `bench/`
for a run, so that all mean the same by p50 and p99.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def quantile(values: Iterable[float], share: float) -> float | None:
    """Return the smallest value that at least ``share`` (0..1) of the values do not exceed.

    Nearest rank: every result is a value that was measured, and p99 of few values is their maximum.
    None for no values.
    """
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


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
