"""Two ends of a wire over a socketpair, and what passed between them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from coloctl.errors import PreconditionFailed
from coloctl.host.wire.frames import MESSAGE_MAX, FrameKind, FrameSplitter
from coloctl.host.wire.mux import Mux


class WireEnd:
    """One end with its session: what it was asked, got pushed and beaten, and what it undid."""

    def __init__(self, *, odd: bool) -> None:
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.cancelled: list[str] = []
        self.pushed: list[tuple[str, Mapping[str, Any]]] = []
        self.beats: list[Mapping[str, Any]] = []
        self.unclaimed: list[tuple[str, Any]] = []
        self.gate = asyncio.Event()
        self.mux = Mux(
            self.serve,
            lambda of, document: self.pushed.append((of, document)),
            odd=odd,
            beaten=self.beats.append,
            unclaimed=lambda do, answer: self.unclaimed.append((do, answer)),
        )

    async def serve(self, do: str, arguments: Mapping[str, Any], deadline_s: float) -> Any:
        """Perform the few operations of these tests."""
        self.asked.append((do, arguments))
        try:
            if do == "wait":
                await self.gate.wait()
            elif do == "refuse":
                raise PreconditionFailed("It does not hold.", hint="make it hold")
            elif do == "fail":
                raise RuntimeError("a defect")
            elif do == "long":
                return "x" * MESSAGE_MAX
            elif do == "stubborn":
                try:
                    await self.gate.wait()
                except asyncio.CancelledError:
                    return "done all the same"
        except asyncio.CancelledError:
            self.cancelled.append(do)
            raise
        return arguments.get("value")


class Cutter:
    """Forwards whole frames between two ends, and cuts the connection after so many of them.

    ``torn``: half of the next frame still arrives.
    """

    def __init__(self, limit: int | None = None, *, torn: bool = False) -> None:
        self.count, self.limit, self.torn = 0, limit, torn
        self.kinds: set[FrameKind] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._forwarding: list[asyncio.Task[None]] = []

    async def between(self, one: socket.socket, two: socket.socket) -> None:
        """Forward frames between the far ends of two socketpairs until the cut."""
        first = await asyncio.open_unix_connection(sock=one)
        second = await asyncio.open_unix_connection(sock=two)
        self._writers = [first[1], second[1]]
        for writer in self._writers:
            writer.transport.set_write_buffer_limits(high=0)  # what was counted has arrived
        self._forwarding = [
            asyncio.create_task(self._forward(first[0], second[1])),
            asyncio.create_task(self._forward(second[0], first[1])),
        ]

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        splitter = FrameSplitter()
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                for frame in splitter.feed(data):
                    raw = frame.encode()
                    if self.count == self.limit:
                        if self.torn:
                            writer.write(raw[: len(raw) // 2])
                            await writer.drain()
                        self.cut()
                        return
                    self.count += 1
                    self.kinds.add(frame.kind)
                    writer.write(raw)
                    await writer.drain()
        self.cut()

    def cut(self) -> None:
        """Cut the connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def aclose(self) -> None:
        """Cut, and wait until nothing is forwarded any more."""
        self.cut()
        for task in self._forwarding:
            task.cancel()
        await asyncio.gather(*self._forwarding, return_exceptions=True)


class Ends:
    """Both ends of a session, and the connections that carry it."""

    def __init__(self) -> None:
        self.client, self.agent = WireEnd(odd=True), WireEnd(odd=False)
        self.carrying: list[asyncio.Task[str]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._cutters: list[Cutter] = []

    async def connect(self, cutter: Cutter | None = None) -> None:
        """Connect both ends, as after their HELLOs: a new session, or this one resumed."""
        ours, theirs = socket.socketpair()
        if cutter is not None:
            near, far = theirs, socket.socketpair()
            theirs = far[0]
            self._cutters.append(cutter)
            await cutter.between(near, far[1])
        client, agent = self.client.mux, self.agent.mux
        client_received, agent_received = client.received, agent.received
        assert client.resumable(agent_received) and agent.resumable(client_received)
        self.carrying = []
        for mux, sock, confirmed in (
            (client, ours, agent_received),
            (agent, theirs, client_received),
        ):
            reader, writer = await asyncio.open_unix_connection(sock=sock)
            self._writers.append(writer)
            self.carrying.append(asyncio.create_task(mux.carry(reader, writer, confirmed)))

    async def ended(self) -> list[str]:
        """Wait until the connection has ended at both ends; return the reason that each gives."""
        reasons = list(await asyncio.gather(*self.carrying))
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        return reasons

    async def abandon(self) -> None:
        """Stop serving the connection at both ends; it stays open, with what is in it."""
        for task in self.carrying:
            task.cancel()
        await asyncio.gather(*self.carrying, return_exceptions=True)
        self.carrying = []

    async def cut(self) -> list[str]:
        """Cut the connection; return the reason that each end gives for its end."""
        for writer in self._writers:
            writer.transport.abort()
        return await self.ended()

    async def aclose(self) -> None:
        """End both sessions and the connection."""
        await self.client.mux.aclose()
        await self.agent.mux.aclose()
        await self.cut()
        for cutter in self._cutters:
            await cutter.aclose()


@asynccontextmanager
async def connected(cutter: Cutter | None = None) -> AsyncIterator[Ends]:
    """Yield two connected ends."""
    ends = Ends()
    await ends.connect(cutter)
    try:
        yield ends
    finally:
        await ends.aclose()


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition()`` holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # what it asks for makes no event
            await asyncio.sleep(0.001)
