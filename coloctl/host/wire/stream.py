"""Carry bytes in both directions of one stream, no faster than the other end reads them.

Made by `host.wire.mux` for each stream, read and written by `host.wire.relay`. A stream is over
when both directions have ended, or when one end resets it.

Invariant: of each direction at most `WINDOW` bytes are under way or unread, so that a reader that
stops blocks only its own stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from coloctl.errors import Unreachable
from coloctl.host.wire.frames import PIECE, Frame, FrameError, FrameKind

#: So much of a direction may be under way or unread, bytes.
WINDOW = 256 << 10

SendFrame = Callable[[FrameKind, int, bytes], None]


@dataclass(frozen=True)
class Chunk:
    """Bytes of a stream; b"" is its end. ``hold``: its descriptor belongs to the last byte."""

    data: bytes
    hold: int | None = None


class WireStream:
    """One end of a stream; at most one reader and one writer at a time."""

    def __init__(
        self,
        number: int,
        send: SendFrame,
        resetting: Callable[[int], None],
        over: Callable[[int], None],
    ) -> None:
        self.number = number
        self._send, self._resetting, self._over = send, resetting, over
        self._inbox: deque[Chunk] = deque()
        self._unread = 0  #: bytes in the inbox
        self._uncredited = 0  #: bytes that were read, for which the peer has no credit yet
        self._hold: int | None = None  #: belongs to the first byte of the next DATA
        self._credit = WINDOW
        self._ended_here = self._ended_there = False
        self._why: str | None = None  #: the reason once it was reset
        self._readable, self._writable = asyncio.Event(), asyncio.Event()

    async def read(self, most: int = PIECE) -> Chunk:
        """Return at least one byte and at most so many; b"" after the peer's `end`.

        Raises `Unreachable` once the stream was reset.
        """
        while not self._inbox:
            self._check()
            if self._ended_there:
                return Chunk(b"")
            self._readable.clear()
            await self._readable.wait()
        self._check()
        chunk = self._inbox.popleft()
        if len(chunk.data) > most:
            self._inbox.appendleft(Chunk(chunk.data[most:], chunk.hold))
            chunk = Chunk(chunk.data[:most])
        self._unread -= len(chunk.data)
        self._uncredited += len(chunk.data)
        if self._uncredited >= WINDOW // 2 and not self._ended_there:
            self._send(FrameKind.CREDIT, self.number, self._uncredited.to_bytes(4, "big"))
            self._uncredited = 0
        return chunk

    async def write(self, data: bytes, hold: int | None = None) -> None:
        """Queue ``data`` as the peer's window allows; ``hold`` goes with its last byte.

        Raises `Unreachable` once the stream was reset, and ValueError after `end`, or for a hold
        without a byte.
        """
        if hold is not None and not data:
            raise ValueError("a hold needs a byte to go with")
        at, last = 0, len(data) if hold is None else len(data) - 1
        while at < last:
            await self._until_writable()
            piece = data[at : min(last, at + PIECE, at + self._credit)]
            self._send_data(piece)
            at += len(piece)
        if hold is not None:
            await self._until_writable()
            self._send(FrameKind.HOLD, self.number, hold.to_bytes(4, "big"))
            self._check()
            self._send_data(data[last:])

    def _send_data(self, piece: bytes) -> None:
        self._credit -= len(piece)
        self._send(FrameKind.DATA, self.number, piece)

    async def _until_writable(self) -> None:
        while True:
            self._check()
            if self._ended_here:
                raise ValueError("the stream was ended")
            if self._credit:
                return
            self._writable.clear()
            await self._writable.wait()

    def _check(self) -> None:
        if self._why is not None:
            raise Unreachable(self._why)

    def end(self) -> None:
        """Send the end of this direction after what was written; reading goes on."""
        if self._ended_here or self._why is not None:
            return
        self._ended_here = True
        self._send(FrameKind.END, self.number, b"")
        self._settle()

    def reset(self, why: str) -> None:
        """Abandon both directions at once, here and at the peer; harmless once it is over."""
        if self._why is None and not (self._ended_here and self._ended_there):
            self.lose(why)
            self._resetting(self.number)
            self._send(FrameKind.RESET, self.number, why.encode()[:PIECE])

    def lose(self, why: str) -> None:
        """Note that the stream is over, by the peer's reset or with the session."""
        self._why = why
        self._inbox.clear()
        self._readable.set()
        self._writable.set()

    def receive(self, frame: Frame) -> None:
        """Take a frame of the peer; raises `FrameError` for one that breaks the agreement."""
        if frame.kind is FrameKind.CREDIT:
            self._credit += int.from_bytes(frame.payload, "big")
            self._writable.set()
            return
        if self._ended_there:
            raise FrameError(f"Stream {self.number} goes on after its end.")
        if frame.kind is FrameKind.HOLD:
            self._hold = int.from_bytes(frame.payload, "big")
        elif frame.kind is FrameKind.DATA:
            self._receive_data(frame.payload)
        else:
            self._ended_there = True
            self._settle()
        self._readable.set()

    def _receive_data(self, data: bytes) -> None:
        self._unread += len(data)
        if self._unread + self._uncredited > WINDOW:
            raise FrameError(f"Stream {self.number} sends more than its window.")
        if self._hold is not None and data:
            self._inbox.append(Chunk(data[:1], self._hold))
            self._hold, data = None, data[1:]
        if data:
            self._inbox.append(Chunk(data))

    def _settle(self) -> None:
        if self._ended_here and self._ended_there:
            self._over(self.number)
