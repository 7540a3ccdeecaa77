"""Use sockets, links, taps and packet rules of another machine through its agent.

`host.remote.host` inherits from it: the part of `Host` named `Access`, and what is connected or
watched. Invariant: the agent holds what is made there for an object here, and releases it with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from contextlib import asynccontextmanager

from coloctl.host.access import Caller
from coloctl.host.agent.work_wires import WireWork
from coloctl.host.delivery import Deliveries
from coloctl.host.guard import GuardedPorts
from coloctl.host.identity import Identity
from coloctl.host.records import Friends
from coloctl.host.remote.contact import AgentContact
from coloctl.host.remote.watches import (
    RemoteBeacon,
    RemoteChannel,
    RemoteDeliveries,
    RemoteListener,
    RemotePacket,
)
from coloctl.host.watching import FirstConnection, FirstPacket
from coloctl.host.wire.token import Tokens
from coloctl.model.launch import TapOrder
from coloctl.model.wires import Address, Endpoint

#: For what the kernel there answers at once: rules, tables, devices.
KERNEL_WAIT_S = 10.0


class RemoteLinks:
    """The part of `Host` about connections; every method raises `HostOutOfReach`."""

    _contact: AgentContact
    _tokens: Tokens

    async def listen(self, at: Endpoint) -> RemoteListener:
        """See `Host.listen`."""
        handle = await self._contact.call(WireWork.listen, KERNEL_WAIT_S, at=at)
        return RemoteListener(self._contact, handle, self._tokens)

    async def connect(self, to: Endpoint, *, nodelay: bool, deadline_s: float) -> RemoteChannel:
        """See `Host.connect`. Raises `Unreachable`."""
        handle = await self._contact.call(
            WireWork.connect, deadline_s, to=to, nodelay=nodelay, deadline_s=deadline_s
        )
        return RemoteChannel(self._contact, handle, self._tokens.make(handle.hold))

    async def unix_channels(self) -> tuple[RemoteChannel, RemoteChannel]:
        """See `Host.unix_channels`."""
        handles = await self._contact.call(WireWork.unix_channels, KERNEL_WAIT_S)
        one, two = (
            RemoteChannel(self._contact, handle, self._tokens.make(handle.hold))
            for handle in handles
        )
        return one, two

    async def hear(self, at: Address, length: int, *, deadline_s: float) -> bytes:
        """See `Host.hear`. Raises `Unreachable`."""
        return await self._contact.call(
            WireWork.hear, deadline_s, at=at, length=length, deadline_s=deadline_s
        )

    async def ports_in_use(self, address: str) -> set[int]:
        """See `Host.ports_in_use`."""
        return set(await self._contact.call(WireWork.ports_in_use, KERNEL_WAIT_S, address=address))

    async def beacon(self, at: Endpoint, peer: Endpoint, key: bytes, beat_ms: int) -> RemoteBeacon:
        """See `Host.beacon`."""
        handle = await self._contact.call(
            WireWork.beacon, KERNEL_WAIT_S, at=at, peer=peer, key=key, beat_ms=beat_ms
        )
        return RemoteBeacon(self._contact, handle)

    async def deliveries(self, at: str, peer: str, ports: Collection[int]) -> Deliveries | None:
        """See `Host.deliveries`."""
        hold = await self._contact.call(
            WireWork.deliveries, KERNEL_WAIT_S, at=at, peer=peer, ports=tuple(ports)
        )
        return None if hold is None else RemoteDeliveries(self._contact, hold)

    @asynccontextmanager
    async def first_connection(self, tap: str) -> AsyncIterator[FirstConnection]:
        """See `Host.first_connection`."""
        call = self._contact.call(WireWork.first_connection, KERNEL_WAIT_S, tap=tap)
        async with self._packet(call) as watch:
            yield watch

    @asynccontextmanager
    async def first_packet(self, tap: str) -> AsyncIterator[FirstPacket]:
        """See `Host.first_packet`."""
        call = self._contact.call(WireWork.first_packet, KERNEL_WAIT_S, tap=tap)
        async with self._packet(call) as watch:
            yield watch

    @asynccontextmanager
    async def _packet(self, call: Awaitable[int]) -> AsyncIterator[RemotePacket]:
        watch = RemotePacket(self._contact, await call)
        try:
            yield watch
        finally:
            watch.close()

    async def tap(self, name: str, *, up: bool) -> None:
        """See `Host.tap`."""
        await self._contact.call(WireWork.tap, KERNEL_WAIT_S, name=name, up=up)

    async def tap_held(self, name: str) -> bool:
        """See `Host.tap_held`."""
        return await self._contact.call(WireWork.tap_held, KERNEL_WAIT_S, name=name)

    async def tap_is_up(self, name: str) -> bool | None:
        """See `Host.tap_is_up`."""
        return await self._contact.call(WireWork.tap_is_up, KERNEL_WAIT_S, name=name)

    async def check_tap(self, name: str) -> None:
        """See `Host.check_tap`."""
        await self._contact.call(WireWork.check_tap, KERNEL_WAIT_S, name=name)

    async def tap_room(self, order: TapOrder) -> None:
        """See `Host.tap_room`."""
        await self._contact.call(WireWork.tap_room, KERNEL_WAIT_S, order=order)

    async def make_tap(self, order: TapOrder) -> None:
        """See `Host.make_tap`."""
        await self._contact.call(WireWork.make_tap, KERNEL_WAIT_S, order=order)

    async def remove_tap(self, ifname: str, mark: str) -> bool:
        """See `Host.remove_tap`."""
        return await self._contact.call(
            WireWork.remove_tap, KERNEL_WAIT_S, ifname=ifname, mark=mark
        )

    async def calls(self, client: Identity, at: Address) -> Friends | None:
        """See `Access.calls`."""
        return await self._contact.call(WireWork.calls, KERNEL_WAIT_S, client=client, at=at)

    async def callers(
        self, server: Identity, at: Address, friends: Friends
    ) -> Sequence[Caller] | None:
        """See `Access.callers`."""
        return await self._contact.call(
            WireWork.callers, KERNEL_WAIT_S, server=server, at=at, friends=friends
        )

    async def hang_up(
        self, server: Identity, at: Address, only: Collection[str] | None = None
    ) -> int | None:
        """See `Access.hang_up`."""
        names = None if only is None else frozenset(only)
        return await self._contact.call(
            WireWork.hang_up, KERNEL_WAIT_S, server=server, at=at, only=names
        )

    async def widen(self, server: Identity, at: Address, size: int) -> None:
        """See `Access.widen`."""
        await self._contact.call(WireWork.widen, KERNEL_WAIT_S, server=server, at=at, size=size)

    async def guard(self, guarded: GuardedPorts) -> None:
        """See `Access.guard`."""
        await self._contact.call(WireWork.guard, KERNEL_WAIT_S, guarded=guarded)

    async def unguard(self, name: str) -> None:
        """See `Access.unguard`."""
        await self._contact.call(WireWork.unguard, KERNEL_WAIT_S, name=name)
