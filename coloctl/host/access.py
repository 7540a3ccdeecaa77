"""Define what a host offers about its QEMUs' networks: their connections, their ports and taps.

`host.base` makes both a part of `Host`, `host.peers` makes its `Caller`, and `host.local_access`
implements it. `colo.peers`, `colo.guard` and `ha.cutoff` call it, wherever the host is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from coloctl.host.guard import GuardedPorts
from coloctl.host.identity import Identity
from coloctl.host.records import Friends
from coloctl.model.launch import TapOrder
from coloctl.model.wires import Address


@dataclass(frozen=True)
class Caller:
    """One connection that a process has accepted."""

    peer: str  #: the process or address that connected, as text
    friend: bool  #: it is one of the friends that were asked about


class Access(Protocol):
    """The connections and ports of one host."""

    async def calls(self, client: Identity, at: Address) -> Friends | None:
        """Find the connections of ``client``, a process of this host, to ``at`` on any host.

        Returns None where this user may not look.
        """
        ...

    async def callers(
        self, server: Identity, at: Address, friends: Friends
    ) -> Sequence[Caller] | None:
        """List the peers that are connected to ``server`` at ``at``; None where that is unknown.

        ``friends`` are the connections that are expected, as `calls` of the client's host found
        them.
        """
        ...

    async def hang_up(
        self, server: Identity, at: Address, only: Collection[str] | None = None
    ) -> int | None:
        """Cut the connections to ``server`` at ``at``; returns how many stood until then.

        With ``only`` those whose `Caller.peer` is in it, and those that their client has left:
        never one that was made since `callers` listed them. Returns None where that cannot be done.
        """
        ...

    async def widen(self, server: Identity, at: Address, size: int) -> None:
        """Allow ``size`` bytes to wait on their way from ``server`` to its peer at ``at``."""
        ...

    async def guard(self, guarded: GuardedPorts) -> None:
        """Guard those ports for the peer and this user alone; raises `PreconditionFailed`."""
        ...

    async def unguard(self, name: str) -> None:
        """Remove the packet rules of that name, if any; raises `PreconditionFailed`."""
        ...


class Taps(Protocol):
    """The taps of one host."""

    async def tap(self, name: str, *, up: bool) -> None:
        """Set the tap's administrative state: a tap that is down lets no frame cross. A network
        fence.
        """
        ...

    async def tap_held(self, name: str) -> bool:
        """Return whether another process has the tap open; where that is unknown, True."""
        ...

    async def tap_is_up(self, name: str) -> bool | None:
        """Return the tap's administrative state; None where there is no such device."""
        ...

    async def check_tap(self, name: str) -> None:
        """Check that a QEMU started now could open the tap; raises `PreconditionFailed` with the
        reason.
        """
        ...

    async def tap_room(self, order: TapOrder) -> None:
        """Require that the tap could be made; raises `PreconditionFailed` with the reason."""
        ...

    async def make_tap(self, order: TapOrder) -> None:
        """Make the tap, down, as a port of its bridge; one that this pair left is replaced.

        Raises `PreconditionFailed`. A device of that name that another program made is left alone.
        """
        ...

    async def remove_tap(self, ifname: str, mark: str) -> bool:
        """Remove the tap with that alias; returns False where a process has it open.

        Raises `PreconditionFailed` where the kernel refuses it.
        """
        ...
