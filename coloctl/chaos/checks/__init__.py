"""Collect the checks by name: each is a pure function from the evidence of a run to a verdict.

A scenario names them in its ``[expect]`` table; the keys of each line there are the check's own.
Called by `chaos.run.runner`; importing a module of this package registers its checks.
"""

from __future__ import annotations

from coloctl.chaos.checks import (  # noqa: F401  # each registers its checks
    bank,
    divergence,
    inventory,
    journal,
    primaries,
    protection,
    records,
    registers,
    remnants,
    streams,
    times,
)
from coloctl.chaos.checks.verdict import CHECKS

__all__ = ["CHECKS"]
