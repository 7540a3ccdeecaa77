"""Take over standard input and output as the streams of one connection.

Called by `host.agent.main`, and by `host.agent.stay` for what another agent passes on. A server of
ssh gives a program one socket for both directions, another program gives two pipes. Invariant:
afterwards descriptor 0 reads nothing and descriptor 1 is standard error, so that no stray output
comes between the frames.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from dataclasses import dataclass, field

from coloctl.errors import UsageError

#: Unread bytes that a connection keeps before it lets the sender wait.
LIMIT = 256 << 10


@dataclass
class ClientConnection:
    """Both directions of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    into: asyncio.BaseTransport  #: what ``reader`` reads; that of ``writer`` where both are one
    #: The unused direction of each of two sockets, which would close it when it is collected.
    unused: list[asyncio.StreamWriter] = field(default_factory=list)

    def pause(self) -> tuple[int, int]:
        """Read no more, and return the descriptors of both directions, which stay this object's."""
        assert isinstance(self.into, asyncio.ReadTransport)
        self.into.pause_reading()
        return _descriptor(self.into), _descriptor(self.writer.transport)

    def resume(self) -> None:
        """Read again after `pause`."""
        assert isinstance(self.into, asyncio.ReadTransport)
        self.into.resume_reading()

    def close(self) -> None:
        """Close both directions; what was not sent by now is not sent any more."""
        for writer in (self.writer, *self.unused):
            if not writer.transport.is_closing():  # else a pipe's would raise
                writer.transport.abort()
        if not self.into.is_closing():
            self.into.close()


def take_standard() -> tuple[int, int]:
    """Return descriptors that were standard input and output until now."""
    taken = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(null, 0)
        os.dup2(2, 1)
    finally:
        os.close(null)
    return taken


async def connect(into: int, out: int) -> ClientConnection:
    """Make a connection that reads ``into`` and writes ``out``, and owns both from now on.

    Raises `UsageError` for what is no connection: a file, a terminal, /dev/null.
    """
    modes = {one: os.fstat(one) for one in (into, out)}
    for one, which in ((into, "input"), (out, "output")):
        if not (stat.S_ISSOCK(modes[one].st_mode) or stat.S_ISFIFO(modes[one].st_mode)):
            raise UsageError(
                f"Standard {which} of the agent is no connection.",
                hint="a coloctl on another machine starts the agent over ssh; it is not typed",
            )
    sockets = {one for one in (into, out) if stat.S_ISSOCK(modes[one].st_mode)}
    if len(sockets) == 2 and modes[into].st_ino == modes[out].st_ino:
        os.close(out)
        reader, writer = await _socket(into)
        return ClientConnection(reader, writer, writer.transport)
    unused: list[asyncio.StreamWriter] = []
    if into in sockets:
        reader, writer = await _socket(into)
        unused.append(writer)
        read_end: asyncio.BaseTransport = writer.transport
    else:
        reader, read_end = await _pipe_reader(into)
    _, writer = await _socket(out) if out in sockets else await _pipe_writer(out)
    return ClientConnection(reader, writer, read_end, unused)


async def _socket(descriptor: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket(fileno=descriptor)
    if sock.family == socket.AF_UNIX:
        return await asyncio.open_unix_connection(sock=sock, limit=LIMIT)
    return await asyncio.open_connection(sock=sock, limit=LIMIT)


def _descriptor(transport: asyncio.BaseTransport) -> int:
    end = transport.get_extra_info("socket") or transport.get_extra_info("pipe")
    return int(end.fileno())


async def _pipe_reader(descriptor: int) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    reader = asyncio.StreamReader(LIMIT)
    protocol = asyncio.StreamReaderProtocol(reader)
    pipe = os.fdopen(descriptor, "rb", 0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    return reader, transport


async def _pipe_writer(descriptor: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(LIMIT)
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "wb", 0)
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
