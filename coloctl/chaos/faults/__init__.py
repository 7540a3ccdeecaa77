"""Collect every kind of fault by name.

Called by `chaos.run.engine` and `api.faults` to inject faults, and by
`chaos.scenario.file` to check scenarios.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coloctl.chaos.faults import (
    companion,
    disks,
    guest,
    links,
    machine,
    monitors,
    operator,
    processes,
    room,
    ruin,
    sitescript,
    stranger,
    supervisor,
)
from coloctl.chaos.faults.fault import Fault

_KINDS: tuple[type[Fault[Any]], ...] = (
    *(*processes.FAULTS, *links.FAULTS, *disks.FAULTS, *monitors.FAULTS, *machine.FAULTS),
    *(*room.FAULTS, *supervisor.FAULTS, *guest.FAULTS, *operator.FAULTS, *ruin.FAULTS),
    *(*stranger.FAULTS, *companion.FAULTS, *sitescript.FAULTS),
)
FAULTS: Mapping[str, type[Fault[Any]]] = {one.kind: one for one in _KINDS}

__all__ = ["FAULTS", "Fault"]
