"""Compute how long each monitoring path may be silent now; pure.

Called by `ha.heartbeat` at every beat. The limits follow the pair file, the phase of the pair, and
what the pair has shown of itself.

Invariant: a slow checkpoint is never taken for a death. What a checkpoint can delay is measured
against this pair's own checkpoints and its guest's memory. What it cannot delay is not: QEMU's
monitor thread and the replication link answer in the middle of one (docs/qemu.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from coloctl.model.observation import Limits
from coloctl.model.pair import DetectionSpec
from coloctl.model.protection import Protection

#: A silence that nothing attests may last so many times as long as one that the kernel attests, and
#: at least so long: with two cores saturated the slowest out-of-band answer seen took 11 ms, and a
#: process that is not scheduled for a second is as good as gone to its clients.
UNATTESTED_TIMES = 8
UNATTESTED_MIN_MS = 1000.0
#: A limit that depends on checkpoints is this many times the longest pause seen, and at least so
#: long. Before `SEEN_ENOUGH` checkpoints no pause is known, and more is allowed.
PAUSES = 6
STALL_MIN_MS = 2000.0
STALL_UNKNOWN_MS = 10_000.0
SEEN_ENOUGH = 3
#: A guest that was idle for hours may dirty all its memory before one checkpoint. A slow network
#: carries so much of it per second: 1 Gbit/s at nine tenths.
CARRIED_MIB_PER_S = 107.0
#: While a secondary is built, its memory transfer takes the network and the processors; a guest
#: that has reset itself does the same.
RAISED_TIMES = 5
_BUILDING = frozenset({Protection.RESYNC, Protection.MIGRATING})


@dataclass(frozen=True)
class Shown:
    """Checkpoints that this pair has taken in this COLO session; milliseconds."""

    checkpoints: int = 0
    longest_pause_ms: float = 0.0


def limits_of(
    detection: DetectionSpec,
    protection: Protection,
    shown: Shown,
    *,
    memory_mib: int = 0,
    unsettled: bool = False,
) -> Limits:
    """Compute the limits that hold now, milliseconds.

    ``memory_mib`` is the guest's memory: one checkpoint may have to carry all of it. ``unsettled``:
    the guest has reset itself a moment ago.
    """
    building = protection in _BUILDING
    raised = RAISED_TIMES if building or unsettled else 1
    stall_ms = raised * _stall_ms(shown, memory_mib)
    return _limits(detection.suspect_after_ms, building, stall_ms)


def _stall_ms(shown: Shown, memory_mib: int) -> float:
    """Compute how long the slowest checkpoint of this pair may take."""
    stall_ms = max(
        STALL_MIN_MS, PAUSES * shown.longest_pause_ms, memory_mib / CARRIED_MIB_PER_S * 1000
    )
    return stall_ms if shown.checkpoints >= SEEN_ENOUGH else max(stall_ms, STALL_UNKNOWN_MS)


@lru_cache(maxsize=64)  # asked at every beat; the answer changes with a longer pause only
def _limits(suspect_ms: float, building: bool, stall_ms: float) -> Limits:
    times = RAISED_TIMES if building else 1
    return Limits(
        suspect_ms=times * float(suspect_ms),
        silent_ms=times * max(UNATTESTED_MIN_MS, UNATTESTED_TIMES * suspect_ms),
        link_ms=times * float(suspect_ms),
        command_ms=stall_ms,
        stall_ms=stall_ms,
        overdue_ms=stall_ms,
    )
