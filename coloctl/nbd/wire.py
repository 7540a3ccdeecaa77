"""Pack and unpack the NBD protocol as far as coloctl speaks it; pure.

Used by `nbd.client`; `colo.link` knows a server by its greeting. Fixed newstyle handshake with
structured replies, after the protocol's document (``doc/proto.md`` of NetworkBlockDevice/nbd). QEMU
has spoken all of it since 3.0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

GREETING = struct.Struct(">8s8sH")
MAGIC, OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
FIXED_NEWSTYLE, NO_ZEROES = 1, 2

OPTION = struct.Struct(">8sII")  #: magic, option, bytes that follow
OPTION_REPLY = struct.Struct(">QIII")  #: magic, option, type, bytes that follow
OPTION_REPLY_MAGIC = 0x0003E889045565A9
EXPORT_INFO = struct.Struct(">HQH")  #: of an NBD_INFO_EXPORT: its number 0, size, flags

REQUEST = struct.Struct(">IHHQQI")  #: magic, flags, type, cookie, offset, length
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY = struct.Struct(">IQ")  #: error, cookie; the magic was read before
SIMPLE_MAGIC = 0x67446698
CHUNK = struct.Struct(">HHQI")  #: flags, type, cookie, bytes that follow
CHUNK_MAGIC = 0x668E33EF
CHUNK_DONE = 1

U16, U32, U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")
HOLE = struct.Struct(">QI")  #: offset, length
EXTENT = struct.Struct(">II")  #: length, flags

ERROR_BIT = 1 << 31  #: of an option reply's type
CHUNK_ERROR_BIT = 1 << 15  #: of a chunk's type

#: A longer message is no answer to what we ask; the protocol allows 32 MiB of data at once.
LONGEST = 33 * 1024 * 1024

BASE_ALLOCATION = "base:allocation"
READS_ZERO = 2  #: of an extent of base:allocation
DIRTY = 1  #: of an extent of qemu:dirty-bitmap:NAME


def dirty_bitmap(name: str) -> str:
    """Return QEMU's context for a dirty bitmap that is exported."""
    return f"qemu:dirty-bitmap:{name}"


class Option(IntEnum):
    STARTTLS = 5
    GO = 7
    STRUCTURED_REPLY = 8
    SET_META_CONTEXT = 10


class Reply(IntEnum):
    """Types of option replies."""

    ACK = 1
    INFO = 3
    META_CONTEXT = 4


class RequestType(IntEnum):
    """Types of requests."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class ChunkType(IntEnum):
    """Types of the chunks of a structured reply."""

    NONE = 0
    DATA = 1
    HOLE = 2
    BLOCK_STATUS = 5


class Can(IntFlag):
    """The features that an export offers."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    FLUSH = 4
    WRITE_ZEROES = 64


class NBDFailed(Exception):
    """The error of a server that refused, failed or went away; the message names the request."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class Extent:
    """A range of a disk with the same flags throughout; bytes."""

    offset: int
    length: int
    flags: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def option(kind: Option, data: bytes) -> bytes:
    """Pack an option with its data, as a client sends it."""
    return OPTION.pack(OPTION_MAGIC, kind, len(data)) + data


def text(value: str) -> bytes:
    """Pack a string after its length."""
    raw = value.encode()
    return U32.pack(len(raw)) + raw


def request(kind: RequestType, cookie: int, offset: int = 0, length: int = 0) -> bytes:
    """Pack a request's header; a write's data follows it."""
    return REQUEST.pack(REQUEST_MAGIC, 0, kind, cookie, offset, length)


def error_of(payload: bytes) -> str:
    """Return the message in the payload of an error chunk."""
    number = U32.unpack_from(payload)[0]
    said = payload[6 : 6 + U16.unpack_from(payload, 4)[0]].decode(errors="replace")
    return said or f"error {number}"


def extents(payload: bytes, begin: int, end: int) -> list[Extent]:
    """Unpack the extents of one block-status chunk, from ``begin`` on and cut at ``end``."""
    found = []
    for told, flags in EXTENT.iter_unpack(payload[U32.size :]):
        length = min(told, end - begin)
        if length:
            found.append(Extent(begin, length, flags))
        begin += length
    return found
