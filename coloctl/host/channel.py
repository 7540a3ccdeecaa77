"""Connect TCP streams between two hosts, and unix streams on one: pairs for QEMUs, and tests.

Called by `host.local_access` for its own ends, by `colo.protect`, `colo.link` and `check.network`
for pairs. A pair is connected by coloctl and not by QEMU, so that coloctl sets its TCP_NODELAY.
Invariant: a descriptor is in blocking mode whenever no call of its channel is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

from coloctl.clock import Deadline
from coloctl.errors import PreconditionFailed, Unreachable
from coloctl.host.base import Host
from coloctl.host.watching import Channel
from coloctl.model.wires import Address, Endpoint, SocketFile
from coloctl.tasks import side_by_side

#: The questions of `carries` after the first, one after the other: a connection there and its other
#: end here, and a byte each way.
_TRIPS = 4


class LocalChannel(Channel):
    """One end of a connected stream, as a socket of this process."""

    def __init__(self, sock: socket.socket, description: str) -> None:
        """Take ``sock`` over, and set it to blocking mode."""
        self.socket = sock
        self.description = description
        self.local: Endpoint | None = None
        if sock.family != socket.AF_UNIX:
            self.local = Endpoint(*sock.getsockname()[:2])
        sock.setblocking(True)

    def fileno(self) -> int:
        """Return the file descriptor, -1 once closed."""
        return self.socket.fileno()

    async def send(self, data: bytes, deadline_s: float) -> None:
        """See `Channel.send`; raises `Unreachable`."""
        with self._not_blocking(deadline_s):
            async with asyncio.timeout(deadline_s):
                await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self, length: int, deadline_s: float) -> bytes:
        """See `Channel.receive`; raises `Unreachable`."""
        loop, data = asyncio.get_running_loop(), b""
        with self._not_blocking(deadline_s):
            async with asyncio.timeout(deadline_s):
                while len(data) < length and (
                    more := await loop.sock_recv(self.socket, length - len(data))
                ):
                    data += more
        return data

    def close(self) -> None:
        """See `Channel.close`."""
        self.socket.close()

    def __repr__(self) -> str:
        return f"<LocalChannel {self.description}>"

    @contextlib.contextmanager
    def _not_blocking(self, deadline_s: float) -> Iterator[None]:
        """Keep the socket in non-blocking mode; its errors become `Unreachable`."""
        try:
            self.socket.setblocking(False)
            yield
            self.socket.setblocking(True)
        except TimeoutError:
            raise Unreachable(
                f"No data came over the connection {self.description} within {deadline_s:g} s."
            ) from None
        except OSError as error:
            raise Unreachable(
                f"No data comes over the connection {self.description}: {error.strerror}."
            ) from None


class LocalListener:
    """A TCP port of this process that listens; implements `host.watching.Listener`."""

    def __init__(self, sock: socket.socket, at: Endpoint, host: str) -> None:
        """Listen with ``sock``, which is taken over; raises `PreconditionFailed` as `listen_at`."""
        self.at = listen_at(sock, at, host)
        self._sock = sock

    async def accept(self, peer: Endpoint, *, nodelay: bool, deadline_s: float) -> LocalChannel:
        """See `Listener.accept`; raises `Unreachable`."""
        try:
            async with asyncio.timeout(deadline_s):
                accepted = await self._accept_from((peer.address, peer.port))
        except TimeoutError:
            raise _late(self.at, deadline_s) from None
        except OSError as error:
            raise Unreachable(f"No connection to {self.at}: {error.strerror}.") from None
        return _connected(accepted, f"{self.at} <- {peer}", nodelay=nodelay)

    def close(self) -> None:
        """See `Listener.close`."""
        self._sock.close()

    async def _accept_from(self, peer: tuple[str, int]) -> socket.socket:
        """Accept the connection that comes from ``peer``, and close those of strangers."""
        while True:
            accepted, source = await asyncio.get_running_loop().sock_accept(self._sock)
            if source[:2] == peer:
                return accepted
            accepted.close()


def unix_pair() -> tuple[LocalChannel, LocalChannel]:
    """Make both ends of a unix stream, for two QEMUs under this kernel."""
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return LocalChannel(one, "unix pair, first end"), LocalChannel(two, "unix pair, second end")


async def channel_pair(
    one: Host, two: Host, at: Endpoint, *, nodelay: bool, deadline_s: float
) -> tuple[Channel, Channel]:
    """Connect both ends of a TCP connection: the first at ``at`` on ``one``, the second on ``two``.

    Raises `PreconditionFailed` when ``at`` is not available on ``one``, and `Unreachable` when
    ``two`` does not get through within ``deadline_s``.
    """
    deadline = Deadline(deadline_s)
    listener = await one.listen(at)
    try:
        far = await two.connect(listener.at, nodelay=nodelay, deadline_s=deadline_s)
        try:
            assert far.local is not None, "a TCP connection has an address"
            near = await listener.accept(
                far.local, nodelay=nodelay, deadline_s=deadline.remaining()
            )
        except BaseException:
            far.close()
            raise
        return near, far
    finally:
        listener.close()


async def carries(one: Host, two: Host, at: Endpoint, *, deadline_s: float) -> None:
    """Check that TCP from ``two`` to ``at`` on ``one`` carries data both ways.

    No process may listen there before, and none does afterwards. Raises as `channel_pair` does. The
    way to the hosts themselves, over ssh, counts beside ``deadline_s``: it is no part of that link.
    """
    deadline_s += max(host.reach.trips_s(_TRIPS) for host in (one, two))
    deadline = Deadline(deadline_s)
    near, far = await channel_pair(one, two, at, nodelay=True, deadline_s=deadline_s)
    with near, far:
        await both_ways(far, near, deadline)


async def both_ways(one: Channel, two: Channel, deadline: Deadline) -> None:
    """Send a byte from each end to the other; raises `Unreachable`."""
    for near, far in ((one, two), (two, one)):
        _, came = await side_by_side(
            near.send(b"?", deadline.remaining()), far.receive(1, deadline.remaining())
        )
        if not came:
            raise Unreachable(f"The connection {far.description} was closed.")


def listen_at(listener: socket.socket, endpoint: Endpoint, host: str) -> Endpoint:
    """Make ``listener`` listen at ``endpoint``; returns the endpoint with its real port, never 0.

    Raises `PreconditionFailed` naming address and port when they are not available on ``host``.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((endpoint.address, endpoint.port))
        listener.listen(8)
    except OSError as error:
        raise _not_available(error, endpoint, host) from None
    return Endpoint(endpoint.address, listener.getsockname()[1])


