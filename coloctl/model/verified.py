"""Report what a comparison of both nodes' disks and memory found, to and from JSON.

`colo.verify` and `colo.pages` make the parts, `supervisor.verifying` the whole; `cli.verbs.verify`
and `cli.views.pair` show it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from coloctl.model.revive import revive
from coloctl.model.units import size


class VerifyOutcome(StrEnum):
    """Outcome of a verification."""

    EQUAL = "equal"
    DIFFERENT = "different"  #: some chunks hold other bytes on the secondary
    BROKEN_OFF = "broken-off"  #: something else had to be done, or a node was lost


@dataclass(frozen=True)
class DiskVerified:
    """One disk. Ranges are bytes, of whole chunks of 64 KiB."""

    disk: str  #: its id in the pair file
    size: int
    read: int = 0  #: bytes of data that were hashed on the primary; holes are not read
    differs: tuple[tuple[int, int], ...] = ()
    #: Ranges that were written at every look, so that their equality is not known.
    unsettled: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class MemoryVerified:
    """The guest's main memory, in pages of 4 KiB; `colo.pages` says what that proves."""

    block: str  #: QEMU's name of it
    pages: int  #: that were looked at
    same: int  #: still on both sides, and equal
    moving: int  #: written between two looks, so that their equality is not known
    different: int  #: still on both sides, and not equal
    #: The first ranges that differ: guest-physical addresses.
    places: tuple[tuple[int, int], ...] = ()
    left_out: int = 0  #: bytes of the guest's memory that were not looked at

    @property
    def still(self) -> int:
        """Pages that are known to be equal or not."""
        return self.same + self.different


@dataclass(frozen=True)
class Verified:
    """One verification of a pair."""

    at: str  #: when it ended: wall clock, ISO 8601 in UTC
    outcome: VerifyOutcome
    took_s: float
    ended_s: float  #: monotonic; comparable within one boot of the machine
    primary: str
    secondary: str
    disks: tuple[DiskVerified, ...] = ()
    reason: str = ""  #: why it was broken off, a sentence
    #: Why the guest's memory was not compared, a sentence; empty where it was.
    memory: str = ""
    pages: MemoryVerified | None = None

    @property
    def differs(self) -> bool:
        """True when a disk or the memory differs."""
        memory = self.pages is not None and self.pages.different > 0
        return memory or any(disk.differs for disk in self.disks)

    @property
    def different(self) -> int:
        """Bytes of chunks that differ, of all disks together; memory is counted in pages."""
        return sum(end - begin for disk in self.disks for begin, end in disk.differs)

    def to_json(self) -> dict[str, Any]:
        """Return the document of `verify -f json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Verified:
        """Rebuild the value from the document of `to_json`; raises ValueError for anything else.

        A document of an earlier coloctl has no ``pages``.
        """
        return revive(cls, document)

    def sentence(self) -> str:
        """Describe the result for an operator."""
        if self.outcome is VerifyOutcome.BROKEN_OFF:
            return f"It was broken off: {self.reason}"
        if self.outcome is VerifyOutcome.EQUAL:
            alike = [_alike(disk) for disk in self.disks]
            return " ".join([*alike, *([_still(self.pages)] if self.pages else [])])
        wrong = [_differs(disk, self.secondary, self.primary) for disk in self.disks]
        if self.pages is not None and self.pages.different:
            wrong.append(_other(self.pages, self.secondary, self.primary))
        return " ".join(filter(None, wrong))


def last_verified(found: Verified | None) -> str:
    """Summarize the last verification in one line; return "" where there was none."""
    return "" if found is None else f"{found.outcome}, {found.at}. {found.sentence()}"


def _alike(disk: DiskVerified) -> str:
    moving = sum(end - begin for begin, end in disk.unsettled)
    but = f", but for {size(moving)} that were written at every look" if moving else ""
    return f"Disk {disk.disk} ({size(disk.size)}) is the same on both nodes{but}."


def _differs(disk: DiskVerified, secondary: str, primary: str) -> str:
    if not disk.differs:
        return ""
    length = sum(end - begin for begin, end in disk.differs)
    first = disk.differs[0][0]
    more = f" and {len(disk.differs) - 1} more places" if len(disk.differs) > 1 else ""
    return (
        f"Disk {disk.disk} of node {secondary} is not that of node {primary} in {size(length)}, "
        f"at byte {first}{more}."
    )


def _other(memory: MemoryVerified, secondary: str, primary: str) -> str:
    count = f"{memory.different} pages" if memory.different > 1 else "one page"
    more = f", and {len(memory.places) - 1} more places" if len(memory.places) > 1 else ""
    return (
        f"The memory of node {secondary} is not that of node {primary} in {count}, at "
        f"guest-physical address {memory.places[0][0]:#x} ({memory.block}){more}."
    )


def _still(memory: MemoryVerified) -> str:
    return (
        f"Of {memory.pages} pages of memory {memory.still} were still, and these are the same on "
        "both nodes."
    )
