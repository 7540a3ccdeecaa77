"""Connect streams between hosts: pairs for QEMUs, and tests whether a listener answers.

Called by `host.local` and `host.local_access`. A pair is connected by coloctl and not by QEMU, so
that coloctl sets its TCP_NODELAY.
"""

from __future__ import annotations

import asyncio
import errno
import socket

from coloctl.errors import PreconditionFailed, Unreachable
from coloctl.host.base import Channel, Endpoint
from coloctl.model.wires import Address, SocketFile


def unix_pair() -> tuple[Channel, Channel]:
    """Make both ends of a unix stream, for two QEMUs under one kernel."""
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(one, "unix pair, first end"), Channel(two, "unix pair, second end")


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
        return PreconditionFailed(
            f"Host {host} has no address {endpoint.address}.",
            hint="the node's `address` must be one of that host's own (`ip address`)",
        )
    return PreconditionFailed(f"Cannot listen at {endpoint} on {host}: {error.strerror}.")


async def connect_pair(
    listener: socket.socket,
    connector: socket.socket,
    endpoint: Endpoint,
    *,
    nodelay: bool,
    deadline_s: float,
) -> tuple[Channel, Channel]:
    """Connect ``connector`` to ``listener`` and return both ends in blocking mode.

    The caller keeps ``listener``; ``connector`` is closed on failure. Raises `Unreachable`.
    """
    accepted: socket.socket | None = None
    try:
        async with asyncio.timeout(deadline_s):
            await asyncio.get_running_loop().sock_connect(
                connector, (endpoint.address, endpoint.port)
            )
            accepted = await _accept_from(listener, connector.getsockname()[:2])
        for end in (accepted, connector):
            if nodelay:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(True)
        local, remote = endpoint, Endpoint(*connector.getsockname()[:2])
    except BaseException as error:
        connector.close()
        if accepted is not None:
            accepted.close()
        if isinstance(error, TimeoutError):
            raise Unreachable(
                f"No connection to {endpoint} within {deadline_s:g} s.",
                hint="is the replication link up, and does no filter drop its packets?",
            ) from None
        if isinstance(error, OSError):
            raise Unreachable(f"No connection to {endpoint}: {error.strerror}.") from None
        raise
    return Channel(accepted, f"{local} <- {remote}"), Channel(connector, f"{remote} -> {local}")


async def carries(one: Channel, two: Channel, deadline_s: float) -> None:
    """Send a byte from each end to the other; raises `Unreachable`.

    Both ends are in non-blocking mode afterwards.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(deadline_s):
            for near, far in ((one, two), (two, one)):
                near.socket.setblocking(False)
                far.socket.setblocking(False)
                await loop.sock_sendall(near.socket, b"?")
                if not await loop.sock_recv(far.socket, 1):
                    raise Unreachable(f"The connection {far.description} was closed.")
    except TimeoutError:
        raise Unreachable(
            f"No data came over the connection {one.description} within {deadline_s:g} s."
        ) from None
    except OSError as error:
        raise Unreachable(
            f"No data comes over the connection {one.description}: {error.strerror}."
        ) from None


async def hear(sock: socket.socket, at: Address, length: int, deadline_s: float) -> bytes:
    """Read the first ``length`` bytes that the server at ``at`` sends unasked, and close ``sock``.

    Returns fewer when the server closes the connection before; raises `Unreachable`.
    """
    where = str(at.path) if isinstance(at, SocketFile) else (at.address, at.port)
    loop = asyncio.get_running_loop()
    said, connected = b"", False
    with sock:
        try:
            async with asyncio.timeout(deadline_s):
                await loop.sock_connect(sock, where)
                connected = True
                while len(said) < length and (more := await loop.sock_recv(sock, length)):
                    said += more
        except TimeoutError:
            missing = "No data came from" if connected else "No connection to"
            raise Unreachable(f"{missing} {at} within {deadline_s:g} s.") from None
        except OSError as error:
            raise Unreachable(f"No connection to {at}: {error.strerror}.") from None
    return said


async def _accept_from(listener: socket.socket, peer: tuple[str, int]) -> socket.socket:
    """Accept the connection that comes from ``peer``, and close those of strangers."""
    loop = asyncio.get_running_loop()
    while True:
        accepted, source = await loop.sock_accept(listener)
        if source[:2] == peer:
            return accepted
        accepted.close()