def _not_available(error: OSError, endpoint: Endpoint, host: str) -> PreconditionFailed:
    if error.errno == errno.EADDRINUSE:
        return PreconditionFailed(
            f"{endpoint} on {host} is in use by another process.",
            hint="choose another [replication] base_port, or look for its owner with `ss -ltnp`",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        name = socket.gethostname() if host == "local" else host
        return PreconditionFailed(
            f"{name} has no address {endpoint.address}.",
            hint="the node's `address` must be one of that host's own (`ip address`)",
        )
    return PreconditionFailed(f"Cannot listen at {endpoint} on {host}: {error.strerror}.")


async def connected(
    connector: socket.socket, to: Endpoint, *, nodelay: bool, deadline_s: float
) -> LocalChannel:
    """Connect ``connector``, which is closed on failure, to ``to``; raises `Unreachable`."""
    try:
        async with asyncio.timeout(deadline_s):
            await asyncio.get_running_loop().sock_connect(connector, (to.address, to.port))
        here = Endpoint(*connector.getsockname()[:2])
        return _connected(connector, f"{here} -> {to}", nodelay=nodelay)
    except BaseException as error:
        connector.close()
        if isinstance(error, TimeoutError):
            raise _late(to, deadline_s) from None
        if isinstance(error, OSError):
            raise Unreachable(f"No connection to {to}: {error.strerror}.") from None
        raise


def _connected(sock: socket.socket, description: str, *, nodelay: bool) -> LocalChannel:
    if nodelay:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return LocalChannel(sock, description)


def _late(to: Endpoint, deadline_s: float) -> Unreachable:
    return Unreachable(
        f"No connection to {to} within {deadline_s:g} s.",
        hint="is the replication link up, and does no filter drop its packets?",
    )


async def hear(sock: socket.socket, at: Address, length: int, deadline_s: float) -> bytes:
    """Read the first ``length`` bytes that the server at ``at`` sends unasked, and close ``sock``.

    Returns fewer when the server closes the connection before; raises `Unreachable`.
    """
    where = str(at.path) if isinstance(at, SocketFile) else (at.address, at.port)
    loop = asyncio.get_running_loop()
    heard, reached = b"", False
    with sock:
        try:
            async with asyncio.timeout(deadline_s):
                await loop.sock_connect(sock, where)
                reached = True
                while len(heard) < length and (more := await loop.sock_recv(sock, length)):
                    heard += more
        except TimeoutError:
            missing = "No data came from" if reached else "No connection to"
            raise Unreachable(f"{missing} {at} within {deadline_s:g} s.") from None
        except OSError as error:
            raise Unreachable(f"No connection to {at}: {error.strerror}.") from None
    return heard
