"""How long each road may be silent now: as asked for, by phase, and by what was seen; pure.

A slow checkpoint must never be taken for a death, so what a checkpoint can delay is measured
against this pair's own checkpoints. What it cannot delay is not: QEMU's monitor thread and the
replication link answer in the middle of one (docs/qemu.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from coloctl.model.observation import Limits
from coloctl.model.pair import DetectionSpec
from coloctl.model.protection import Protection

#: A silence that nothing attests is this many times as long as one that the kernel does, and at
#: least so long: with two cores saturated the slowest out-of-band answer seen took 11 ms, and a
#: process that is not scheduled for a second is as good as gone to its clients.
UNATTESTED_TIMES = 8
UNATTESTED_MIN_MS = 1000.0
#: What depends on checkpoints may take this many times the longest pause seen, and at least so
#: long; before `SEEN_ENOUGH` checkpoints nothing is known, and more is allowed.
PAUSES = 6
STALL_MIN_MS = 2000.0
STALL_UNKNOWN_MS = 10_000.0
SEEN_ENOUGH = 3
#: While a secondary is built, its memory transfer takes the network and the processors.
BUILDING_TIMES = 5
_BUILDING = frozenset({Protection.RESYNC, Protection.MIGRATING})


@dataclass(frozen=True)
class Shown:
    """What this pair has shown of itself in this session, milliseconds."""

    checkpoints: int = 0
    longest_pause_ms: float = 0.0


def limits(detection: DetectionSpec, protection: Protection, shown: Shown) -> Limits:
    """The limits that hold now."""
    times = BUILDING_TIMES if protection in _BUILDING else 1
    suspect_ms = float(detection.suspect_after_ms)
    stall_ms = max(STALL_MIN_MS, PAUSES * shown.longest_pause_ms)
    if shown.checkpoints < SEEN_ENOUGH:
        stall_ms = max(stall_ms, STALL_UNKNOWN_MS)
    return Limits(
        suspect_ms=times * suspect_ms,
        silent_ms=times * max(UNATTESTED_MIN_MS, UNATTESTED_TIMES * suspect_ms),
        link_ms=times * suspect_ms,
        command_ms=stall_ms,
        stall_ms=stall_ms,
        overdue_ms=stall_ms,
    )
