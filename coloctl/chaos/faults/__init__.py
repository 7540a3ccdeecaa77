"""Everything that may go wrong with a pair, by name; each fault knows how it is healed."""

from __future__ import annotations

from collections.abc import Mapping

from coloctl.chaos.faults import (
    clock,
    companion,
    disks,
    guest,
    links,
    machine,
    monitors,
    operator,
    processes,
    reader,
    room,
    ruin,
    sitescript,
    stranger,
)
from coloctl.chaos.faults.fault import FaultKind

FAULTS: Mapping[str, FaultKind] = {
    **processes.FAULTS,
    **links.FAULTS,
    **disks.FAULTS,
    **monitors.FAULTS,
    **machine.FAULTS,
    **room.FAULTS,
    **clock.FAULTS,
    **reader.FAULTS,
    **guest.FAULTS,
    **operator.FAULTS,
    **ruin.FAULTS,
    **stranger.FAULTS,
    **companion.FAULTS,
    **sitescript.FAULTS,
}

__all__ = ["FAULTS", "FaultKind"]
