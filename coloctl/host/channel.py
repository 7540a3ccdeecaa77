"""Connected stream pairs for migration: opened by us, so that TCP_NODELAY is ours to set."""

from __future__ import annotations

import asyncio
import errno
import socket

from coloctl.errors import PreconditionFailed, Unreachable
from coloctl.host.base import Channel, Endpoint


def unix_pair() -> tuple[Channel, Channel]:
    """Both ends of a unix stream, for two QEMUs under one kernel."""
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(one, "unix pair, first end"), Channel(two, "unix pair, second end")


def listen_at(listener: socket.socket, endpoint: Endpoint, host: str) -> Endpoint:
    """``listener`` listens at the endpoint that is returned (its port is never 0).

    Raises `PreconditionFailed` naming address and port when they cannot be had on ``host``.
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
            f"{endpoint} on {host} is in use by another process",
            hint="choose another [replication] base_port, or look for its owner with `ss -ltnp`",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return PreconditionFailed(
            f"{host} has no address {endpoint.address}",
            hint="the node's `address` must be one of that host's own (`ip address`)",
        )
    return PreconditionFailed(f"cannot listen at {endpoint} on {host}: {error.strerror}")


async def connect_pair(
    listener: socket.socket,
    connector: socket.socket,
    endpoint: Endpoint,
    *,
    nodelay: bool,
    deadline_s: float,
) -> tuple[Channel, Channel]:
    """``connector`` is connected to ``listener``; both ends are returned in blocking mode.

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
                f"no connection to {endpoint} within {deadline_s:g} s",
                hint="is the replication link up, and does no filter drop its packets?",
            ) from None
        if isinstance(error, OSError):
            raise Unreachable(f"no connection to {endpoint}: {error.strerror}") from None
        raise
    return Channel(accepted, f"{local} <- {remote}"), Channel(connector, f"{remote} -> {local}")


async def _accept_from(listener: socket.socket, peer: tuple[str, int]) -> socket.socket:
    """The connection that comes from ``peer``; strangers that found the port are turned away."""
    loop = asyncio.get_running_loop()
    while True:
        accepted, source = await loop.sock_accept(listener)
        if source[:2] == peer:
            return accepted
        accepted.close()
