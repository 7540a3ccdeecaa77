"""What the program beside a primary says of two disks; nothing is ever written."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nbd_server import Connection, Export, whole

from coloctl.nbd import digest
from coloctl.nbd.client import NbdClient
from coloctl.nbd.compare import RANGES_MAX, Differences, compare
from coloctl.nbd.scan import DIGEST, Grain, Range
from coloctl.nbd.wire import NBDFailed

pytestmark = pytest.mark.unit

GRAIN = Grain(chunk=16, piece=64, ahead=1)
KEY = bytes(16)


def client(content: bytes, contexts: Iterable[str] = ("base:allocation",)) -> NbdClient:
    holes = {
        "base:allocation": lambda: whole(
            len(content), 16, lambda at: 0 if any(content[at:][:16]) else 2
        )
    }
    export = Export(len(content), lambda at, n: content[at : at + n], None, holes)
    return NbdClient(Connection({"d": export}, random.Random(1)), "d", contexts)


def found(mine: bytes, theirs: bytes) -> dict[str, Any]:
    """The program's last word."""
    lines = digest.lines(client(theirs), KEY, GRAIN)
    *_, last = compare(client(mine), KEY, lines, GRAIN)
    assert last["done"] and last["at"] == len(mine)
    return last


def differs(mine: bytes, theirs: bytes) -> list[list[int]]:
    ranges: list[list[int]] = found(mine, theirs)["differs"]
    return ranges


def test_what_differs_is_told_in_ranges_of_chunks() -> None:
    mine = b"\1" * 160 + bytes(160) + b"\2" * 20
    theirs = bytearray(mine)
    assert differs(mine, bytes(theirs)) == []
    theirs[40], theirs[50], theirs[200], theirs[339] = 9, 9, 9, 9
    assert differs(mine, bytes(theirs)) == [[32, 64], [192, 208], [336, 340]]
    assert found(mine, bytes(theirs))["chunks"] == 4


def test_holes_and_zeros_are_the_same_and_are_not_read() -> None:
    assert found(bytes(160), bytes(160))["read"] == 0
    assert differs(bytes(160), bytes(96) + b"\1" + bytes(63)) == [[96, 112]]
    assert differs(b"\1" + bytes(159), bytes(160)) == [[0, 16]]


@given(st.binary(min_size=1, max_size=400), st.data())
def test_every_byte_that_differs_is_in_a_range_and_no_equal_chunk_is(
    mine: bytes, data: st.DataObject
) -> None:
    theirs = bytearray(mine)
    for at in data.draw(st.lists(st.integers(0, len(mine) - 1), max_size=4)):
        theirs[at] ^= data.draw(st.integers(0, 255))
    chunks = {
        at for at in range(0, len(mine), 16) if mine[at : at + 16] != bytes(theirs[at : at + 16])
    }
    ranges = differs(mine, bytes(theirs))
    assert {at for begin, end in ranges for at in range(begin, end, 16)} == chunks


def test_ranges_that_were_asked_for_are_read_alone() -> None:
    content = bytes(range(200))
    asked = [Range(16, 48, zeros=False), Range(96, 112, zeros=False)]
    *told, over = digest.lines(client(content), KEY, GRAIN, asked)
    assert over == digest.OVER
    got = [(line["begin"], line["end"], len(bytes.fromhex(line["digests"]))) for line in told]
    assert got == [(16, 48, 2 * DIGEST), (96, 112, DIGEST)]


def test_digests_that_end_early_or_tell_of_a_failure_are_no_answer() -> None:
    lines = [*digest.lines(client(b"\1" * 64), KEY, GRAIN)]
    with pytest.raises(NBDFailed, match="the digests end at 0"):
        list(compare(client(b"\1" * 64), KEY, lines[-1:], GRAIN))
    with pytest.raises(NBDFailed, match="its disk is gone"):
        list(compare(client(b"\1" * 64), KEY, [{"failed": "its disk is gone"}], GRAIN))


def test_what_is_told_is_bounded() -> None:
    kept = Differences(GRAIN)
    for n in range(2 * RANGES_MAX):
        kept.put(32 * n, 32 * n + 16, None)
    assert len(kept.ranges) == RANGES_MAX and kept.chunks == 2 * RANGES_MAX
