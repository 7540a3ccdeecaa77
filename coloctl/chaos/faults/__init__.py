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

_MODULES = (
    *(companion, disks, guest, links, machine, monitors, operator),
    *(processes, room, ruin, sitescript, stranger, supervisor),
)
#: Each class of these modules that has a kind of its own; others are bases of several.
FAULTS: Mapping[str, type[Fault[Any]]] = {
    one.kind: one
    for module in _MODULES
    for one in vars(module).values()
    if isinstance(one, type) and issubclass(one, Fault) and "kind" in vars(one)
}

__all__ = ["FAULTS", "Fault"]
