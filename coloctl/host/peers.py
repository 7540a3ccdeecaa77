"""Show, cut or widen the connections of a QEMU from outside, through copies of its sockets.

Called by `host.local_access`: before a pair counts as protected (does the peer hold each slot?),
and at a promotion. An NBD client that holds half a write open keeps ``nbd-server-stop`` waiting for
ever, and no out-of-band command of QEMU reaches it. pidfd_getfd(2) (Linux 5.6) needs the right to
trace the process: root has it, and its own user, where the kernel lets a user trace.

Invariant: the kernel identifies a peer: by the process that connected (``SO_PEERCRED``), or by the
same two ends of a socket that the peer's own kernel shows (`calls`, asked on the peer's machine).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
from collections.abc import Collection, Iterator

from coloctl.host.access import Caller
from coloctl.host.records import Friends
from coloctl.model.wires import Address, Endpoint

_PIDFD_GETFD = 438  # the same on every architecture (asm-generic/unistd.h)
_SO_SNDBUFFORCE = 32
_LIBC = ctypes.CDLL(None, use_errno=True)
_UCRED = struct.Struct("iII")  # pid, uid, gid (unix(7))


def calls(client: int, at: Address) -> Friends | None:
    """Find the connections of process ``client`` to ``at``, which may be under another kernel.

    Returns None where this user may not look.
    """
    if not isinstance(at, Endpoint):  # a unix socket's server is under this kernel
        return Friends(client)
    try:
        with _sockets(client) as sockets:
            ends = [end for one in sockets if (end := _ends(one)) is not None]
    except PermissionError:
        return None
    server = (at.address, at.port)
    return Friends(None, frozenset(Endpoint(*here) for here, there in ends if there == server))


def callers(server: int, at: Address, friends: Friends) -> tuple[Caller, ...] | None:
    """List the connections that process ``server`` accepted at ``at`` and that still stand.

    One of ``friends`` is marked as such. None: this user may not look.
    """
    try:
        with _accepted(server, at) as accepted:
            return tuple(Caller(_peer(one), friend=_is_of(one, friends)) for one in accepted)
    except PermissionError:
        return None


def hang_up(server: int, at: Address, only: Collection[str] | None = None) -> int | None:
    """Cut every connection that process ``server`` accepted at ``at``; with ``only``, those peers'.

    A connection that its client has closed is always cut: QEMU keeps one that it does not read
    from. Both directions end at once, also of a request that came only in part. ``only`` are names
    that `callers` gave; a connection that was made since then stands. Returns how many stood and
    were cut; None: this user may not do that.
    """
    try:
        with _accepted(server, at, closed=True) as accepted:
            stood = 0
            for one in accepted:
                stands = _stands(one)
                if stands and only is not None and _peer(one) not in only:
                    continue
                stood += stands
                with contextlib.suppress(OSError):  # it ended by itself
                    one.shutdown(socket.SHUT_RDWR)
            return stood
    except PermissionError:
        return None


def widen(server: int, at: Address, size: int) -> None:
    """Allow ``size`` bytes to wait in what process ``server`` sends over its connections at ``at``.

    As far as this user may: without the right to more, up to ``net.core.wmem_max``.
    """
    with contextlib.suppress(PermissionError), _accepted(server, at) as accepted:
        for one in accepted:
            try:
                one.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
            except PermissionError:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


@contextlib.contextmanager
def _sockets(pid: int) -> Iterator[list[socket.socket]]:
    """Hold copies of the sockets of a process; of one that is gone, none."""
    with contextlib.ExitStack() as held:
        found: list[socket.socket] = []
        try:
            pidfd = os.pidfd_open(pid)
            held.callback(os.close, pidfd)
            numbers = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208  # in the way of a failover
        except (ProcessLookupError, FileNotFoundError):
            numbers = []
        for number in numbers:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # Never a copy of anything else: it would hold a disk's locks for a moment longer.
                if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):  # noqa: PTH115
                    continue
            copy = _LIBC.syscall(_PIDFD_GETFD, pidfd, int(number), 0)
            if copy < 0:
                if ctypes.get_errno() in (1, 13):
                    raise PermissionError(f"the sockets of process {pid} may not be looked at")
                continue  # closed in between
            try:
                found.append(held.enter_context(socket.socket(fileno=copy)))
            except OSError:  # no socket any more
                os.close(copy)
        yield found


@contextlib.contextmanager
def _accepted(server: int, at: Address, *, closed: bool = False) -> Iterator[list[socket.socket]]:
    """Hold copies of the connections that peers made to ``at`` and that still stand.

    With ``closed`` also those that the peer has closed and the server has not.
    """
    with _sockets(server) as sockets:
        there = [one for one in sockets if _is_at(one, at) and not _listens(one)]
        yield [one for one in there if closed or _stands(one)]


def _is_at(sock: socket.socket, at: Address) -> bool:
    if isinstance(at, Endpoint):
        ends = _ends(sock)
        return ends is not None and ends[0] == (at.address, at.port)
    return sock.family == socket.AF_UNIX and sock.getsockname() == str(at.path)


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _stands(sock: socket.socket) -> bool:
    """Return whether the other end of a connection has not closed it."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return not poll.poll(0)


Ends = tuple[tuple[str, int], tuple[str, int]]


def _ends(sock: socket.socket) -> Ends | None:
    """Return this and the other end's address and port; None for what is not a TCP connection."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return None
    try:
        here, there = sock.getsockname(), sock.getpeername()
    except OSError:
        return None
    return (here[0], here[1]), (there[0], there[1])


def _is_of(sock: socket.socket, friends: Friends) -> bool:
    """Return whether one of ``friends`` has the other end of a connection."""
    if sock.family == socket.AF_UNIX:
        return friends.pid is not None and _credentials(sock)[0] == friends.pid
    ends = _ends(sock)
    return ends is not None and Endpoint(*ends[1]) in friends.ends


def _peer(sock: socket.socket) -> str:
    """Name the other end for people: its process, or its address and port."""
    if sock.family == socket.AF_UNIX:
        pid, uid, _ = _credentials(sock)
        return f"process {pid} of user id {uid}"
    ends = _ends(sock)
    return "a connection that ended" if ends is None else str(Endpoint(*ends[1]))


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(data)
    return pid, uid, gid
