"""Summarize many measurements in few numbers; pure.

Used by `chaos.run.result` and by the benches; computes quantiles with `model.figures`.
"""

from __future__ import annotations

from collections.abc import Iterable
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
