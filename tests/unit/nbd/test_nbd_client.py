"""The NBD client against a server that obeys the protocol in every order, and ones that do not."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nbd_server import Connection, Export, whole

from coloctl.nbd.client import NbdClient
from coloctl.nbd.scan import Grain, allocation, dirty, pieces
from coloctl.nbd.wire import NBDFailed

pytestmark = pytest.mark.unit

GRAIN = Grain(chunk=16, piece=32, ahead=2)
CONTEXTS = ("base:allocation", "qemu:dirty-bitmap:x")


def served(disk: bytearray, marks: Iterable[int] = ()) -> Export:
    """A disk and a bitmap of bytes of 8; zeros are told as holes."""
    marked = set(marks)

    def write(at: int, data: bytes) -> None:
        disk[at : at + len(data)] = data

    return Export(
        len(disk),
        lambda at, n: bytes(disk[at : at + n]),
        write,
        {
            CONTEXTS[0]: lambda: whole(len(disk), 8, lambda at: 0 if any(disk[at:][:8]) else 3),
            CONTEXTS[1]: lambda: whole(len(disk), 8, lambda at: int(at // 8 in marked)),
        },
    )


def client_of(export: Export, seed: int = 0, contexts: Iterable[str] = CONTEXTS) -> NbdClient:
    return NbdClient(Connection({"d": export}, random.Random(seed)), "d", contexts)


DISKS = st.lists(st.sampled_from((b"\0" * 8, b"\1" * 8, b"\0\0\0\2")), min_size=1).map(b"".join)


@given(DISKS, st.integers(0, 2**16))
def test_pieces_are_the_disk_and_holes_are_zeros(disk: bytes, seed: int) -> None:
    client = client_of(served(bytearray(disk)), seed)
    assert client.size == len(disk)
    read = bytearray()
    for piece in pieces(client, allocation(client, GRAIN), GRAIN):
        assert piece.begin == len(read)
        assert piece.begin % GRAIN.chunk == 0
        read += bytes(piece.end - piece.begin) if piece.data is None else piece.data
    assert read == disk
    assert not client.unanswered


@given(DISKS, st.sets(st.integers(0, 60)), st.integers(0, 2**16))
def test_every_dirty_chunk_is_told_once_and_no_other(
    disk: bytes, marks: set[int], seed: int
) -> None:
    client = client_of(served(bytearray(disk), marks), seed)
    told = [
        at for one in dirty(client, "x", GRAIN) for at in range(one.begin, one.end, GRAIN.chunk)
    ]
    wanted = {at * 8 // GRAIN.chunk * GRAIN.chunk for at in marks if at * 8 < len(disk)}
    assert told == sorted(wanted)


@given(st.integers(0, 2**16))
def test_writes_and_zeros_arrive_whatever_the_order_of_answers(seed: int) -> None:
    disk = bytearray(b"\7" * 64)
    client = client_of(served(disk), seed)
    asked = [client.write(0, b"abcd"), client.zero(16, 8), client.write(60, b"wxyz")]
    for one in reversed(asked):
        client.wait(one)
    client.flush()
    assert disk == b"abcd" + b"\7" * 12 + bytes(8) + b"\7" * 36 + b"wxyz"
    assert not client.unanswered


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(NBDFailed, match="no such export"):
        NbdClient(Connection({}, random.Random(0)), "d")
    with pytest.raises(NBDFailed, match="has no qemu:dirty-bitmap:y"):
        client_of(served(bytearray(8)), contexts=["qemu:dirty-bitmap:y"])


def test_a_read_that_fails_says_where_and_leaves_nothing_under_way() -> None:
    export = served(bytearray(b"\1" * 64))
    client = client_of(export)
    other, asked = client.write(0, b"x"), client.read(16, 32)
    export.read_error = True
    with pytest.raises(NBDFailed, match="read of 32 bytes at 16: Input/output error"):
        client.wait(asked)
    client.wait(other)
    assert not client.unanswered


def test_a_server_that_goes_leaves_what_it_did_not_answer_counted() -> None:
    connection = Connection({"d": served(bytearray(64))}, random.Random(0))
    client = NbdClient(connection, "d")
    client.write(0, b"x")
    connection.dead = True
    with pytest.raises(NBDFailed, match="closed the connection"):
        client.settle()
    assert client.unanswered == 1


class Told:
    """A server that says these bytes and listens to nothing."""

    def __init__(self, said: bytes) -> None:
        self._said = bytearray(said)

    def sendall(self, data: object, /) -> None:
        return None

    def recv_into(self, buffer: memoryview, /) -> int:
        count = min(len(buffer), len(self._said))
        buffer[:count] = self._said[:count]
        del self._said[:count]
        return count

    def close(self) -> None:
        return None


GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)


def acknowledged(kind: int, what: int = 1, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, kind, what, len(data)) + data


OPEN = (
    GREETING
    + acknowledged(8)
    + acknowledged(7, 3, struct.pack(">HQH", 0, 4096, 1))
    + acknowledged(7)
)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"NBDMAGIC" + bytes(10),
        GREETING[:-1] + b"\0",
        GREETING + bytes(20),
        GREETING + acknowledged(8, 1 << 31 | 1, b"never heard of it"),
        GREETING + struct.pack(">QIII", 0x3E889045565A9, 8, 1, 1 << 30),
    ],
)
def test_what_does_not_speak_nbd_is_a_sentence(said: bytes) -> None:
    with pytest.raises(NBDFailed, match=r"^d: "):
        NbdClient(Told(said), "d")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        bytes(16),
        struct.pack(">IIQ", 0x67446698, 0, 99),  # somebody else's answer
        struct.pack(">IIQ", 0x67446698, 5, 1),
        struct.pack(">IHHQI", 0x668E33EF, 0, 1, 1, 8 + 8) + struct.pack(">Q", 4) + bytes(8),
        struct.pack(">IHHQI", 0x668E33EF, 0, 1, 1, 1 << 31),
        struct.pack(">IHHQI", 0x668E33EF, 1, 9, 1, 0),
    ],
)
def test_nonsense_instead_of_data_is_a_sentence(said: bytes) -> None:
    client = NbdClient(Told(OPEN + said), "d")
    with pytest.raises(NBDFailed, match=r"^d: "):
        client.wait(client.read(0, 8))


def test_a_simple_reply_is_understood_as_well() -> None:
    client = NbdClient(Told(OPEN + struct.pack(">IIQ", 0x67446698, 0, 1) + b"12345678"), "d")
    assert client.wait(client.read(0, 8)).data == b"12345678"
