"""After any history, both disks hold the same, block by block: real code, disks in memory.

What is real: `colo.difference` and its sequences, the programs of `nbd` and their NBD client. What
is a model: the bitmaps, exports and disks of two QEMUs, and a guest that writes at every step
(`support.resync_model`). ``COLOCTL_HISTORIES=100000`` plays more of them.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fakes import make_spec
from support.resync_model import GRAIN, Lost, ModelVM, World

from coloctl.clock import Deadline
from coloctl.colo import difference, difference_plan, plan
from coloctl.colo.programs import NotComparable
from coloctl.errors import ColoctlError, ResyncFailed
from coloctl.model.copied import CopyReport
from coloctl.nbd import mend, scan

pytestmark = pytest.mark.unit

HISTORIES = int(os.environ.get("COLOCTL_HISTORIES", "2000"))
SPEC = make_spec()

#: What a node wrote: place, length, byte.
WRITES = st.lists(
    st.tuples(st.integers(0, 300), st.sampled_from((1, 7, 16, 33)), st.sampled_from((0, 1, 9))),
    max_size=6,
)
#: One life of the pair: what both wrote up to the last checkpoint, what the lost node wrote after
#: it, and what the survivor wrote alone; and how the resync is disturbed before it succeeds.
LIVES = st.lists(
    st.tuples(
        WRITES,
        WRITES,
        WRITES,
        st.sampled_from((None, None, "cancelled", "replica dies", "program dies", "read fails")),
    ),
    min_size=1,
    max_size=2,
)


@pytest.fixture(scope="module", autouse=True)
def _impatient() -> Iterator[None]:
    """So little is little that turns are taken on such a small disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difference, "LITTLE_BYTES", 2 * GRAIN.chunk)
        yield


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One for all histories: making one takes longer than a history."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def apply(disk: bytearray, writes: list[tuple[int, int, int]]) -> None:
    for place, length, byte in writes:
        begin = place % len(disk)
        end = min(begin + length, len(disk))
        disk[begin:end] = bytes([byte]) * (end - begin)


async def attempt(world: World) -> CopyReport:
    vms: list[Any] = [ModelVM(world, "a"), ModelVM(world, "b")]
    return await difference.send(
        SPEC, *vms, deadline=Deadline(60), report=lambda *_: None, grain=GRAIN
    )


async def disturbed(world: World, how: str, at: int) -> None:
    """An attempt of which the fault happens at its ``at``-th step; the survivor is clean then."""
    trying = asyncio.ensure_future(attempt(world))

    def fault() -> None:
        if world.steps < at or (how == "program dies" and not world.inside):
            return
        world.fault = lambda: None
        if how == "cancelled":
            trying.cancel()
        elif how == "replica dies":
            for target in world.targets:
                target.dead = True
        elif how == "read fails":
            for export in world.exports.values():
                export.read_error = True
        else:
            raise Lost

    world.steps, world.fault = 0, fault
    (outcome,) = await asyncio.gather(trying, return_exceptions=True)
    world.fault = lambda: None
    assert world.clean
    if isinstance(outcome, NotComparable):
        assert not world.unwritten(), "a full copy may follow, and this would be written behind it"
    elif isinstance(outcome, BaseException):
        assert isinstance(outcome, (asyncio.CancelledError, ResyncFailed)), repr(outcome)
    world.lose_replica()


async def play(size: int, lives: list[Any], seed: int) -> list[CopyReport]:
    chance = random.Random(seed)
    one, two = bytearray(size), bytearray(size)
    copied = []
    for common, late, alone, trouble in lives:
        for disk in (one, two):
            apply(disk, common)
        survivor, lost = (one, two) if chance.random() < 0.5 else (two, one)
        apply(lost, late)
        apply(survivor, alone)
        world = World(survivor, lost, chance)
        if trouble:
            await disturbed(world, trouble, chance.randrange(1, 120))
        copied.append(await attempt(world))
        for _ in range(5):
            world.step()
        world.drain()
        assert world.clean and world.attached
        assert world.disk == world.replica
        one, two = world.disk, world.replica
    return copied


@settings(max_examples=HISTORIES)
@given(size=st.integers(1, 200), lives=LIVES, seed=st.integers(0, 2**32))
def test_both_disks_are_equal_after_any_history(
    loop: asyncio.AbstractEventLoop, size: int, lives: list[Any], seed: int
) -> None:
    loop.run_until_complete(play(size, lives, seed))


# -- and it would be noticed if the order were another


def gap_between_bitmaps(patch: pytest.MonkeyPatch) -> None:
    """The old one ends before the new one begins."""
    take_turn = difference_plan.take_turn

    def other_way_round(disk: int, turn: int, granularity: int) -> plan.Plan:
        begin, end, *rest = take_turn(disk, turn, granularity)
        return (end, begin, *rest)

    patch.setattr(difference_plan, "take_turn", other_way_round)


def recording_begins_late(patch: pytest.MonkeyPatch) -> None:
    """Behind the comparison."""
    compare = difference._compare

    async def forget(effort: Any, disk: int, before: int) -> None:
        await compare(effort, disk, before)
        for bitmap in effort.primary.world.bitmaps.values():
            bitmap.dirty.clear()

    patch.setattr(difference, "_compare", forget)


def no_last_turn(patch: pytest.MonkeyPatch) -> None:
    turn = difference._turn

    async def unless_stopped(effort: Any, disk: int, number: int, deadline: Any) -> None:
        if deadline is effort.deadline:
            await turn(effort, disk, number, deadline)

    patch.setattr(difference, "_turn", unless_stopped)


def writes_outlive_a_stop(patch: pytest.MonkeyPatch) -> None:
    def stop(world: World) -> None:
        world.running = False

    patch.setattr(World, "_stop", stop)


def equal_digests_for_what_differs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scan, "digest", lambda chunk, key: bytes(scan.DIGEST))
    patch.setattr(mend, "digest", lambda chunk, key: bytes(scan.DIGEST))


def settled_said_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mend.Mender, "_settled", lambda self: True)


@pytest.mark.parametrize(
    "wrong",
    [
        gap_between_bitmaps,
        recording_begins_late,
        no_last_turn,
        writes_outlive_a_stop,
        equal_digests_for_what_differs,
        settled_said_too_early,
    ],
)
def test_a_wrong_order_is_noticed(
    loop: asyncio.AbstractEventLoop,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[pytest.MonkeyPatch], None],
) -> None:
    wrong(monkeypatch)
    with pytest.raises((AssertionError, ColoctlError)):
        for seed in range(400):
            trouble = (None, "read fails")[seed % 2]
            lives = [([(3, 40, 1)], [(30, 16, 9)], [(9, 33, 2)], trouble)]
            loop.run_until_complete(play(150, lives, seed))
