"""Collect every kind of fault by name.

Called by `chaos.run.engine` and `api.faults` to inject faults, and by
`chaos.scenario.file` to check scenarios.
"""

from __future__ import annotations

from coloctl.chaos.faults import (
    companion,
    disks,
    guest,
    links,
    machine,
    machines,
    monitors,
    operator,
    processes,
    room,
    ruin,
    sitescript,
    stranger,
    supervisor,
)
from coloctl.chaos.faults.fault import FAULTS, Fault

__all__ = [
    "FAULTS",
    "Fault",
    "companion",
    "disks",
    "guest",
    "links",
    "machine",
    "machines",
    "monitors",
    "operator",
    "processes",
    "room",
    "ruin",
    "sitescript",
    "stranger",
    "supervisor",
]
