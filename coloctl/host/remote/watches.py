"""Represent what an agent watches, connects or converses with for as long as it is held there.

Made by `host.remote.files`, `host.remote.links` and `host.remote.host` for the protocols of
`host.watching`. Reports come by `host.remote.held`. Invariant: no method but the coroutines waits.
What was reported too long ago is answered as unknown, never as silence.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any

from coloctl.clock import CLOCK
from coloctl.errors import DeadlineMissed, HostOutOfReach, PreconditionFailed, Unreachable
from coloctl.host.agent.handles import BeaconHandle, ChannelHandle, ListenerHandle
from coloctl.host.agent.work_files import FileWork
from coloctl.host.agent.work_wires import WireWork
from coloctl.host.delivery import TcpConnection
from coloctl.host.remote.contact import AgentContact
from coloctl.host.watching import Channel
from coloctl.host.wire.stream import WireStream
from coloctl.host.wire.token import Token, Tokens
from coloctl.model.wires import Endpoint

#: The longest line of a conversation, bytes, as on this machine.
_LINE_MAX = 1024 * 1024
#: For what two new beacons have to know of each other: it goes to both machines over ssh, and the
#: first report of a datagram comes back that way. A round trip of 2 s is served. Until then that
#: none came shows nothing of the link, whose limit is 120 ms. Seconds.
MEET_S = 5.0
#: For digests of a guest's pages: a GiB takes about a second.
DIGEST_WAIT_S = 60.0


class RemoteThing:
    """A hold of the agent that this process releases with `close`."""

    def __init__(self, contact: AgentContact, hold: int) -> None:
        self._contact, self._hold = contact, hold
        self._lost = ""  #: why it is held no more
        contact.held.add(hold, self)

    def reported(self, row: list[Any]) -> None:
        """See `Thing.reported`."""

    def pushed(self, of: str, document: Mapping[str, Any]) -> None:
        """See `Thing.pushed`."""

    def forgotten(self, why: str) -> None:
        """See `Thing.forgotten`."""
        self._lost = why

    def close(self) -> None:
        """Let the agent release it; harmless a second time, and where it was forgotten."""
        self._contact.held.release(self, self._hold)

    def _check(self) -> None:
        """Check that the agent still holds it; raises `HostOutOfReach`."""
        if self._lost:
            raise HostOutOfReach(self._lost)


class RemoteFolder(RemoteThing):
    """A folder that is removed when it is closed."""


class RemoteChannel(RemoteThing, Channel):
    """One end of a stream on another machine; its descriptor here is a token that stands for it."""

    def __init__(self, contact: AgentContact, handle: ChannelHandle, token: Token) -> None:
        self.description, self.local = handle.description, handle.local
        self._token = token
        super().__init__(contact, handle.hold)

    def fileno(self) -> int:
        """See `Channel.fileno`."""
        return self._token.fileno()

    async def send(self, data: bytes, deadline_s: float) -> None:
        """See `Channel.send`. Raises `Unreachable`, `HostOutOfReach`."""
        self._check()
        await self._contact.call(
            WireWork.send, deadline_s, hold=self._hold, data=data, deadline_s=deadline_s
        )

    async def receive(self, length: int, deadline_s: float) -> bytes:
        """See `Channel.receive`. Raises `Unreachable`, `HostOutOfReach`."""
        self._check()
        return await self._contact.call(
            WireWork.receive, deadline_s, hold=self._hold, length=length, deadline_s=deadline_s
        )

    def close(self) -> None:
        """See `Channel.close`."""
        super().close()
        self._token.close()


class RemoteScratch(RemoteThing):
    """Memory on another machine; implements `Scratch`."""

    def __init__(self, contact: AgentContact, hold: int, token: Token) -> None:
        self._token = token
        super().__init__(contact, hold)

    def fileno(self) -> int:
        """See `Scratch.fileno`."""
        return self._token.fileno()

    async def digests(self, length: int, page: int, key: bytes) -> bytes:
        """See `Scratch.digests`. Raises `PreconditionFailed`."""
        self._check()
        return await self._contact.call(
            FileWork.digests, DIGEST_WAIT_S, hold=self._hold, length=length, page=page, key=key
        )

    def close(self) -> None:
        """See `Scratch.close`."""
        super().close()
        self._token.close()


class RemoteListener(RemoteThing):
    """A TCP port on another machine; implements `Listener`."""

    def __init__(self, contact: AgentContact, handle: ListenerHandle, tokens: Tokens) -> None:
        self.at = handle.at
        self._tokens = tokens
        super().__init__(contact, handle.hold)

    async def accept(self, peer: Endpoint, *, nodelay: bool, deadline_s: float) -> RemoteChannel:
        """See `Listener.accept`. Raises `Unreachable`, `HostOutOfReach`."""
        self._check()
        handle = await self._contact.call(
            WireWork.accept,
            deadline_s,
            hold=self._hold,
            peer=peer,
            nodelay=nodelay,
            deadline_s=deadline_s,
        )
        return RemoteChannel(self._contact, handle, self._tokens.make(handle.hold))


class RemoteBeacon(RemoteThing):
    """One end of the replication link, which the agent beats; implements `Beacon`."""

    def __init__(self, contact: AgentContact, handle: BeaconHandle) -> None:
        self.session = handle.session
        self.delay_s: float | None = None
        self.lost = self.refused = 0
        self.reported_ms: float | None = 0.0
        self._carried_s: float | None = None  #: of the agent's clock, when it began to be silent
        self._carried = self._counted = 0
        self._met_by_s = 0.0
        super().__init__(contact, handle.hold)

    def reported(self, row: list[Any]) -> None:
        """See `Thing.reported`."""
        told_s, carried = self._contact.held.told_s, int(row[0])
        if self._carried_s is None or carried != self._carried:
            self._carried_s = told_s
        self.reported_ms = (told_s - self._carried_s) * 1000
        self._carried, self.lost, self.refused = int(row[0]), int(row[1]), int(row[2])
        self.delay_s = row[3]

    def meet(self, session: bytes) -> None:
        """See `Beacon.meet`."""
        self._met_by_s = CLOCK.now() + MEET_S
        document = {"session": base64.b64encode(session).decode()}
        self._contact.held.push(self, self._hold, "meet", document)

    def beat(self) -> bool | None:
        """See `Beacon.beat`. Whether the agent has counted a beat that carried since the last.

        None also before the first one, for `MEET_S` at most.
        """
        if self._lost or self._contact.held.stale:
            return None
        if not self._carried and CLOCK.now() < self._met_by_s:
            return None
        before, self._counted = self._counted, self._carried
        return self._carried > before


class RemoteDeliveries(RemoteThing):
    """Connections as the kernel of another machine knows them; implements `Deliveries`."""

    def __init__(self, contact: AgentContact, hold: int) -> None:
        self._rows: Sequence[TcpConnection] = ()
        super().__init__(contact, hold)

    def reported(self, row: list[Any]) -> None:
        """See `Thing.reported`."""
        self._rows = [TcpConnection(base64.b64decode(which), *rest) for which, *rest in row[0]]

    def find(self) -> Sequence[TcpConnection]:
        """See `Deliveries.find`."""
        return self.look()

    def look(self) -> Sequence[TcpConnection]:
        """See `Deliveries.look`. None where the agent has not reported for some beats."""
        return () if self._lost or self._contact.held.stale else self._rows


class RemotePacket(RemoteThing):
    """A watch for one packet; implements `FirstConnection` and `FirstPacket`."""

    def __init__(self, contact: AgentContact, hold: int) -> None:
        self._over = asyncio.Event()
        self._why = ""
        super().__init__(contact, hold)

    def pushed(self, of: str, document: Mapping[str, Any]) -> None:
        """See `Thing.pushed`."""
        if of == "packet":
            self._why = str(document["why"])
            self._over.set()

    def forgotten(self, why: str) -> None:
        """See `Thing.forgotten`."""
        super().forgotten(why)
        self._over.set()

    async def wait(self) -> None:
        """See `FirstPacket.wait`. Raises `PreconditionFailed` where the watch is over without."""
        await self._over.wait()
        self._check()
        if self._why:
            raise PreconditionFailed(self._why)


class RemoteConversation(RemoteThing):
    """Lines of text to and from a program of another machine; implements `Conversation`."""

    def __init__(self, contact: AgentContact, hold: int, stream: WireStream, program: str) -> None:
        self._stream, self._program = stream, program
        self._words = ""
        self._read, self._ended = bytearray(), False
        super().__init__(contact, hold)

    def pushed(self, of: str, document: Mapping[str, Any]) -> None:
        """See `Thing.pushed`."""
        if of == "over":
            self._words = str(document["words"])

    async def say(self, line: str, deadline_s: float) -> None:
        """See `Conversation.say`. Raises `DeadlineMissed`, `Unreachable`."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._stream.write(line.encode() + b"\n")
        except TimeoutError:
            raise DeadlineMissed(f"{self._program} did not listen for {deadline_s:g} s.") from None

    async def hear(self, deadline_s: float) -> str | None:
        """See `Conversation.hear`. Raises `DeadlineMissed`."""
        try:
            async with asyncio.timeout(deadline_s):
                while b"\n" not in self._read:
                    if self._ended or len(self._read) > _LINE_MAX:
                        return None
                    try:
                        data = (await self._stream.read()).data
                    except Unreachable:
                        data = b""
                    self._read += data
                    self._ended = not data
        except TimeoutError:
            raise DeadlineMissed(f"{self._program} sent nothing for {deadline_s:g} s.") from None
        line, _, self._read = self._read.partition(b"\n")
        return line.decode(errors="replace")

    def last_words(self) -> str:
        """See `Conversation.last_words`. Known once the program has ended."""
        return self._words

    def close(self) -> None:
        """Let the agent kill the program, and abandon the lines."""
        super().close()
        self._stream.reset("The conversation is over.")
