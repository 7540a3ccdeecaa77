"""Relay a connected local socket to a stream of the wire, with descriptors, until both ends end.

Called by `host.remote.host` for each monitor, and by `host.agent.relays` there for each socket of a
QEMU. Both directions end by themselves: the end of one is passed on, and the other goes
on.

Invariant: a descriptor arrives with the byte that it was sent with. A read of a local socket ends
with the byte that carried a descriptor (tried here: `before ` and a blank with one come as one
read, what was sent after them does not), so it belongs to the last byte of what was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from coloctl.errors import Unreachable
from coloctl.host.ready import until_readable, until_writable
from coloctl.host.wire.frames import PIECE
from coloctl.host.wire.stream import Chunk, WireStream

#: Descriptors that one read may bring; QEMU takes one at a time, as do we.
DESCRIPTORS_MAX = 4


async def relay(
    sock: socket.socket,
    stream: WireStream,
    *,
    hold_of: Callable[[int], int | None] = lambda descriptor: None,
    descriptor_of: Callable[[int], int | None] = lambda hold: None,
) -> None:
    """Relay both directions until both have ended or one is broken; closes ``sock`` in any case.

    The supervisor's end gives ``hold_of`` (`Tokens.hold_of`): a descriptor that came through
    ``sock`` goes with its byte, and a foreign one resets the stream. The agent's end gives
    ``descriptor_of``: the descriptor of a hold is passed into ``sock`` with that byte; where the
    hold was released already, the byte goes without. Cancelled, it resets the stream.
    """
    sock.setblocking(False)
    broken = "The relay was ended."
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_outwards(sock, stream, hold_of))
            group.create_task(_inwards(stream, sock, descriptor_of))
    except* Unreachable as group_of_errors:
        broken = str(group_of_errors.exceptions[0])
    except* OSError as group_of_errors:
        broken = f"The socket broke: {group_of_errors.exceptions[0]}."
    finally:
        stream.reset(broken)  # harmless where both directions have ended
        sock.close()


async def _outwards(
    sock: socket.socket, stream: WireStream, hold_of: Callable[[int], int | None]
) -> None:
    """Relay what is written to the local socket; raises `Unreachable` and OSError.

    A process that ended with unread bytes resets its socket. That is its end too, and all that it
    sent before was read.
    """
    while True:
        try:
            data, descriptors = await _receive(sock)
        except ConnectionError:
            data, descriptors = b"", []
        try:
            holds = [hold_of(one) for one in descriptors]
        finally:
            for one in descriptors:
                os.close(one)
        if not data:
            stream.end()
            return
        if len(holds) > 1 or None in holds:
            raise Unreachable("A descriptor came that is none of the other machine's.")
        await stream.write(data, holds[0] if holds else None)


async def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive bytes with the descriptors that came with the last of them; raises OSError."""
    while True:
        with contextlib.suppress(BlockingIOError):
            data, descriptors, _, _ = socket.recv_fds(
                sock, PIECE, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
            )
            return data, descriptors
        await until_readable(sock.fileno())


async def _inwards(
    stream: WireStream, sock: socket.socket, descriptor_of: Callable[[int], int | None]
) -> None:
    """Relay what comes from the stream; raises `Unreachable` and OSError.

    What comes for a process that has ended is dropped until the stream's end: what the process sent
    last may still be on its way in the other direction.
    """
    gone = False
    while (chunk := await stream.read()).data:
        if not gone:
            try:
                await _hand_over(sock, chunk, descriptor_of)
            except ConnectionError:
                gone = True
    with contextlib.suppress(OSError):  # that process has ended
        sock.shutdown(socket.SHUT_WR)


async def _hand_over(
    sock: socket.socket, chunk: Chunk, descriptor_of: Callable[[int], int | None]
) -> None:
    """Write a chunk to the local socket, with the descriptor that belongs to it; raises OSError."""
    loop, data = asyncio.get_running_loop(), chunk.data
    if chunk.hold is not None and (descriptor := descriptor_of(chunk.hold)) is not None:
        data, last = data[:-1], data[-1:]
        await loop.sock_sendall(sock, data)
        await _send_with(sock, last, descriptor)
    else:
        await loop.sock_sendall(sock, data)


async def _send_with(sock: socket.socket, byte: bytes, descriptor: int) -> None:
    """Send one byte and a descriptor with it; raises OSError."""
    copy = os.dup(descriptor)  # it may be closed while the socket is full
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                socket.send_fds(sock, [byte], [copy])
                return
            await until_writable(sock.fileno())
    finally:
        os.close(copy)
