"""Find out what a lost QEMU could still reach: an image that is written to, a tap that is attached.

Called by `host.local` as `Host.still_held`, for the fence; `procfs` names the processes. QEMU locks
a byte of an image for each permission that it has there (block/file-posix.c), and the kernel
reports whether a tap has a user (`host.netdevice`). Invariant: neither is touched: no lock is
taken, no tap is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from coloctl import procfs
from coloctl.host import netdevice
from coloctl.host.blocking import aside
from coloctl.host.identity import Identity
from coloctl.host.process import identity_of
from coloctl.host.program import looked
from coloctl.host.tap import TUN_NODE

#: RAW_LOCK_PERM_BASE + BLK_PERM_WRITE (1 << 1): a process that may write locks this byte.
WRITER_BYTE = 101
#: `struct flock` on 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")

#: The kernel reports a lock within a millisecond; a server of files may hang. Seconds.
LOCK_WAIT_S = 1.0


async def held(
    images: Collection[Path],
    taps: Collection[str],
    links_socket: socket.socket,
    besides: Identity | None = None,
) -> tuple[str, ...]:
    """Find uses as `Host.still_held`; ``links_socket`` is of `netdevice.links`, for this call
    alone.

    One process at most can have an image locked for writing, or a tap attached.
    """
    told = []
    for tap in taps:
        with contextlib.suppress(OSError):
            if attached(links_socket, tap) and not _has_tap(besides, tap):
                told.append(f"the tap {tap} is open in {await looked(users_of_tap, tap)}")
    for image in images:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LOCK_WAIT_S):
                if await aside(partial(written, image)) and not _has_file(besides, image):
                    users = await looked(users_of_file, image)
                    told.append(f"the image {image} may be written to by {users}")
    return tuple(told)


def written(image: Path) -> bool:
    """Return whether a process may write to ``image``, by QEMU's own locks; raises `OSError`."""
    file = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, WRITER_BYTE, 1, 0)
        kind = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0]
    finally:
        os.close(file)
    return bool(kind != fcntl.F_UNLCK)


def attached(links_socket: socket.socket, tap: str) -> bool:
    """Return whether a process has the tap open, which gives it a carrier, also while it is down.

    A tap that does not exist has no user. Raises `OSError`.
    """
    device = netdevice.find(links_socket, tap)
    return device is not None and device.carrier


def users_of_file(file: Path) -> str:
    """Name the processes that have ``file`` open, for a message."""
    return _named(procfs.holding_file([file]))


def users_of_tap(tap: str) -> str:
    """Name the processes that have ``tap`` attached, for a message."""
    return _named(pid for pid in procfs.holding([TUN_NODE]) if tap in _taps(pid))


def _has_tap(process: Identity | None, tap: str) -> bool:
    return any(tap in _taps(task) for task in _tasks(process))


def _has_file(process: Identity | None, file: Path) -> bool:
    return any(procfs.has_open(task, file) for task in _tasks(process))


def _tasks(process: Identity | None) -> Iterator[str]:
    """Yield the threads of a process as paths below /proc: its files are shown at one that has not
    ended yet.
    """
    if process is not None and identity_of(process.pid) == process:
        for task in Path(f"/proc/{process.pid}/task").glob("*"):
            yield f"{process.pid}/task/{task.name}"


def _taps(task: int | str) -> set[str]:
    """Return the taps of one process: the kernel writes their names beside its descriptors."""
    found = set()
    for entry in Path(f"/proc/{task}/fdinfo").glob("*"):
        with contextlib.suppress(OSError):
            for line in entry.read_text(errors="replace").splitlines():
                if line.startswith("iff:"):
                    found.add(line.removeprefix("iff:").strip())
    return found


def _named(pids: Collection[int] | Iterator[int]) -> str:
    names = []
    for pid in sorted(pids):
        with contextlib.suppress(OSError):
            names.append(f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})")
    return f"process {', '.join(names)}" if names else "a process that this user may not see"
