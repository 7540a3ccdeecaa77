"""What a host offers about who reaches its QEMUs: the part of `Host` that looks and keeps out.

`coloctl.colo.peers`, `coloctl.colo.guard` and `coloctl.ha.cutoff` use it, wherever the host is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from coloctl.host.guard import Guarded
from coloctl.host.identity import Identity
from coloctl.model.wires import Address


@dataclass(frozen=True)
class Caller:
    """One connection that a process has accepted."""

    peer: str  #: who connected, in words
    friend: bool  #: it is the process that was asked about


class Access(Protocol):
    """The connections and ports of one host."""

    async def callers(
        self, server: Identity, at: Address, friend: Identity
    ) -> Sequence[Caller] | None:
        """List who is connected to ``server`` at ``at``; None where that cannot be told.

        ``friend`` is the process whose connections are expected, on whichever host.
        """
        ...

    async def hang_up(
        self, server: Identity, at: Address, friend: Identity | None = None
    ) -> int | None:
        """Cut what is connected to ``server`` at ``at``, but for ``friend``; how many were cut.

        None where that cannot be done.
        """
        ...

    async def widen(self, server: Identity, at: Address, size: int) -> None:
        """Let ``size`` bytes wait on their way from ``server`` to who is connected at ``at``."""
        ...

    async def guard(self, guarded: Guarded) -> None:
        """Let only the peer and this user reach those ports; raises `PreconditionFailed`."""
        ...

    async def unguard(self, name: str) -> None:
        """Remove the packet rules of that name, if any; raises `PreconditionFailed`."""
        ...
