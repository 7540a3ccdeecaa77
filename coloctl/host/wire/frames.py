"""Cut messages into frames and join them again; send and receive the HELLO of a connection.

Called by `host.wire.mux`, which decides what is sent, by `host.wire.lanes`, which orders it, by
`host.wire.stream` and by `host.wire.resend`. A frame is `!IBI`: length of its payload, kind,
number; then the payload. `MORE` in the kind: the message goes on in another frame of that kind and
number. A message is cut, so that what is urgent waits for one piece only.

Invariant: however the byte stream is cut, the same frames come out of it.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

#: Version of frames, messages and operations. Both ends must have the same.
PROTOCOL = 1
#: The longest payload of a frame, bytes: over 1 Gbit/s one takes 0.13 ms.
PIECE = 16 << 10
#: The longest message, bytes. The longest answers are files of a run; base64 adds a third.
MESSAGE_MAX = 24 << 20
#: In the byte of the kind: the message goes on in a later frame.
MORE = 0x80

_HEAD = struct.Struct("!IBI")


class FrameKind(IntEnum):
    """Kind of a frame; the number in its head is that of a request or of a stream, else 0."""

    HELLO = 1  #: first frame each way, JSON; not counted
    ASK = 2  #: request
    ANSWER = 3  #: request; exactly one for each ASK
    CANCEL = 4  #: request
    PUSH = 5  #: JSON that must arrive
    BEAT = 6  #: JSON of which only the newest matters; its number is the beat's; not counted
    DATA = 7  #: stream; bytes
    CREDIT = 8  #: stream; u32: bytes that were read and may be sent again
    END = 9  #: stream; no more bytes come in this direction
    RESET = 10  #: stream; a sentence: both directions are over
    HOLD = 11  #: stream; u32: the hold whose descriptor belongs to the first byte of the next DATA
    ACK = 12  #: u64: counted frames that were received in this session; not counted
    BYE = 13  #: JSON: the session ends now


#: The others are counted by both ends, and kept until the peer has acknowledged them.
UNCOUNTED = frozenset({FrameKind.HELLO, FrameKind.BEAT, FrameKind.ACK})


_KINDS = frozenset(kind.value for kind in FrameKind)


class FrameError(Exception):
    """Bytes that are no frame, or a frame out of place; the sentence is meant for the log."""


@dataclass(frozen=True)
class Frame:
    """One piece of a message, the whole of it where ``more`` is False and none came before."""

    kind: FrameKind
    number: int
    payload: bytes
    more: bool = False

    def encode(self) -> bytes:
        """Encode the frame as it travels."""
        kind = self.kind | MORE if self.more else self.kind
        return _HEAD.pack(len(self.payload), kind, self.number) + self.payload


def cut(kind: FrameKind, number: int, message: bytes) -> Iterator[Frame]:
    """Cut a message into frames, at least one; raises `FrameError` where it is too long."""
    if len(message) > MESSAGE_MAX:
        raise FrameError(f"A message of {len(message)} bytes is longer than {MESSAGE_MAX}.")
    last = max(0, len(message) - 1) // PIECE * PIECE
    for begin in range(0, last + 1, PIECE):
        yield Frame(kind, number, message[begin : begin + PIECE], begin < last)


class FrameSplitter:
    """Cuts the byte stream of one connection into frames, wherever the reads happened to end."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Add ``data`` and iterate over every frame that is complete now.

        Raises `FrameError`: the stream is of no further use then.
        """
        self._pending += data
        at = 0
        try:
            while len(self._pending) - at >= _HEAD.size:
                length, kind, number = _head(self._pending[at : at + _HEAD.size])
                begin = at + _HEAD.size
                if len(self._pending) - begin < length:
                    return
                at = begin + length
                payload = bytes(self._pending[begin:at])
                yield Frame(FrameKind(kind & ~MORE), number, payload, bool(kind & MORE))
        finally:
            del self._pending[:at]


def _head(raw: bytes | bytearray) -> tuple[int, int, int]:
    length, kind, number = _HEAD.unpack(raw)
    if length > PIECE or kind & ~MORE not in _KINDS:
        raise FrameError(f"What came is no frame of this protocol: {bytes(raw)!r}.")
    return length, kind, number


class Joiner:
    """Joins the pieces of cut messages; those of several messages may come in turn."""

    def __init__(self) -> None:
        self._begun: dict[tuple[FrameKind, int], bytearray] = {}

    def add(self, frame: Frame) -> bytes | None:
        """Add a piece; return the whole message with its last one, else None.

        Raises `FrameError` where it grows too long.
        """
        key = frame.kind, frame.number
        if not frame.more and key not in self._begun:
            return frame.payload
        begun = self._begun.setdefault(key, bytearray())
        begun += frame.payload
        if len(begun) > MESSAGE_MAX:
            raise FrameError(f"A message of more than {MESSAGE_MAX} bytes came.")
        if frame.more:
            return None
        return bytes(self._begun.pop(key))

    def drop_uncounted(self) -> None:
        """Drop the pieces of beats that a connection took along: they are not sent again."""
        for key in [key for key in self._begun if key[0] in UNCOUNTED]:
            del self._begun[key]


def encode_json(document: object) -> bytes:
    """Encode a message; raises TypeError or ValueError for what JSON cannot hold."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def decode_json(message: bytes) -> dict[str, Any]:
    """Decode a message that is a JSON object; raises `FrameError`."""
    try:
        document = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"A message is not valid JSON: {error}.") from None
    if not isinstance(document, dict):
        raise FrameError("A message is no JSON object.")
    return document


async def send_hello(writer: asyncio.StreamWriter, document: Mapping[str, Any]) -> None:
    """Send the first frame of a connection; raises OSError, `FrameError` where it is too long."""
    message = encode_json(document)
    if len(message) > PIECE:
        raise FrameError(f"A HELLO of {len(message)} bytes is longer than {PIECE}.")
    writer.write(Frame(FrameKind.HELLO, 0, message).encode())
    await writer.drain()


async def receive_hello(reader: asyncio.StreamReader, deadline_s: float) -> dict[str, Any]:
    """Receive the peer's first frame.

    Raises `FrameError` where something else comes, EOFError where the connection ended, OSError
    where it broke, and TimeoutError.
    """
    async with asyncio.timeout(deadline_s):
        length, kind, _ = _head(await reader.readexactly(_HEAD.size))
        if kind != FrameKind.HELLO:
            raise FrameError(f"The connection begins with {FrameKind(kind & ~MORE).name}.")
        return decode_json(await reader.readexactly(length))
