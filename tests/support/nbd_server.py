"""An NBD server in the memory of a test: it answers when it is read from, in any order it likes.

Written from the protocol's document, not from `coloctl.nbd.wire`, so that the two can disagree.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Extents = Iterable[tuple[int, int, int]]  #: begin, end, flags


@dataclass
class Export:
    """A disk that is served, and what is told about it."""

    size: int
    read: Callable[[int, int], bytes]
    write: Callable[[int, bytes], None] | None = None
    #: By the name of a context: all extents of the disk, in order.
    contexts: Mapping[str, Callable[[], Extents]] = field(default_factory=dict)
    can_zero: bool = True
    read_error: bool = False  #: from now on every read fails


class Connection:
    """The server's end of one connection, and the transport of a `Client` at the same time."""

    def __init__(
        self,
        exports: Mapping[str, Export],
        chance: random.Random,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        """``step`` is called before and after each request is carried out."""
        self._exports, self._chance, self._step = exports, chance, step
        self._in, self._out = bytearray(), bytearray()
        self._out += b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3)
        self._export: Export | None = None
        self._contexts: dict[int, str] = {}
        self._greeted = False
        self.queue: list[tuple[int, int, int, int, bytes]] = []
        self.closed = False  #: by the client
        self.dead = False  #: the server is gone

    # -- the transport

    def sendall(self, data: object, /) -> None:
        if self.dead:
            raise BrokenPipeError(32, "Broken pipe")
        self._in += bytes(data)  # type: ignore[call-overload]
        while self._take():
            pass

    def recv_into(self, buffer: memoryview, /) -> int:
        while not self._out:
            if self.dead or not self.queue:
                return 0
            self._carry_out(self.queue.pop(self._chance.randrange(len(self.queue))))
        count = min(len(buffer), len(self._out))
        buffer[:count] = self._out[:count]
        del self._out[:count]
        return count

    def close(self) -> None:
        self.closed = True

    # -- the handshake

    def _take(self) -> bool:
        if not self._greeted:
            if len(self._in) < 4:
                return False
            assert bytes(self._in[:4]) == struct.pack(">I", 3)
            del self._in[:4]
            self._greeted = True
        return self._take_option() if self._export is None else self._take_request()

    def _take_option(self) -> bool:
        if len(self._in) < 16:
            return False
        magic, kind, length = struct.unpack_from(">8sII", self._in)
        assert magic == b"IHAVEOPT"
        if len(self._in) < 16 + length:
            return False
        data = bytes(self._in[16 : 16 + length])
        del self._in[: 16 + length]
        if kind == 10:
            self._choose_contexts(kind, data)
        elif kind == 7:
            (count,) = struct.unpack_from(">I", data)
            name = data[4 : 4 + count].decode()
            if name not in self._exports:
                self._reply_option(kind, (1 << 31) | 6, b"no such export")
                return True
            self._export = self._exports[name]
            flags = 1 | (4 if self._export.write else 2)
            flags |= 64 if self._export.can_zero and self._export.write else 0
            self._reply_option(kind, 3, struct.pack(">HQH", 0, self._export.size, flags))
            self._reply_option(kind, 1)
        else:
            assert kind == 8
            self._reply_option(kind, 1)
        return True

    def _choose_contexts(self, kind: int, data: bytes) -> None:
        (count,) = struct.unpack_from(">I", data)
        export = self._exports.get(data[4 : 4 + count].decode())
        at = 4 + count + 4
        while at < len(data) and export:
            (count,) = struct.unpack_from(">I", data, at)
            name = data[at + 4 : at + 4 + count].decode()
            at += 4 + count
            if name in export.contexts:
                number = 7 + len(self._contexts)
                self._contexts[number] = name
                self._reply_option(kind, 4, struct.pack(">I", number) + name.encode())
        self._reply_option(kind, 1)

    def _reply_option(self, kind: int, what: int, data: bytes = b"") -> None:
        self._out += struct.pack(">QIII", 0x3E889045565A9, kind, what, len(data)) + data

    # -- requests

    def _take_request(self) -> bool:
        if len(self._in) < 28:
            return False
        magic, _, kind, cookie, offset, length = struct.unpack_from(">IHHQQI", self._in)
        assert magic == 0x25609513
        follows = length if kind == 1 else 0
        if len(self._in) < 28 + follows:
            return False
        data = bytes(self._in[28 : 28 + follows])
        del self._in[: 28 + follows]
        if kind == 2:
            self.closed = True
        else:
            self.queue.append((kind, cookie, offset, length, data))
        return True

    def _carry_out(self, request: tuple[int, int, int, int, bytes]) -> None:
        kind, cookie, offset, length, data = request
        export = self._export
        assert export is not None
        assert offset + length <= export.size
        self._step()
        if self.dead:
            return
        if kind == 0 and export.read_error:
            message = b"Input/output error"
            payload = struct.pack(">IH", 5, len(message)) + message
            self._chunk(1, 0x8001, cookie, payload)
        elif kind == 0:
            self._send_data(cookie, offset, export.read(offset, length))
        elif kind == 7:
            self._send_status(export, cookie, offset, length)
        else:
            if kind in (1, 6):
                assert export.write is not None
                export.write(offset, data if kind == 1 else bytes(length))
            self._out += struct.pack(">IIQ", 0x67446698, 0, cookie)
        self._step()

    def _send_data(self, cookie: int, offset: int, data: bytes) -> None:
        """In one chunk or several; zeros as a hole, sometimes."""
        cut = self._chance.randrange(1, len(data) + 1)
        for begin, part in ((0, data[:cut]), (cut, data[cut:])):
            if not part:
                continue
            if not any(part) and self._chance.random() < 0.5:
                self._chunk(0, 2, cookie, struct.pack(">QI", offset + begin, len(part)))
            else:
                self._chunk(0, 1, cookie, struct.pack(">Q", offset + begin) + part)
        self._chunk(1, 0, cookie, b"")

    def _send_status(self, export: Export, cookie: int, offset: int, length: int) -> None:
        """Often cut short, and sometimes longer than what was asked for."""
        for number, name in self._contexts.items():
            told = []
            for begin, end, flags in export.contexts[name]():
                if end > offset and begin < offset + length:
                    told.append(struct.pack(">II", end - max(begin, offset), flags))
            told = told[: self._chance.randrange(1, len(told) + 1)]
            self._chunk(0, 5, cookie, struct.pack(">I", number) + b"".join(told))
        self._chunk(1, 0, cookie, b"")

    def _chunk(self, flags: int, kind: int, cookie: int, payload: bytes) -> None:
        self._out += struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(payload)) + payload


def whole(size: int, step: int, flags: Callable[[int], int]) -> Extents:
    """Extents of a disk from the flags of each ``step`` bytes."""
    begin, told = 0, flags(0)
    for at in range(step, size, step):
        if flags(at) != told:
            yield begin, at, told
            begin, told = at, flags(at)
    yield begin, size, told
