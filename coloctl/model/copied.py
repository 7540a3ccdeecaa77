"""Describe the copy that made the disks of both nodes equal: its method and its bytes.

`colo.difference` and `colo.resync` return it, and `supervisor.acts.protect` shows it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from coloctl.model.units import about


class Method(StrEnum):
    """Method by which the disks of a new secondary got the guest's content."""

    DIFFERENCE = "difference"  #: both were read, and blocks that differ were sent
    FULL = "full"  #: every block was sent


@dataclass(frozen=True)
class CopyReport:
    """Report of one copy; its numbers are bytes, of all disks together."""

    read: int  #: of data, on the survivor; holes are not read
    sent: int  #: of data, over the replication link; of a full copy as QEMU counts it, with holes
    full: int  #: the size of the disks
    method: Method
    why: str = ""  #: why the disks were copied in full, where that was not asked for

    def sentence(self) -> str:
        """Describe it for people."""
        if self.method is Method.DIFFERENCE:
            return (
                f"{about(self.sent)} of {about(self.full)} differed and were copied; "
                f"{about(self.read)} were compared."
            )
        because = f": {self.why}" if self.why else ""
        return f"{about(self.sent)} of {about(self.full)} were copied, in full{because}."
