"""Two ends of a wire over a socketpair, and what passed between them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from coloctl.errors import PreconditionFailed
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
            elif do == "stubborn":
                try:
                    await self.gate.wait()
                except asyncio.CancelledError:
                    return "done all the same"
        except asyncio.CancelledError:
            self.cancelled.append(do)
            raise
        return arguments.get("value")


class Ends:
    """Both ends of a session, and the connections that carry it."""

    def __init__(self) -> None:
        self.client, self.agent = WireEnd(odd=True), WireEnd(odd=False)
        self.carrying: list[asyncio.Task[str]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> None:
        """Connect both ends, as after their HELLOs."""
        ours, theirs = socket.socketpair()
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

    async def cut(self) -> list[str]:
        """Cut the connection; return why each end says that it ended."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        return list(await asyncio.gather(*self.carrying))

    async def aclose(self) -> None:
        """End both sessions and the connection."""
        await self.client.mux.aclose()
        await self.agent.mux.aclose()
        await self.cut()


@asynccontextmanager
async def connected() -> AsyncIterator[Ends]:
    """Yield two connected ends."""
    ends = Ends()
    await ends.connect()
    try:
        yield ends
    finally:
        await ends.aclose()


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition()`` holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # what it asks for makes no event
            await asyncio.sleep(0.001)
