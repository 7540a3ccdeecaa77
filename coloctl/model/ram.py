"""Find the guest-physical addresses of the guest's main memory in QEMU's flat view; pure.

Called by `colo.pages` before it reads memory. Invariant: an address that may belong to a
device is never in a range, because reading a device can change it.

QEMU prints the flat view for people (``info mtree -f``), so it is parsed strictly: a line that is
not understood makes the whole view not understood. 7.2, 10.0 and 11.1 print the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

#: Bytes of a page of x86.
PAGE = 4096
#: Where a PC has its video window and its ROMs: the guest's chipset may put a device in the place
#: of memory there at any moment, so it is left out.
LEGACY = (0xA0000, 0x100000)

#: The address space that `pmemsave` reads.
_SPACE = ' AS "memory", root: system'
_LINE = re.compile(
    r"  ([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([a-z/-]+)\): (.+?)( @[0-9a-f]{16})?"
)


class NotUnderstood(ValueError):
    """QEMU describes its memory in a form that is not known; the message is a sentence."""


@dataclass(frozen=True)
class RamRange:
    """Whole pages of the guest's main memory: guest-physical addresses, ``end`` is not in it."""

    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the range."""
        return self.end - self.begin


@dataclass(frozen=True)
class Ram:
    """The guest's main memory as far as it can be read without touching a device."""

    block: str  #: QEMU's name of it
    ranges: tuple[RamRange, ...]
    left_out: int = 0  #: bytes of the guest's memory that are in no range

    @property
    def size(self) -> int:
        """Bytes of all ranges together."""
        return sum(one.size for one in self.ranges)


def main_memory(view: str, expected: int, plugged: int = 0) -> Ram:
    """Find the ranges in what ``info mtree -f`` printed, for a guest of ``expected`` bytes.

    The main memory is the RAM block at address 0; memory that was ``plugged`` in besides, and
    that of further NUMA nodes, is left out. Raises `NotUnderstood`.
    """
    found = list(_regions(view))
    block = next((name for begin, _, kind, name in found if begin == 0 and kind == "ram"), "")
    if not block:
        raise NotUnderstood("QEMU shows no memory at address 0.")
    ranges: list[RamRange] = []
    reached = 0
    for begin, end, kind, name in found:
        if begin < reached:
            raise NotUnderstood(f"QEMU shows regions that overlap at {begin:#x}.")
        reached = end
        if kind == "ram" and name == block:
            ranges += _without_legacy(begin, end)
    if any(edge % PAGE for one in ranges for edge in (one.begin, one.end)):
        raise NotUnderstood(f"A range of {block} does not begin and end with a page.")
    size = sum(one.size for one in ranges)
    if size > expected:
        raise NotUnderstood(f"{block} has {size} bytes, more than the guest ({expected}).")
    return Ram(block, tuple(ranges), expected + plugged - size)


def _regions(view: str) -> Iterator[tuple[int, int, str, str]]:
    """Read the regions of that address space in order: begin, end, kind, name."""
    text = "\n".join(view.splitlines())  # a monitor for people ends its lines with CR, too
    sections = [one.split("\n") for one in re.split(r"^FlatView #\d+$", text, flags=re.M)]
    wanted = [lines for lines in sections if _SPACE in lines]
    if len(wanted) != 1:
        raise NotUnderstood("QEMU shows no address space of that name ('memory').")
    for line in filter(None, wanted[0]):
        if line.startswith((" AS ", " Root memory region: ")):
            continue
        if (match := _LINE.fullmatch(line)) is None:
            raise NotUnderstood(f"QEMU shows a region in unknown words: '{line.strip()}'.")
        yield int(match[1], 16), int(match[2], 16) + 1, match[3], match[4]


def _without_legacy(begin: int, end: int) -> Iterator[RamRange]:
    low, high = LEGACY
    for one in (RamRange(begin, min(end, low)), RamRange(max(begin, high), end)):
        if one.size > 0:
            yield one
