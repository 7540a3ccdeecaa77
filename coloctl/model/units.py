"""Read and write sizes with a unit, as people do.

Called by `pairfile.values` to read them, and by `check.disks`, `machine.image` and
`cli.verbs.verify` to show them. Pure.
"""

from __future__ import annotations

import re

MIB = 1 << 20
#: QEMU's own needs beside the guest's memory, for both processes together; seen: 90 MiB each.
OVERHEAD_MIB = 256
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30, "TiB": 1 << 40}
UNITS |= {"K": 1 << 10, "M": MIB, "G": 1 << 30, "T": 1 << 40}
#: A whole number and the unit after it, which may be missing or unknown.
SIZE = re.compile(r"([0-9]+)\s*([A-Za-z]*)")


def bytes_of(text: str) -> int | None:
    """Return the bytes that ``50MiB`` means; None for what has no unit, or is no size at all."""
    match = SIZE.fullmatch(text.strip())
    return int(match[1]) * UNITS[match[2]] if match and match[2] in UNITS else None


def size(count: int) -> str:
    """Write ``count`` bytes in the largest unit of which they are a whole number."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count and count % UNITS[unit] == 0:
            return f"{count // UNITS[unit]} {unit}"
    return f"{count} bytes"


def about(count: int) -> str:
    """Write ``count`` bytes with one decimal, such as 1.5 GiB; less than 1 KiB exactly."""
    for unit in ("GiB", "MiB", "KiB"):
        if count >= UNITS[unit]:
            return f"{count / UNITS[unit]:.1f} {unit}"
    return f"{count} B"
