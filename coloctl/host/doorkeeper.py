"""Who may reach the QEMUs of a host of this machine: the part of `LocalHost` that keeps doors.

Looks at connections and cuts them (`coloctl.host.peers`), and keeps others from ports by packet
rules (`coloctl.host.guard`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from coloctl.errors import PreconditionFailed
from coloctl.host import guard, peers
from coloctl.host.base import Caller, Process
from coloctl.host.guard import Guarded
from coloctl.model.wires import Address


class Doorkeeper:
    """Implements that part of `Host`; packet rules are made in the host's own namespace."""

    name: str
    _inside: Callable[..., Coroutine[Any, Any, Any]]

    async def callers(
        self, server: Process, at: Address, friend: Process
    ) -> tuple[Caller, ...] | None:
        """See `Host.callers`."""
        return peers.callers(server.identity.pid, at, friend.identity.pid)

    async def hang_up(
        self, server: Process, at: Address, friend: Process | None = None
    ) -> int | None:
        """See `Host.hang_up`."""
        kept = None if friend is None else friend.identity.pid
        return peers.hang_up(server.identity.pid, at, kept)

    async def widen(self, server: Process, at: Address, size: int) -> None:
        """See `Host.widen`."""
        peers.widen(server.identity.pid, at, size)

    async def guard(self, guarded: Guarded) -> None:
        """See `Host.guard`."""
        await self._ruled(lambda: guard.install(guarded))

    async def unguard(self, name: str) -> None:
        """See `Host.unguard`."""
        await self._ruled(lambda: guard.remove(name))

    async def _ruled(self, job: Callable[[], None]) -> None:
        try:
            await self._inside(job)
        except OSError as error:
            raise PreconditionFailed(
                f"the kernel takes no packet rules on {self.name}: {error.strerror}",
                hint="`modprobe nf_tables`, and run coloctl as root",
            ) from None
