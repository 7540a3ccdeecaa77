"""The judges by name: each is a pure function from the evidence of a run to a verdict.

A scenario calls them in its ``[expect]`` table; the keys of each line there are the check's own.
"""

from __future__ import annotations

from collections.abc import Mapping

from coloctl.chaos.checks import (
    bank,
    divergence,
    journal,
    primaries,
    protection,
    records,
    registers,
    remnants,
    strangers,
    streams,
    times,
)
from coloctl.chaos.checks.check import Check, Params

CHECKS: Mapping[str, Check] = {
    **records.CHECKS,
    **registers.CHECKS,
    **bank.CHECKS,
    **streams.CHECKS,
    **times.CHECKS,
    **protection.CHECKS,
    **divergence.CHECKS,
    **strangers.CHECKS,
    **primaries.CHECKS,
    **journal.CHECKS,
    **remnants.CHECKS,
}

__all__ = ["CHECKS", "Check", "Params"]
