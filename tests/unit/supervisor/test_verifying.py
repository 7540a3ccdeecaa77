"""When copies are compared, what breaks that off, who hears of it; the comparison is made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.becoming import becomes
from support.fakes import FakeVM, Log, in_colo, make_spec

from coloctl.colo import pages
from coloctl.colo.programs import NotComparable
from coloctl.colo.verify import Comparing
from coloctl.errors import NotProtected, Unreachable
from coloctl.journal import replay
from coloctl.model.event import worth_keeping
from coloctl.model.pair import OnDifference, VerifySpec
from coloctl.model.protection import Fact
from coloctl.model.verified import DiskVerified, MemoryVerified, VerifyOutcome
from coloctl.supervisor import verifying
from coloctl.supervisor.reconcile import believe
from coloctl.supervisor.state import PairState
from coloctl.supervisor.verifying import Verifying

pytestmark = pytest.mark.unit

EQUAL = (DiskVerified("disk0", 1 << 20, 4096),)
DIFFERENT = (DiskVerified("disk0", 1 << 20, 4096, ((65536, 131072),)),)

STILL = MemoryVerified("pc.ram", 1000, 900, 100, 0)
DAMAGED = MemoryVerified("pc.ram", 1000, 899, 100, 1, ((0x2345000, 0x2346000),))

Compare = Callable[[Comparing], Awaitable[tuple[DiskVerified, ...]]]
Watched = tuple[PairState, FakeVM, Verifying, Log]


@asynccontextmanager
async def watched(folder: Path, **verify: Any) -> AsyncIterator[Watched]:
    log: Log = []
    spec = replace(make_spec(), verify=VerifySpec(**verify))
    async with asyncio.TaskGroup() as tasks, in_colo(folder, spec, log) as (state, a, _):

        def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            return tasks.create_task(work)

        yield state, a, Verifying(state, spawn), log


def finds(
    monkeypatch: pytest.MonkeyPatch,
    what: tuple[DiskVerified, ...] | Exception,
    memory: MemoryVerified | Exception = STILL,
) -> list[int]:
    """Each comparison finds that; answers how many there were."""
    times: list[int] = []

    async def read(_work: pages.Reading) -> MemoryVerified:
        if isinstance(memory, Exception):
            raise memory
        return memory

    async def compare(_work: Comparing) -> tuple[DiskVerified, ...]:
        times.append(1)
        if isinstance(what, Exception):
            raise what
        return what

    monkeypatch.setattr(verifying, "verify", compare)
    monkeypatch.setattr(pages, "compare", read)
    return times


async def never(_work: Any) -> Any:
    await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("disks", "outcome"), [(EQUAL, VerifyOutcome.EQUAL), (DIFFERENT, VerifyOutcome.DIFFERENT)]
)
async def test_what_is_found_is_in_the_state_the_journal_and_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    disks: tuple[DiskVerified, ...],
    outcome: VerifyOutcome,
) -> None:
    finds(monkeypatch, disks)
    async with watched(tmp_path) as (state, _, it, log):
        found = await it.verify()
        assert (found.outcome, found.disks) == (outcome, disks)
        assert state.view().verified == found
        assert any(line.startswith(f"VERIFIED {outcome}") for line in log)
        assert not state.beside.unlike and state.beside.left is None
    for kept in (replay(tmp_path / "journal.jsonl").records,):
        assert believe(kept).verified == believe(worth_keeping(kept)).verified
        verified = believe(kept).verified
        assert verified is not None and verified.disks == disks


async def test_memory_that_differs_is_told_and_nothing_follows_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finds(monkeypatch, EQUAL, DAMAGED)
    async with watched(tmp_path, memory=True, on_difference=OnDifference.RESYNC) as (
        state,
        _,
        it,
        log,
    ):
        found = await it.verify()
        assert (found.outcome, found.pages, found.memory) == (
            VerifyOutcome.DIFFERENT,
            DAMAGED,
            "",
        )
        assert "one page" in found.sentence() and "0x2345000" in found.sentence()
        assert not state.beside.unlike
        assert any(line.startswith("VERIFIED different") for line in log)
        assert not state.beside.lent
    records = replay(tmp_path / "journal.jsonl").records
    verified = believe(worth_keeping(records)).verified
    assert verified is not None and verified.pages == DAMAGED


async def test_what_is_known_of_the_disks_does_not_depend_on_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finds(monkeypatch, EQUAL, NotComparable("QEMU shows no memory."))
    async with watched(tmp_path, memory=True) as (_, _a, it, _log):
        found = await it.verify()
        assert (found.outcome, found.disks, found.pages) == (VerifyOutcome.EQUAL, EQUAL, None)
        assert found.memory == "The guest's memory was not compared: QEMU shows no memory."
    finds(monkeypatch, DIFFERENT, Unreachable("The monitor of node b is gone."))
    async with watched(tmp_path, memory=True) as (_, _a, it, _log):
        found = await it.verify()
        assert (found.outcome, found.disks, found.pages) == (
            VerifyOutcome.DIFFERENT,
            DIFFERENT,
            None,
        )
        assert found.reason == "The monitor of node b is gone." and "not compared" in found.memory


@pytest.mark.parametrize(
    ("asked", "file", "read"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
async def test_memory_is_left_out_where_that_is_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: bool | None,
    file: bool,
    read: bool,
) -> None:
    finds(monkeypatch, EQUAL, DAMAGED)
    async with watched(tmp_path, memory=file) as (_, _a, it, _log):
        found = await it.verify(memory=asked)
        assert (found.pages is not None) is read
        assert found.outcome is (VerifyOutcome.DIFFERENT if read else VerifyOutcome.EQUAL)
        assert ("left out" in found.memory) is not read


async def test_what_memory_was_written_into_is_taken_back_after_the_act_that_broke_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finds(monkeypatch, EQUAL)
    monkeypatch.setattr(pages, "compare", never)
    async with watched(tmp_path, memory=True) as (state, a, it, log):
        asked = asyncio.create_task(it.verify())
        await becomes(lambda: a in state.beside.lent)
        async with state.acting("stop"):
            found = await asked
            assert found.outcome is VerifyOutcome.BROKEN_OFF and found.disks == EQUAL
            assert not any("remove-fd" in line for line in log)
        await it.tidy()
        for node in "ab":
            assert any(f"{node}: remove-fd" in line for line in log), log
        assert not state.beside.lent


async def test_only_a_policy_that_trusts_the_primary_gives_the_secondary_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finds(monkeypatch, DIFFERENT)
    async with watched(tmp_path, on_difference=OnDifference.RESYNC) as (state, _, it, _log):
        await it.verify()
        assert "at byte 65536" in state.beside.unlike[0]


async def test_there_is_one_at_a_time_and_all_who_ask_hear_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = finds(monkeypatch, EQUAL)
    async with watched(tmp_path) as (_, _a, it, _log):
        one, two = await asyncio.gather(it.verify(), it.verify())
        assert one is two and len(times) == 1


@pytest.mark.parametrize(("act", "ends"), [("checkpoint", False), ("set", False), ("stop", True),
                                           ("failover", True), ("switchover", True)])  # fmt: skip
async def test_most_acts_break_it_off_and_wait_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, ends: bool
) -> None:
    monkeypatch.setattr(verifying, "verify", never)
    async with watched(tmp_path) as (state, a, it, log):
        asked = asyncio.create_task(it.verify())
        await becomes(lambda: state.beside.left is a)
        async with state.acting(act):
            await asyncio.sleep(0.05)
            assert asked.done() is ends
        if ends:
            found = await asked
            assert found.outcome is VerifyOutcome.BROKEN_OFF and f"'{act}'" in found.reason
            assert not any("nbd-server-stop" in line for line in log)
            await it.tidy()  # what it showed of the disks is taken back afterwards
            assert any("a: nbd-server-stop" in line for line in log)
        else:
            it.end()
            await asked


async def test_where_it_cannot_be_done_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finds(monkeypatch, NotComparable("The export is refused."))
    async with watched(tmp_path) as (state, _, it, _log):
        found = await it.verify()
        assert found.sentence() == "It was broken off: The export is refused."
        state.note(Fact.NODE_LOST, "test")
        with pytest.raises(NotProtected, match="no second copy"):
            await it.verify()


async def test_it_comes_by_itself_when_it_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = finds(monkeypatch, EQUAL)
    monkeypatch.setattr(verifying, "AGAIN_S", 0.05)
    async with watched(tmp_path, every_s=0.3) as (state, _, it, _log):

        async def turns(seconds: float) -> None:
            until_s = state.clock.now() + seconds
            while state.clock.now() < until_s:
                it.tick()
                await asyncio.sleep(0.01)

        async def compared(count: int) -> None:
            while len(times) < count:
                it.tick()
                await asyncio.sleep(0.01)
            assert len(times) == count

        it.tick()
        assert not times
        await compared(1)
        await becomes(lambda: state.beside.verified is not None)
        first = state.beside.verified
        await compared(2)
        assert first is not None and state.clock.now() - first.ended_s >= 0.3
        await becomes(lambda: state.beside.verified is not first)
        finds(monkeypatch, NotComparable("not now"))
        state.paused = True
        await turns(0.4)
        assert state.beside.verified is not None
        assert state.beside.verified.outcome is VerifyOutcome.EQUAL


async def test_without_a_period_nothing_comes_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = finds(monkeypatch, EQUAL)
    async with watched(tmp_path) as (_, _a, it, _log):
        for _ in range(20):
            it.tick()
            await asyncio.sleep(0.01)
        assert not times
