"""Two exports are alike only when each chunk of both was compared, however their lines are cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nbd_server import Connection, Export, whole

from coloctl.nbd import digest
from coloctl.nbd.alike import Alike
from coloctl.nbd.client import NbdClient
from coloctl.nbd.scan import Grain
from coloctl.nbd.wire import NBDFailed

pytestmark = pytest.mark.unit

GRAIN = Grain(chunk=16, piece=64, ahead=1)
KEY = bytes(16)

#: Chunks of zeros, ones and twos, and an end that is no whole chunk.
disks = st.builds(
    lambda chunks, rest: b"".join(bytes([one]) * 16 for one in chunks) + rest,
    st.lists(st.sampled_from([0, 0, 1, 2]), max_size=40),
    st.sampled_from([b"", bytes(5), b"\1" * 5]),
)


def lines(content: bytes, *, holes: bool) -> Iterator[str]:
    """The lines that the program prints of a disk, whose server knows its holes or none."""
    known = {
        "base:allocation": lambda: whole(
            len(content), 16, lambda at: 0 if any(content[at:][:16]) or not holes else 2
        )
    }
    export = Export(len(content), lambda at, n: content[at : at + n], None, known)
    client = NbdClient(Connection({"d": export}, random.Random(1)), "d", ["base:allocation"])
    return (json.dumps(one) for one in digest.lines(client, KEY, GRAIN))


def compared(a: bytes, b: bytes, *, holes: tuple[bool, bool] = (True, False)) -> bool:
    found = Alike(KEY, GRAIN)
    both = (lines(a, holes=holes[0]), lines(b, holes=holes[1]))
    while not found.over:
        found.hear(found.behind, next(both[found.behind]))
    return not found.differ


@given(disks, disks, st.tuples(st.booleans(), st.booleans()))
def test_they_are_alike_when_a_guest_reads_the_same(
    a: bytes, b: bytes, holes: tuple[bool, bool]
) -> None:
    assert compared(a, a, holes=holes)
    assert compared(a, b, holes=holes) == (a == b)


def test_an_end_before_the_end_and_a_failure_are_no_answer() -> None:
    found = Alike(KEY, GRAIN)
    with pytest.raises(NBDFailed, match="the disk is gone"):
        found.hear(0, json.dumps({"failed": "the disk is gone"}))
    with pytest.raises(NBDFailed, match="digests of 16 came after 0"):
        found.hear(0, json.dumps({"begin": 16, "end": 32, "zeros": True}))
    with pytest.raises(NBDFailed, match="digests of 0"):
        found.hear(0, json.dumps({"begin": 0, "end": 32, "digests": "00" * 16}))
    found.hear(0, json.dumps({"begin": 0, "end": 32, "zeros": True}))
    found.hear(0, json.dumps(digest.OVER))
    assert not found.over and found.behind == 1
    found.hear(1, json.dumps({"begin": 0, "end": 16, "zeros": True}))
    found.hear(1, json.dumps(digest.OVER))
    assert found.differ
