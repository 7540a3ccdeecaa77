"""Make, show, cut and guard connections on this machine, and make taps: a part of `LocalHost`.

`host.local` inherits from it. It makes them by `host.channel`, asks `host.peers` for those of
QEMUs, `host.guard` for packet rules that keep other processes from the ports, and `host.maketap`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from coloctl.clock import Deadline
from coloctl.errors import PreconditionFailed
from coloctl.host import guard, maketap, peers
from coloctl.host.access import Caller
from coloctl.host.channel import LocalChannel, LocalListener, connected, hear, unix_pair
from coloctl.host.guard import GuardedPorts
from coloctl.host.identity import Identity
from coloctl.host.listen import parse_address
from coloctl.host.records import Friends
from coloctl.model.launch import TapOrder
from coloctl.model.wires import Address, Endpoint

#: From the proven end of a QEMU until its tap was free, 3 to 20 ms were seen; seconds.
LET_GO_S = 2.0


class LocalAccess:
    """The part of `Host` named `Access`, and the streams; all in the host's own namespace."""

    name: str
    _inside: Callable[..., Coroutine[Any, Any, Any]]
    make_socket: Callable[..., Coroutine[Any, Any, socket.socket]]

    async def hear(self, at: Address, length: int, *, deadline_s: float) -> bytes:
        """See `Host.hear`."""
        where = family(at.address) if isinstance(at, Endpoint) else socket.AF_UNIX
        sock = await self.make_socket(where, socket.SOCK_STREAM)
        return await hear(sock, at, length, deadline_s)

    async def listen(self, at: Endpoint) -> LocalListener:
        """See `Host.listen`; raises `PreconditionFailed`."""
        sock = await self.make_socket(family(at.address), socket.SOCK_STREAM)
        try:
            return LocalListener(sock, at, self.name)
        except BaseException:
            sock.close()
            raise

    async def connect(self, to: Endpoint, *, nodelay: bool, deadline_s: float) -> LocalChannel:
        """See `Host.connect`; raises `Unreachable`."""
        sock = await self.make_socket(family(to.address), socket.SOCK_STREAM)
        return await connected(sock, to, nodelay=nodelay, deadline_s=deadline_s)

    async def unix_channels(self) -> tuple[LocalChannel, LocalChannel]:
        """See `Host.unix_channels`."""
        return unix_pair()

    async def calls(self, client: Identity, at: Address) -> Friends | None:
        """See `Host.calls`."""
        return peers.calls(client.pid, at)

    async def callers(
        self, server: Identity, at: Address, friends: Friends
    ) -> tuple[Caller, ...] | None:
        """See `Host.callers`."""
        return peers.callers(server.pid, at, friends)

    async def hang_up(
        self, server: Identity, at: Address, only: Collection[str] | None = None
    ) -> int | None:
        """See `Host.hang_up`."""
        return peers.hang_up(server.pid, at, only)

    async def widen(self, server: Identity, at: Address, size: int) -> None:
        """See `Host.widen`."""
        peers.widen(server.pid, at, size)

    async def guard(self, guarded: GuardedPorts) -> None:
        """See `Host.guard`; raises `PreconditionFailed` where the kernel takes no packet rules."""
        await self._ruled(lambda: guard.install(guarded))

    async def unguard(self, name: str) -> None:
        """See `Host.unguard`; raises as `guard`: `PreconditionFailed`."""
        await self._ruled(lambda: guard.remove(name))

    async def tap_room(self, order: TapOrder) -> None:
        """See `Host.tap_room`; raises `PreconditionFailed`."""
        await self._inside(lambda: maketap.require_room(order, self.name))

    async def make_tap(self, order: TapOrder) -> None:
        """See `Host.make_tap`; raises `PreconditionFailed`. Once cancelled it is removed again."""
        await self.remove_tap(order.ifname, order.mark)
        await self._inside(
            lambda: maketap.make(order, self.name),
            undo=lambda _: self._removed(order.ifname, order.mark),
        )

    async def remove_tap(self, ifname: str, mark: str) -> bool:
        """See `Host.remove_tap`; raises `PreconditionFailed`.

        A QEMU that has ended may keep it open for some milliseconds: its io_uring is taken down by
        the kernel after the process is gone. That is waited for.
        """

        async def removed() -> bool:
            gone: bool = await self._inside(lambda: self._removed(ifname, mark))
            return gone

        return await Deadline(LET_GO_S).poll(removed, 0.01)

    def _removed(self, ifname: str, mark: str) -> bool:
        try:
            return maketap.remove(ifname, mark)
        except OSError as error:
            raise PreconditionFailed(
                f"The tap {ifname} on {self.name} cannot be removed: {error.strerror}.",
                hint=f"`ip link del {ifname}` there",
            ) from None

    async def _ruled(self, job: Callable[[], None]) -> None:
        try:
            await self._inside(job)
        except OSError as error:
            raise PreconditionFailed(
                f"The kernel takes no packet rules on {self.name}: {error.strerror}.",
                hint="`modprobe nf_tables`, and run coloctl as root",
            ) from None


def family(address: str) -> int:
    """Return the socket family of an IP address; raises `PreconditionFailed` for other text."""
    return socket.AF_INET if parse_address(address).version == 4 else socket.AF_INET6
