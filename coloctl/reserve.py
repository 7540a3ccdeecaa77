"""Reserve room for what has to be written down, on a filesystem that others may fill.

Called by `journal`. A decision that cannot be recorded must not be made, and a pair that waits for
room does not fail over. So a file takes some room while there is plenty, and frees it when there is
none.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

#: What is free before something is written, where the reserve can see to it: a failover writes
#: twenty records of at most 1 KiB, its claim, and one line of history.
ROOM: Final = 64 << 10
#: What the file takes: enough for four failovers in a row while no room is made.
FULL: Final = 4 * ROOM


class Reserve:
    """A file at ``path`` of up to `FULL` bytes; its owner alone changes it.

    Room that an earlier owner reserved stays reserved. Where there can be no such file, there is no
    reserve.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd, self._size = -1, 0
        with contextlib.suppress(OSError):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._size = os.fstat(self._fd).st_size
        self.see_to_room()

    def see_to_room(self) -> None:
        """Free room for the next write, as far as the file has any; costs a system call.

        The file takes its room back when there is several times as much.
        """
        with contextlib.suppress(OSError):  # then the write reports what is wrong
            free = self._free()
            while free < ROOM and self._size:
                self._size = max(0, self._size - ROOM)
                os.ftruncate(self._fd, self._size)
                free = self._free()
            if self._size < FULL and free > 4 * FULL:
                os.posix_fallocate(self._fd, 0, FULL)
                self._size = FULL

    def close(self) -> None:
        """Close the file and leave it as it is."""
        with contextlib.suppress(OSError):  # there is none
            os.close(self._fd)

    def _free(self) -> int:
        known = os.fstatvfs(self._fd)
        return known.f_bavail * known.f_frsize
