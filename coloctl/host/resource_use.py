"""Find out what a lost QEMU could still reach: an image that is written to, a tap that is attached.

Called by `host.local` as `Host.still_held`, for the fence; `procfs` names the processes. QEMU locks
a byte of an image for each permission that it has there (block/file-posix.c), and the kernel
reports whether a tap has a user. Invariant: neither is touched: no lock is taken, no tap is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from coloctl import procfs
from coloctl.host.program import looked
from coloctl.host.tap import TUN_NODE

#: RAW_LOCK_PERM_BASE + BLK_PERM_WRITE (1 << 1): a process that may write locks this byte.
WRITER_BYTE = 101
#: `struct flock` on 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")

#: The kernel reports a lock within a millisecond; a server of files may hang. Seconds.
LOCK_WAIT_S = 1.0

# Numbers from linux/rtnetlink.h, linux/if_link.h and linux/netlink.h.
RTM_GETLINK, NLM_F_REQUEST, NLMSG_ERROR = 18, 1, 2
IFLA_IFNAME, IFLA_CARRIER = 3, 33
_HEADER, _LINK, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxHiII"), struct.Struct("=HH")


async def held(
    images: Collection[Path], taps: Collection[str], links_socket: socket.socket
) -> tuple[str, ...]:
    """Find uses as `Host.still_held`; ``links_socket`` is one of `links` for this call alone."""
    told = []
    for tap in taps:
        with contextlib.suppress(OSError):
            if attached(links_socket, tap):
                told.append(f"the tap {tap} is open in {await looked(users_of_tap, tap)}")
    for image in images:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LOCK_WAIT_S):
                if await looked(written, image):
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


def links() -> socket.socket:
    """Make the socket for `attached`, which answers for the calling thread's network namespace."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)


def attached(links_socket: socket.socket, tap: str) -> bool:
    """Return whether a process has the tap open, which gives it a carrier, also while it is down.

    A tap that does not exist has no user. Raises `OSError`.
    """
    name = tap.encode() + b"\0"
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(name), IFLA_IFNAME) + name
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute.ljust(-(-len(attribute) // 4) * 4)
    size = _HEADER.size + len(body)
    links_socket.sendto(_HEADER.pack(size, RTM_GETLINK, NLM_F_REQUEST, 1, 0) + body, (0, 0))
    answer = links_socket.recv(1 << 16)
    kind = _HEADER.unpack_from(answer)[1]
    if kind == NLMSG_ERROR:
        code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if code == errno.ENODEV:
            return False
        raise OSError(code, os.strerror(code))
    return any(
        number == IFLA_CARRIER and value[:1] == b"\1"
        for number, value in _attributes(answer[_HEADER.size + _LINK.size :])
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, number = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield number, data[_ATTRIBUTE.size : length]
        data = data[-(-length // 4) * 4 :]


def users_of_file(file: Path) -> str:
    """Name the processes that have ``file`` open, for a message."""
    return _named(procfs.holding_file([file]))


def users_of_tap(tap: str) -> str:
    """Name the processes that have ``tap`` attached, for a message."""
    return _named(pid for pid in procfs.holding([TUN_NODE]) if tap in _taps(pid))


def _taps(pid: int) -> set[str]:
    """Return the taps of one process: the kernel writes their names beside its descriptors."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").glob("*"):
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
