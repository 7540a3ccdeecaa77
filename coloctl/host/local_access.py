"""Show, cut and guard the connections of QEMUs on this machine: a part of `LocalHost`.

`host.local` inherits from it. It asks `host.peers` for connections, and `host.guard` for packet
rules that keep other processes from the ports.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine
from typing import Any

from coloctl.errors import PreconditionFailed
from coloctl.host import guard, peers
from coloctl.host.access import Caller
from coloctl.host.channel import hear
from coloctl.host.guard import GuardedPorts
from coloctl.host.identity import Identity
from coloctl.model.wires import Address, Endpoint


class LocalAccess:
    """The part of `Host` named `Access`; packet rules are made in the host's own namespace."""

    name: str
    _inside: Callable[..., Coroutine[Any, Any, Any]]
    make_socket: Callable[..., Coroutine[Any, Any, socket.socket]]

    async def hear(self, at: Address, length: int, *, deadline_s: float) -> bytes:
        """See `Host.hear`."""
        sock = await self.make_socket(_family(at), socket.SOCK_STREAM)
        return await hear(sock, at, length, deadline_s)

    async def callers(
        self, server: Identity, at: Address, friend: Identity
    ) -> tuple[Caller, ...] | None:
        """See `Host.callers`."""
        return peers.callers(server.pid, at, friend.pid)

    async def hang_up(
        self, server: Identity, at: Address, friend: Identity | None = None
    ) -> int | None:
        """See `Host.hang_up`."""
        kept = None if friend is None else friend.pid
        return peers.hang_up(server.pid, at, kept)

    async def widen(self, server: Identity, at: Address, size: int) -> None:
        """See `Host.widen`."""
        peers.widen(server.pid, at, size)

    async def guard(self, guarded: GuardedPorts) -> None:
        """See `Host.guard`; raises `PreconditionFailed` where the kernel takes no packet rules."""
        await self._ruled(lambda: guard.install(guarded))

    async def unguard(self, name: str) -> None:
        """See `Host.unguard`; raises as `guard`: `PreconditionFailed`."""
        await self._ruled(lambda: guard.remove(name))

    async def _ruled(self, job: Callable[[], None]) -> None:
        try:
            await self._inside(job)
        except OSError as error:
            raise PreconditionFailed(
                f"The kernel takes no packet rules on {self.name}: {error.strerror}.",
                hint="`modprobe nf_tables`, and run coloctl as root",
            ) from None


def _family(at: Address) -> int:
    if not isinstance(at, Endpoint):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in at.address else socket.AF_INET
