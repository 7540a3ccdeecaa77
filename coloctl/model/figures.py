"""Compute the quantiles that `status` and the benches show; pure.

Called by `colo.checkpoint` for a running pair and by `chaos.run.figures` for a bench, so that both
mean the same by p50 and p99.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


def quantile(values: Iterable[float], share: float) -> float | None:
    """Return the smallest value that at least ``share`` (0..1) of the values do not exceed.

    Nearest rank: every result is a value that was measured, and p99 of few values is their maximum.
    None for no values.
    """
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
