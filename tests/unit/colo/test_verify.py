"""Which suspects differ, which are sound, and which are written all the time; disks are made up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from coloctl.colo import verify
from coloctl.colo.programs import NotComparable
from coloctl.model.verified import DiskVerified, Verified, VerifyOutcome, last_verified
from coloctl.nbd.scan import GENTLE

pytestmark = pytest.mark.unit

CHUNK = GENTLE.chunk
SIZE = 10 * CHUNK - 100


class Disks:
    """Two disks whose chunks are words; a chunk may change at each checkpoint, or between reads."""

    def __init__(self, a: Mapping[int, Sequence[str]], b: Mapping[int, Sequence[str]]) -> None:
        self._contents = {"a": a, "b": b}
        self.checkpoints = 0
        self.asked: list[Sequence[tuple[int, int]]] = []

    async def checkpoint(self) -> None:
        self.checkpoints += 1

    async def digests(
        self, vm: str, _at: object, _key: str, ranges: Sequence[tuple[int, int]]
    ) -> dict[int, bytes]:
        if vm == "a":
            self.asked.append(ranges)
        looks = self._contents[vm]
        return {
            at: looks[at // CHUNK][min(self.checkpoints, len(looks[at // CHUNK])) - 1].encode()
            for begin, end in ranges
            for at in range(begin, end, CHUNK)
        }


def settled(
    monkeypatch: pytest.MonkeyPatch, disks: Disks, suspects: verify.Ranges
) -> tuple[verify.Ranges, verify.Ranges]:
    class Work:
        primary, secondary = "a", "b"
        checkpoint = staticmethod(disks.checkpoint)

        def at_primary(self, _disk: int) -> dict[str, Any]:
            return {}

        at_secondary = at_primary

    monkeypatch.setattr(verify, "_digests", disks.digests)
    return asyncio.run(verify._settle(Work(), 0, SIZE, suspects))  # type: ignore[arg-type]


def test_what_differs_at_every_look_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    good = ["x"]
    disks = Disks(dict.fromkeys(range(10), good), {n: ["y"] if n in (2, 3, 9) else good
                                                 for n in range(10)})  # fmt: skip
    found = settled(monkeypatch, disks, ((0, 5 * CHUNK), (9 * CHUNK, SIZE)))
    assert found == (((2 * CHUNK, 4 * CHUNK), (9 * CHUNK, SIZE)), ())
    assert disks.checkpoints == verify.LOOKS
    assert disks.asked[1] == ((2 * CHUNK, 4 * CHUNK), (9 * CHUNK, SIZE))


@pytest.mark.parametrize("equal_at", range(1, verify.LOOKS + 1))
def test_a_suspect_that_is_equal_once_is_sound(
    monkeypatch: pytest.MonkeyPatch, equal_at: int
) -> None:
    other = ["y"] * (equal_at - 1) + ["x", *["y"] * verify.LOOKS]
    disks = Disks({0: ["x"]}, {0: other})
    assert settled(monkeypatch, disks, ((0, CHUNK),)) == ((), ())


def test_a_suspect_that_is_written_at_every_look_is_unsettled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ahead = [f"w{n + 1}" for n in range(verify.LOOKS)]
    behind = [f"w{n}" for n in range(verify.LOOKS)]
    disks = Disks({0: ahead, 1: ["x"]}, {0: behind, 1: ["y"]})
    found = settled(monkeypatch, disks, ((0, 2 * CHUNK),))
    assert found == (((CHUNK, 2 * CHUNK),), ((0, CHUNK),))


REPORT = Verified(
    "2026-11-28T20:00:00+00:00", VerifyOutcome.DIFFERENT, 1.5, 100.0, "a", "b",
    (DiskVerified("disk0", 1 << 20, 4096, ((65536, 131072), (262144, 327680)), ((0, 65536),)),),
    memory="It was not.",
)  # fmt: skip


def test_a_report_is_written_and_read_back() -> None:
    assert Verified.from_json(REPORT.to_json()) == REPORT
    with pytest.raises((KeyError, TypeError, ValueError)):
        Verified.from_json({**REPORT.to_json(), "outcome": "fine"})


def test_a_report_names_disk_node_and_place() -> None:
    assert REPORT.sentence() == (
        "Disk disk0 of node b is not that of node a in 128 KiB, at byte 65536 and 1 more places."
    )
    assert REPORT.different == 131072
    busy = Verified(
        "", VerifyOutcome.EQUAL, 1.0, 1.0, "a", "b",
        (DiskVerified("disk0", 1 << 20, 4096, (), ((0, 65536),)),),
    )  # fmt: skip
    assert busy.sentence() == (
        "Disk disk0 (1 MiB) is the same on both nodes, but for 64 KiB that were written at every "
        "look."
    )
    assert last_verified(None) == ""
    assert last_verified(REPORT).startswith("different, 2026-11-28")


def test_what_cannot_be_compared_says_why() -> None:
    assert NotComparable("no export").why == "no export"
