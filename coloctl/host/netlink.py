"""Frame and read the messages of the kernel's netlink sockets; pure.

Called by `host.nft` for packet rules, by `host.netdevice` for network devices and by
`host.delivery` for TCP connections. A message has a header and a body of fixed fields, and
attributes after them, which may hold attributes.

Invariant: what the kernel sends in another length than it announces ends the reading, and raises no
error of its own.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

# Numbers from linux/netlink.h.
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
ERROR, DONE = 2, 3
_NESTED = 0x8000

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_CODE = struct.Struct("=i")
#: The kernel's messages of one receive are not longer.
CHUNK = 65536


def framed(kind: int, flags: int, number: int, body: bytes) -> bytes:
    """Build one message; ``number`` is what its answer refers to."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, number, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Split what one receive gave: type, sequence number and body of each message."""
    while len(data) >= _HEADER.size:
        length, kind, _, number, _ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            return
        yield kind, number, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def require_done(body: bytes) -> None:
    """Raise the `OSError` of an error message, if it reports one."""
    if code := -_CODE.unpack_from(body)[0]:
        raise OSError(code, os.strerror(code))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split attributes: the type and value of each."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & ~_NESTED, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def attribute(kind: int, value: bytes) -> bytes:
    """Build one attribute, filled up to the kernel's alignment."""
    size = _ATTRIBUTE.size + len(value)
    return (_ATTRIBUTE.pack(size, kind) + value).ljust(_aligned(size), b"\0")


def nested(kind: int, *inner: bytes) -> bytes:
    """Build an attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(inner))


def string(kind: int, value: str) -> bytes:
    """Build an attribute of text, which ends with a zero byte."""
    return attribute(kind, value.encode() + b"\0")


def _aligned(size: int) -> int:
    return -(-size // 4) * 4
