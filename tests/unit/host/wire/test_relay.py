"""A relay hands bytes and descriptors on: both ends are real unix sockets with SCM_RIGHTS."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.wires import Ends, connected

from coloctl.errors import Unreachable
from coloctl.host.wire.relay import relay
from coloctl.host.wire.stream import WINDOW
from coloctl.host.wire.token import Tokens

pytestmark = pytest.mark.unit

HALF = bytes(range(256)) * 2048  # 512 KiB


class Relayed:
    """A local socket at each end, with a relay of each to one stream."""

    def __init__(self, ends: Ends) -> None:
        self.tokens = Tokens()
        self.held: dict[int, int] = {}
        self.near, near = socket.socketpair()
        self.far, far = socket.socketpair()
        self.stream = ends.client.mux.stream()
        far_stream = ends.agent.mux.stream(self.stream.number)
        self.relays = [
            asyncio.create_task(relay(near, self.stream, hold_of=self.tokens.hold_of)),
            asyncio.create_task(relay(far, far_stream, descriptor_of=self.held.get)),
        ]

    async def receive(self) -> tuple[bytes, list[tuple[int, int]]]:
        """Receive to the end; return the bytes, and each descriptor with the position after it."""
        data, descriptors = bytearray(), []
        while True:
            piece, came, _, _ = await asyncio.to_thread(socket.recv_fds, self.far, 4096, 4)
            data += piece
            descriptors += [(len(data), one) for one in came]
            if not piece:
                return bytes(data), descriptors


@asynccontextmanager
async def relayed() -> AsyncIterator[Relayed]:
    """Yield a relay, and leave no socket and no task."""
    async with connected() as ends:
        both = Relayed(ends)
        try:
            yield both
        finally:
            both.near.close()
            both.far.close()
            for task in both.relays:
                task.cancel()
            await asyncio.gather(*both.relays, return_exceptions=True)


def send(sock: socket.socket, *parts: bytes | int) -> None:
    """Send bytes, and descriptors with a blank each, as a QMP session does; then end."""
    for part in parts:
        if isinstance(part, bytes):
            sock.sendall(part)
        else:
            socket.send_fds(sock, [b" "], [part])
    sock.shutdown(socket.SHUT_WR)


async def test_a_descriptor_arrives_with_its_byte_in_the_middle_of_a_megabyte() -> None:
    async with relayed() as both:
        real = os.memfd_create("held")
        both.held[7] = real
        with both.tokens.make(7) as token:
            sending = asyncio.to_thread(send, both.near, HALF, token.fileno(), HALF)
            _, (data, descriptors) = await asyncio.gather(sending, both.receive())
        assert data == HALF + b" " + HALF
        assert [at for at, _ in descriptors] == [len(HALF) + 1]
        assert os.path.samestat(os.fstat(descriptors[0][1]), os.fstat(real))
        os.close(descriptors[0][1])
        os.close(real)
        both.far.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(both.near.recv, 1) == b""
        await asyncio.gather(*both.relays)


async def test_a_token_that_was_closed_on_the_way_is_still_one() -> None:
    async with relayed() as both:
        both.held[1] = os.memfd_create("held")
        token = both.tokens.make(1)
        socket.send_fds(both.near, [b" "], [token.fileno()])
        token.close()
        assert token.fileno() == -1
        both.near.shutdown(socket.SHUT_WR)
        data, descriptors = await both.receive()
        assert (data, len(descriptors)) == (b" ", 1)
        os.close(descriptors[0][1])
        os.close(both.held[1])


async def test_the_byte_of_a_released_hold_goes_without_its_descriptor() -> None:
    async with relayed() as both:
        with both.tokens.make(9) as token:
            send(both.near, b"before", token.fileno(), b"after")
            assert await both.receive() == (b"before after", [])


@pytest.mark.parametrize("kind", ["file", "pipe", "other session", "two"])
async def test_a_foreign_descriptor_is_refused(kind: str) -> None:
    async with relayed() as both:
        tokens = Tokens() if kind == "other session" else both.tokens
        end, other = os.pipe()
        file = os.open("/proc/self/stat", os.O_RDONLY)
        with tokens.make(1) as token:
            given = {"file": [file], "pipe": [end]}.get(kind, [token.fileno()])
            socket.send_fds(both.near, [b"x"], given * (2 if kind == "two" else 1))
            assert await asyncio.to_thread(both.near.recv, 1) == b""
        for one in (end, other, file):
            os.close(one)
        assert await asyncio.to_thread(both.far.recv, 9) == b""
        with pytest.raises(Unreachable, match="none of the other machine's"):
            await both.stream.read()


async def test_the_end_of_one_direction_leaves_the_other() -> None:
    async with relayed() as both:
        both.near.sendall(b"question")
        both.near.shutdown(socket.SHUT_WR)
        assert (await both.receive())[0] == b"question"
        both.far.sendall(b"answer")
        both.far.close()
        assert await asyncio.to_thread(both.near.recv, 99) == b"answer"
        assert await asyncio.to_thread(both.near.recv, 99) == b""
        await asyncio.gather(*both.relays)


@pytest.mark.parametrize("which", [0, 1])
async def test_a_relay_that_is_cancelled_ends_the_other(which: int) -> None:
    async with relayed() as both:
        both.near.sendall(b"x")
        assert await asyncio.to_thread(both.far.recv, 1) == b"x"
        both.relays[which].cancel()
        await asyncio.wait(both.relays)
        assert both.relays[which].cancelled() and not both.relays[1 - which].exception()
        assert both.near.recv(1) == both.far.recv(1) == b""


async def test_a_socket_that_is_closed_while_much_is_under_way_ends_both() -> None:
    """What is still on its way to it is dropped, and its end is passed on."""
    async with relayed() as both:
        sending = asyncio.create_task(asyncio.to_thread(both.near.sendall, HALF * 4))
        assert await asyncio.to_thread(both.far.recv, 1)
        both.far.close()
        await sending
        assert await asyncio.to_thread(both.near.recv, 1) == b""
        both.near.shutdown(socket.SHUT_WR)
        await asyncio.gather(*both.relays)


async def test_what_a_process_sent_before_it_ended_arrives_though_it_is_written_to() -> None:
    """It ended with a byte unread, so its socket is reset; more than a window is on its way.

    No more than a window and one socket's buffer hold in any case: nothing is read meanwhile.
    """
    sent = bytes(WINDOW + (32 << 10)) + b"the last event"
    async with relayed() as both:
        both.near.sendall(b"probe")
        await asyncio.to_thread(both.far.recv, 1, socket.MSG_PEEK)
        await asyncio.to_thread(both.far.sendall, sent)
        both.far.close()
        both.near.sendall(b"probe")
        both.near.setblocking(False)
        loop, data = asyncio.get_running_loop(), b""
        while piece := await loop.sock_recv(both.near, 65536):
            data += piece
            await asyncio.sleep(0.001)
        assert data == sent
        both.near.shutdown(socket.SHUT_WR)
        await asyncio.gather(*both.relays)
