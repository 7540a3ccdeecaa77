"""Bound log files that another process appends to, without moving what is kept in them.

Called by `supervisor.loop`, `supervisor.machines` and `host.local_files` for the logs and consoles
of a pair, by `host.agent.stay` for its own, and by `control.daemon.watcher` while there is no
supervisor. Invariant: a byte keeps its offset in the file for as long as it is kept, so that "since
the guest began to boot" stays one number. Standard library only, because the watcher imports it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

#: Bytes that one log may take on its filesystem. /run is a tenth to a half of the memory, and a
#: pair has five such files.
LIMIT: Final = 4 << 20
#: Bytes that stay of a log that has reached the limit: an hour of a chatty kernel.
KEEP: Final = 2 << 20
#: Where less than this is free, a log may take and keeps less by that factor.
SCARCE_ROOM: Final = 4 * LIMIT
SCARCE: Final = 16
#: How often files are looked at, seconds. A flooding guest writes 0.6 MB/s (16550 under TCG).
PERIOD_S: Final = 2.0

#: linux/falloc.h
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
#: What a filesystem answers that has no holes.
_NO_HOLES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})


def pair_logs(folder: Path) -> tuple[Path, ...]:
    """Return the logs in the folder of a pair that grow without a bound of their own."""
    return (folder / "supervisor.log", *node_logs(folder / "a"), *node_logs(folder / "b"))


def node_logs(rundir: Path) -> tuple[Path, ...]:
    """Return the logs in the folder of one node."""
    return (rundir / "console.log", rundir / "qemu.log")


def bound_all(paths: Iterable[Path], *, limit: int = LIMIT, keep: int = KEEP) -> int:
    """Bound each file of ``paths``; returns how many bytes were freed, 0 for a file that fails."""
    freed = 0
    for path in paths:
        try:
            freed += bound(path, limit=limit, keep=keep)
        except OSError:  # not there, or the disk is at fault: the next turn tries again
            continue
    return freed


def bound(path: Path, *, limit: int = LIMIT, keep: int = KEEP) -> int:
    """Free the beginning of ``path`` when it takes more than ``limit`` bytes.

    The last ``keep`` bytes stay where they are, and the bytes before them read as zeros. Both
    numbers are a sixteenth where room is scarce. Where the filesystem cannot make holes, the file
    is emptied; a writer that appends goes on at its beginning. Returns how many bytes were freed.
    Raises `OSError`; links are not followed.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        known = os.fstat(fd)
        before = known.st_blocks * 512
        room = os.fstatvfs(fd)
        if room.f_bavail * room.f_frsize < SCARCE_ROOM:
            limit, keep = limit // SCARCE, keep // SCARCE
        if before <= limit:
            return 0
        page = max(known.st_blksize, 4096)
        end = (known.st_size - keep) // page * page
        if end > 0:
            _punch(fd, end)
        return before - os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def _punch(fd: int, end: int) -> None:
    """Free the blocks of the first ``end`` bytes, or all blocks where there can be no hole."""
    import ctypes  # costs 2 ms and 1 MiB, and is seldom needed

    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, 0, end) == 0:
        return
    number = ctypes.get_errno()
    if number not in _NO_HOLES:
        raise OSError(number, os.strerror(number))
    os.ftruncate(fd, 0)
