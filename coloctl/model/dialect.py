"""Hold the spellings that one QEMU binary understands.

`qmp.dialect` asks the binary and makes the value, which `vm` keeps; `machine.cmdline`,
`machine.chardev` and `colo.plan` spell options and commands by it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ReturnPath(StrEnum):
    """Relation of ``x-colo`` to ``return-path`` (qemu-colo: 161e603975 changed it in 11.0)."""

    REQUIRED = "required"  #: x-colo is refused without it
    FORBIDDEN = "forbidden"  #: x-colo is accepted without it; migration then fails with it


@dataclass(frozen=True)
class Dialect:
    """The spellings of one binary."""

    version: str  #: as the binary prints it; for people, never for decisions
    return_path: ReturnPath
    reconnect: str  #: option of a client socket chardev: "reconnect" (s) or "reconnect-ms"
    x_colo: bool = True  #: the capability exists
    switchover_bandwidth: bool = False  #: the parameter ``avail-switchover-bandwidth`` exists (8.2)
    pvpanic: bool = True  #: the device ``pvpanic-pci`` exists (6.0)

    def capabilities(self) -> tuple[tuple[str, bool], ...]:
        """Return the migration capabilities that both sides of a pair set, in this order."""
        base = (("events", True), ("x-colo", True))
        if self.return_path is ReturnPath.REQUIRED:
            return (("return-path", True), *base)
        return base

    def reconnect_option(self, seconds: int = 1) -> tuple[str, int]:
        """Return the name and value of the option that makes a client chardev connect again."""
        return (self.reconnect, seconds * 1000 if self.reconnect.endswith("-ms") else seconds)
