"""Define the operations of an agent on sockets, links, taps and packet rules.

Listed by `host.agent.work`; each calls the method of `host.local` that bears its name.
`host.remote` asks for them at the other end.

`send` and `receive` move bytes over a held channel; a channel is handed to a QEMU by its hold on
the stream of that QEMU's monitor. The two watches for packets push ``packet``, at most once.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

from coloctl.errors import ColoctlError
from coloctl.host.access import Caller
from coloctl.host.agent.beat import Beat
from coloctl.host.agent.handles import BeaconHandle, ChannelHandle, ListenerHandle
from coloctl.host.agent.holds import Holds
from coloctl.host.agent.relays import Relays
from coloctl.host.channel import LocalChannel, LocalListener
from coloctl.host.guard import GuardedPorts
from coloctl.host.identity import Identity
from coloctl.host.local import LocalHost
from coloctl.host.records import Friends
from coloctl.host.watching import Channel, FirstConnection, FirstPacket
from coloctl.host.wire.mux import Mux
from coloctl.model.launch import TapOrder
from coloctl.model.wires import Address, Endpoint


class WireWork:
    """The operations on sockets and taps; a part of `host.agent.session.AgentSession`."""

    host: LocalHost
    holds: Holds
    beat: Beat
    mux: Mux
    relays: Relays

    async def monitor(self, path: Path, deadline_s: float) -> int:
        """Connect to a unix socket as `Host.monitor` does; returns the stream that relays it.

        The end or the reset of the stream closes the socket, and the other way round.
        """
        return self.relays.add(await self.host.monitor(path, deadline_s))

    async def speaker(self, stream: int, deadline_s: float) -> Identity:
        """Find the process that sent the first bytes over a relayed monitor.

        Raises `Unreachable`.
        """
        return await self.relays.speaker(stream, deadline_s)

    async def listen(self, at: Endpoint) -> ListenerHandle:
        """Listen at a TCP port, as `Host.listen` does."""
        listener = await self.host.listen(at)
        return ListenerHandle(self.holds.add(listener, listener.close), listener.at)

    async def accept(
        self, hold: int, peer: Endpoint, nodelay: bool, deadline_s: float
    ) -> ChannelHandle:
        """Accept the connection of ``peer``, as `Listener.accept` does."""
        listener = self.holds.find(hold, LocalListener)
        return self._channel(await listener.accept(peer, nodelay=nodelay, deadline_s=deadline_s))

    async def connect(self, to: Endpoint, nodelay: bool, deadline_s: float) -> ChannelHandle:
        """Connect to a TCP port, as `Host.connect` does."""
        made = await self.host.connect(to, nodelay=nodelay, deadline_s=deadline_s)
        return self._channel(made)

    async def unix_channels(self) -> tuple[ChannelHandle, ChannelHandle]:
        """Make both ends of a unix stream, as `Host.unix_channels` does."""
        one, two = await self.host.unix_channels()
        return self._channel(one), self._channel(two)

    async def send(self, hold: int, data: bytes, deadline_s: float) -> None:
        """Send bytes over a channel that no QEMU has."""
        await self.holds.find(hold, LocalChannel).send(data, deadline_s)

    async def receive(self, hold: int, length: int, deadline_s: float) -> bytes:
        """Receive bytes over a channel that no QEMU has."""
        return await self.holds.find(hold, LocalChannel).receive(length, deadline_s)

    async def hear(self, at: Address, length: int, deadline_s: float) -> bytes:
        """Read the greeting of a server, as `Host.hear` does."""
        return await self.host.hear(at, length, deadline_s=deadline_s)

    async def ports_in_use(self, address: str) -> frozenset[int]:
        """Find the TCP ports in use, as `Host.ports_in_use` does."""
        return frozenset(await self.host.ports_in_use(address))

    async def beacon(self, at: Endpoint, peer: Endpoint, key: bytes, beat_ms: int) -> BeaconHandle:
        """Make one end of a link, as `Host.beacon` does; the agent beats it every ``beat_ms``."""
        made = await self.host.beacon(at, peer, key, beat_ms)
        hold = self.holds.add(made, made.close)
        self.beat.add_beacon(hold, made, beat_ms)
        return BeaconHandle(hold, made.session)

    async def deliveries(self, at: str, peer: str, ports: tuple[int, ...]) -> int | None:
        """Watch connections, as `Host.deliveries` does; returns a hold, reported with BEATs."""
        made = await self.host.deliveries(at, peer, ports)
        if made is None:
            return None
        hold = self.holds.add(made, made.close)
        self.beat.add_deliveries(hold, made)
        return hold

    async def first_connection(self, tap: str) -> int:
        """Watch for a connection, as `Host.first_connection` does; returns a hold."""
        return await self._watch(self.host.first_connection(tap))

    async def first_packet(self, tap: str) -> int:
        """Watch for a frame, as `Host.first_packet` does; returns a hold."""
        return await self._watch(self.host.first_packet(tap))

    async def tap(self, name: str, up: bool) -> None:
        """Set a tap's state, as `Host.tap` does."""
        await self.host.tap(name, up=up)

    async def tap_held(self, name: str) -> bool:
        """Return whether a process has the tap open, as `Host.tap_held` does."""
        return await self.host.tap_held(name)

    async def tap_is_up(self, name: str) -> bool | None:
        """Return a tap's state, as `Host.tap_is_up` does."""
        return await self.host.tap_is_up(name)

    async def check_tap(self, name: str) -> None:
        """Check a tap, as `Host.check_tap` does."""
        await self.host.check_tap(name)

    async def tap_room(self, order: TapOrder) -> None:
        """Check whether a tap could be made, as `Host.tap_room` does."""
        await self.host.tap_room(order)

    async def make_tap(self, order: TapOrder) -> None:
        """Make a tap, as `Host.make_tap` does."""
        await self.host.make_tap(order)

    async def remove_tap(self, ifname: str, mark: str) -> bool:
        """Remove a tap, as `Host.remove_tap` does."""
        return await self.host.remove_tap(ifname, mark)

    async def calls(self, client: Identity, at: Address) -> Friends | None:
        """Find the connections of a client, as `Host.calls` does."""
        return await self.host.calls(client, at)

    async def callers(
        self, server: Identity, at: Address, friends: Friends
    ) -> tuple[Caller, ...] | None:
        """List the peers of a server, as `Host.callers` does."""
        found = await self.host.callers(server, at, friends)
        return None if found is None else tuple(found)

    async def hang_up(
        self, server: Identity, at: Address, only: frozenset[str] | None
    ) -> int | None:
        """Cut the connections of a server, as `Host.hang_up` does."""
        return await self.host.hang_up(server, at, only)

    async def widen(self, server: Identity, at: Address, size: int) -> None:
        """Widen the connections of a server, as `Host.widen` does."""
        await self.host.widen(server, at, size)

    async def guard(self, guarded: GuardedPorts) -> None:
        """Guard ports, as `Host.guard` does."""
        await self.host.guard(guarded)

    async def unguard(self, name: str) -> None:
        """Remove packet rules, as `Host.unguard` does."""
        await self.host.unguard(name)

    def _channel(self, made: Channel) -> ChannelHandle:
        return ChannelHandle(self.holds.add(made, made.close), made.description, made.local)

    async def _watch(
        self, watched: AbstractAsyncContextManager[FirstConnection | FirstPacket]
    ) -> int:
        async with AsyncExitStack() as stack:
            watch = await stack.enter_async_context(watched)
            kept = stack.pop_all()
        hold = self.holds.add(watch, kept.aclose)
        self.holds.attend(hold, self._push_packet(hold, watch))
        return hold

    async def _push_packet(self, hold: int, watch: FirstConnection | FirstPacket) -> None:
        why = ""
        try:
            await watch.wait()
        except ColoctlError as error:
            why = error.message
        self.mux.push("packet", {"hold": hold, "why": why})
