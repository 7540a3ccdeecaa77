"""Tell a process that the kernel killed for its memory from one that was killed by others.

Called by `host.process` when a process ends. The kernel counts in a control group how many of its
processes it has killed for memory, and counts before it kills. So the count is read while the
process is dying: systemd removes the group of a QEMU as soon as it is empty.

Invariant: only a group in which no other program runs is believed, and only a count that grew while
the process was held. Nothing here waits, and no error here gets in the way of an end.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from coloctl.procfs import read_stat

ROOT = Path("/sys/fs/cgroup")

#: Files of a memory group: the counts, and the limit. Version 2 first, then version 1.
_FILES = (("memory.events", "memory.max"), ("memory.oom_control", "memory.limit_in_bytes"))
#: Version 1 writes a number near 2^63 where there is no limit.
_UNLIMITED = 1 << 62


class MemoryKills:
    """The memory group of one process, and how many had been killed in it before."""

    def __init__(self, pid: int) -> None:
        """Begin with the count as it is now."""
        self._pid = pid
        self._folder = group_of(pid)
        self._before = _killed(self._folder)
        self._limit: int | None = None

    def look(self) -> int | None:
        """Return the limit at which the kernel has killed the process; None where it has not.

        0 where the kernel killed it and its group has no limit. For a process that dies or has
        died, and is not reaped yet; the first answer that is not None stays.
        """
        if self._limit is not None:
            return self._limit
        folder = group_of(self._pid) or self._folder
        before = self._before if folder == self._folder else 0  # systemd has moved it to its own
        if folder is None or _killed(folder) <= before or not _own(folder, self._pid):
            return None
        self._limit = _limit(folder)
        return self._limit


def group_of(pid: int) -> Path | None:
    """Find the folder of the memory group of ``pid``; None where there is none to be read.

    Nor in version 1 for a process that dies: it seems to be in the first group then.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            number, controllers, path = line.removesuffix(" (deleted)").split(":", 2)
            if number != "0" and ("memory" not in controllers.split(",") or path == "/"):
                continue
            mount = ROOT if number == "0" else ROOT / "memory"
            folder = mount / path.lstrip("/")
            if any((folder / counts).exists() for counts, _ in _FILES):
                return folder
    return None


def _killed(folder: Path | None) -> int:
    """Read how many processes of the group were killed for memory; 0 where it is gone."""
    for counts, _ in _FILES if folder else ():
        with contextlib.suppress(OSError, ValueError):
            for line in (Path(folder or "") / counts).read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def _limit(folder: Path) -> int:
    """Read the limit of the group, bytes; 0 for none."""
    for _, limit in _FILES:
        with contextlib.suppress(OSError, ValueError):
            found = int((folder / limit).read_text())
            return found if found < _UNLIMITED else 0
    return 0


def _own(folder: Path, pid: int) -> bool:
    """Return whether all that is left in the group is of the session of ``pid``."""
    with contextlib.suppress(OSError, ValueError):
        mine = read_stat(pid)
        left = map(int, (folder / "cgroup.procs").read_text().split())
        others = [stat for one in left if one != pid and (stat := read_stat(one))]
        return all(mine is not None and one.session == mine.session for one in others)
    return True
