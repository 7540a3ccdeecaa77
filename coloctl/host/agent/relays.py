"""Relay the monitors that a client has opened, each to a stream of its own.

Made by `host.agent.session`; calls `host.wire.relay` for the bytes and `host.listen` to find the
process that greets. The kernel notes the sender of the first bytes, so that is looked at before any
byte is taken. Invariant: a relay ends with its session, and its socket is closed then.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from coloctl.errors import ColoctlError, Unreachable
from coloctl.host.identity import Identity
from coloctl.host.listen import speaker
from coloctl.host.wire.mux import Mux
from coloctl.host.wire.relay import relay
from coloctl.host.wire.stream import Chunk, WireStream

#: A server that has not sent its greeting by then is relayed without one. A QEMU greets when its
#: main loop runs: seconds after its start under TCG on a loaded machine.
GREETING_WAIT_S = 60.0


class Relays:
    """The relayed monitors of one session, by the numbers of their streams."""

    def __init__(self, mux: Mux, descriptor_of: Callable[[int], int | None]) -> None:
        self._mux, self._descriptor_of = mux, descriptor_of
        self._relays: dict[int, tuple[asyncio.Task[None], asyncio.Future[Identity]]] = {}

    def add(self, sock: socket.socket) -> int:
        """Relay a connected monitor to a new stream, and return the stream's number."""
        stream = self._mux.stream()
        greeted: asyncio.Future[Identity] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._relay(sock, stream, greeted))
        self._relays[stream.number] = task, greeted
        task.add_done_callback(lambda _: self._relays.pop(stream.number, None))
        return stream.number

    async def speaker(self, stream: int, deadline_s: float) -> Identity:
        """Return the process that sent the first bytes over that stream; raises `Unreachable`."""
        if (found := self._relays.get(stream)) is None:
            raise Unreachable("A monitor hung up before its process was known.")
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.shield(found[1])
        except TimeoutError:
            raise Unreachable(f"A monitor sent nothing for {deadline_s:g} s.") from None

    async def aclose(self) -> None:
        """End all relays."""
        tasks = [task for task, _ in self._relays.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay(
        self, sock: socket.socket, stream: WireStream, greeted: asyncio.Future[Identity]
    ) -> None:
        try:
            greeted.set_result(await _greeting(sock, stream))
        except (ColoctlError, OSError) as error:
            greeted.set_exception(Unreachable(str(error)))
            greeted.exception()  # it may be that no request waits for it
        except BaseException:
            greeted.cancel()
            sock.close()
            stream.reset("The session has ended.")
            raise
        await relay(sock, stream, descriptor_of=self._descriptor_of)


async def _greeting(sock: socket.socket, stream: WireStream) -> Identity:
    """Find the process that greets at ``sock``; what the client sends before goes through.

    Raises `Unreachable` or OSError.
    """
    greeted = asyncio.create_task(speaker(sock, GREETING_WAIT_S))
    reading: asyncio.Task[Chunk] | None = None
    try:
        while not greeted.done():
            reading = reading or asyncio.create_task(stream.read())
            await asyncio.wait({greeted, reading}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                if not (chunk := reading.result()).data:
                    raise Unreachable("A monitor was closed before it sent anything.")
                await asyncio.get_running_loop().sock_sendall(sock, chunk.data)
                reading = None
        return greeted.result()
    finally:
        # A read that is cancelled has taken nothing from the stream.
        waiting = [task for task in (greeted, reading) if task is not None]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
