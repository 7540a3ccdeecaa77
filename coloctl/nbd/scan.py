"""Read a disk from its beginning to its end and hash it chunk by chunk; holes are not read.

Used by `nbd.mend`, `nbd.compare` and `nbd.digest`; `colo.difference` and
`supervisor.dialogue_disks` take its `Grain`. Reads through `nbd.client`.
"""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from coloctl.nbd import wire
from coloctl.nbd.client import NbdClient, NbdRequest

#: Bytes of a digest. With the key of each run unknown to the guest, two different chunks are taken
#: for equal once in 2^128.
DIGEST = 16
#: The part of a disk that is asked about at once; the server cuts an answer short as it likes.
SPAN = 1 << 30


@dataclass(frozen=True)
class Grain:
    """The portions in which a disk is handled, bytes.

    A chunk is compared and sent as a whole. 64 KiB: the cluster of qcow2, so that a chunk is
    written in one piece there; its digest is a 4096th of it, so that comparing a TiB sends 256 MiB;
    and a changed sector costs no more than half a millisecond of a 1 Gbit/s link.
    """

    chunk: int = 64 * 1024
    piece: int = 1024 * 1024  #: read or written by one request; a multiple of ``chunk``
    ahead: int = 3  #: pieces read ahead of the one that is hashed

    def up(self, offset: int) -> int:
        """Round an offset up to a whole chunk."""
        return -(-offset // self.chunk) * self.chunk

    def down(self, offset: int) -> int:
        """Round an offset down to a whole chunk."""
        return offset // self.chunk * self.chunk


#: Beside a guest in COLO: a checkpoint waits until QEMU has handed over every answer that is under
#: way. One of 64 KiB fits into the buffers of a socket, so that a reader that is starved or
#: stopped holds nothing.
GENTLE = Grain(piece=64 * 1024, ahead=0)


@dataclass(frozen=True)
class Range:
    """Whole chunks of a disk (the last may be short) that are all zeros, or may hold data."""

    begin: int
    end: int
    zeros: bool


@dataclass(frozen=True)
class Piece:
    """Bytes of a disk from ``begin`` on; ``data`` is None where all of them are zeros."""

    begin: int
    end: int
    data: memoryview | None

    def part(self, begin: int, end: int) -> memoryview | None:
        """Return the bytes of that range, which must be inside."""
        return None if self.data is None else self.data[begin - self.begin : end - self.begin]


def allocation(client: NbdClient, grain: Grain) -> Iterator[Range]:
    """Yield the whole disk in order; zeros only where the server reports them of a whole chunk."""
    if not client.knows(wire.BASE_ALLOCATION):
        if client.size:
            yield Range(0, client.size, False)
        return
    reached = 0  # all before it was yielded
    for extent in _extents(client, wire.BASE_ALLOCATION):
        zeros = bool(extent.flags & wire.READS_ZERO)
        last = extent.end == client.size
        # A chunk that only begins here goes with what follows, unless data is in it already.
        end = extent.end if last else grain.down(extent.end) if zeros else grain.up(extent.end)
        end = min(end, client.size)
        if end > reached:
            yield Range(reached, end, zeros)
            reached = end


def dirty(client: NbdClient, bitmap: str, grain: Grain) -> Iterator[Range]:
    """Yield the chunks in which that exported bitmap has a bit set, in order."""
    reached = 0
    for extent in _extents(client, wire.dirty_bitmap(bitmap)):
        if extent.flags & wire.DIRTY:
            begin = max(reached, grain.down(extent.offset))
            reached = min(grain.up(extent.end), client.size)
            if begin < reached:
                yield Range(begin, reached, False)


def _extents(client: NbdClient, context: str) -> Iterator[wire.Extent]:
    offset = 0
    while offset < client.size:
        for extent in client.status(context, offset, min(SPAN, client.size - offset)):
            yield extent
            offset = extent.end


def pieces(client: NbdClient, ranges: Iterable[Range], grain: Grain) -> Iterator[Piece]:
    """Yield the content of ``ranges``, in order; some pieces are read ahead."""
    waiting: deque[Piece | NbdRequest] = deque()
    reads = 0
    for one in ranges:
        for begin in [one.begin] if one.zeros else range(one.begin, one.end, grain.piece):
            if one.zeros:
                waiting.append(Piece(one.begin, one.end, None))
            else:
                waiting.append(client.read(begin, min(grain.piece, one.end - begin)))
                reads += 1
            while waiting and (isinstance(waiting[0], Piece) or reads > grain.ahead):
                reads -= isinstance(waiting[0], NbdRequest)
                yield _taken(client, waiting.popleft())
    while waiting:
        yield _taken(client, waiting.popleft())


def _taken(client: NbdClient, waiting: Piece | NbdRequest) -> Piece:
    if isinstance(waiting, Piece):
        return waiting
    data = client.wait(waiting).data
    return Piece(waiting.offset, waiting.offset + waiting.length, memoryview(data))


def is_zero(chunk: memoryview) -> bool:
    """Return whether all bytes are zero, as fast as memory is; comparing a view would be slower."""
    return bytes(chunk) == bytes(len(chunk))


def digest(chunk: memoryview | bytes, key: bytes) -> bytes:
    """Compute the digest that stands for the content of a chunk."""
    return hashlib.blake2b(chunk, digest_size=DIGEST, key=key).digest()


@functools.lru_cache(maxsize=4)
def zero_digest(length: int, key: bytes) -> bytes:
    """Compute the digest of a chunk of zeros."""
    return digest(bytes(length), key)
