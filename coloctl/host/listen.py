"""Make sockets that listen before their QEMU starts, and find listeners without touching them.

Called by `host.launch`, `host.local` and `host.local_access`, and by `chaos.evidence.remains` for
the ports in use; calls `host.ready` to wait for a byte, and `paths` for the limit of a socket's
path.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import stat
import struct
from pathlib import Path

from coloctl.clock import Deadline
from coloctl.errors import PreconditionFailed, Unreachable
from coloctl.host.identity import Identity
from coloctl.host.process import identity_of
from coloctl.host.ready import until_readable
from coloctl.paths import check_socket_path
from coloctl.procfs import LISTENS

#: Connections the kernel keeps until QEMU takes them: a monitor has one client, plus late ones.
BACKLOG = 4

#: `struct ucred` of unix(7): pid, uid, gid.
_UCRED = struct.Struct("3i")

#: `TCP_LISTEN` in the state column of /proc/net/tcp.
_TCP_LISTEN = "0A"


def listening(path: Path) -> socket.socket:
    """Make a unix socket that listens at ``path``, with mode 0600 from its first moment.

    A socket file without a listener is replaced. Raises `PreconditionFailed` when a process listens
    there, when another kind of file is in the way, or when the file cannot be made.
    """
    text = str(check_socket_path(path.absolute()))
    _make_way(path, text)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # bind() gives the file the mode of the socket, so no umask of the whole process is needed.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(text)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise PreconditionFailed(f"Cannot listen at {text}: {error.strerror}.") from None
    return sock


def _make_way(path: Path, text: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise PreconditionFailed(f"Cannot listen at {text}: {error.strerror}.") from None
    if not stat.S_ISSOCK(mode):
        raise PreconditionFailed(
            f"{text} is in the way: it is not a socket.", hint="move that file away"
        )
    if _has_listener(text):
        raise PreconditionFailed(
            f"Another process already listens at {text}.", hint="stop the older pair first"
        )
    path.unlink(missing_ok=True)


def _has_listener(text: str) -> bool:
    rows = Path("/proc/thread-self/net/unix").read_text(errors="replace").splitlines()[1:]
    for row in rows:
        fields = row.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == text and int(fields[3], 16) & LISTENS:
            return True
    return False


async def connect_unix(path: Path, deadline_s: float) -> socket.socket:
    """Connect a non-blocking stream to the unix socket at ``path``.

    Raises `Unreachable` when no process listens there, or none takes the connection within
    ``deadline_s``.
    """
    text = str(check_socket_path(path.absolute()))
    deadline = Deadline(deadline_s)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # for `speaker`
        while (code := sock.connect_ex(text)) == errno.EAGAIN and not deadline.expired:  # noqa: ASYNC110
            # The listener's queue is full, and no descriptor says when that changes.
            await asyncio.sleep(0.01)
        if code == errno.EAGAIN:
            raise Unreachable(f"The listener at {text} took no connection for {deadline_s:g} s.")
        if code:
            raise Unreachable(f"No process answers at {text}: {os.strerror(code)}.")
    except BaseException:
        sock.close()
        raise
    return sock


async def speaker(monitor: socket.socket, deadline_s: float) -> Identity:
    """Find the process that wrote the first bytes that wait at ``monitor``; no byte is read.

    The kernel notes the sender with every message. SO_PEERCRED would name the process that called
    listen(): coloctl itself. Raises `Unreachable` when no byte comes within ``deadline_s``, or when
    the sender is unknown.
    """
    try:
        async with asyncio.timeout(deadline_s):
            await until_readable(monitor.fileno())
        _, notes, _, _ = monitor.recvmsg(1, socket.CMSG_SPACE(_UCRED.size), socket.MSG_PEEK)
        monitor.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    except TimeoutError:
        raise Unreachable(f"A monitor sent nothing for {deadline_s:g} s.") from None
    except OSError as error:
        raise Unreachable(f"A monitor hung up: {error.strerror}.") from None
    pids = [_UCRED.unpack(data)[0] for _, kind, data in notes if kind == socket.SCM_CREDENTIALS]
    found = identity_of(pids[0]) if pids and pids[0] else None
    if found is None:
        raise Unreachable("A monitor hung up, or a process that cannot be seen answers there.")
    return found


def ports_in_use(address: str) -> set[int]:
    """Find TCP ports whose listener would collide on ``address``, in the caller's namespace."""
    wanted = parse_address(address)
    found: set[int] = set()
    for table in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for row in rows:
            local, state = row.split()[1], row.split()[3]
            where, port = local.split(":")
            if state == _TCP_LISTEN and _collides(wanted, _decoded(where)):
                found.add(int(port, 16))
    return found


IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_address(address: str) -> IPAddress:
    """Parse the IP address that ``address`` spells; raises `PreconditionFailed` for other text."""
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        raise PreconditionFailed(
            f"{address!r} is not an IP address.", hint="write it in digits, such as 10.66.0.1"
        ) from None


def _decoded(column: str) -> IPAddress:
    # The kernel prints each 32-bit part of the address in the machine's own byte order.
    words = [int(column[i : i + 8], 16) for i in range(0, len(column), 8)]
    address = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _collides(wanted: IPAddress, bound: IPAddress) -> bool:
    if bound == wanted:
        return True
    # `::` usually takes IPv4 too, and /proc does not show whether this one does: assume it.
    return (bound.is_unspecified and bound.version >= wanted.version) or (
        wanted.is_unspecified and wanted.version >= bound.version
    )
