"""The one writer: what is believed is on disk before anybody hears of it, and deaths move it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.becoming import becomes
from support.fakeclock import FakeClock
from support.fakes import FakeVM, Log, fake_state, fake_vm, make_spec, seat_pair

from coloctl.errors import NotProtected, PairBusy, PreconditionFailed
from coloctl.journal import Journal, replay
from coloctl.model.event import Kind, Record, last_state, open_intents
from coloctl.model.pair import PairSpec, Role
from coloctl.model.pairevent import PairEvent
from coloctl.model.protection import Fact, Protection
from coloctl.model.qapi import COLOMode
from coloctl.model.tuning import with_settings
from coloctl.model.view import Degradation, Presence
from coloctl.supervisor import loop
from coloctl.supervisor.loop import Supervisor
from coloctl.supervisor.reconcile import believe
from coloctl.supervisor.state import PairState

pytestmark = pytest.mark.unit


async def test_a_fact_is_on_disk_before_it_is_told(tmp_path: Path) -> None:
    log: Log = []
    async with fake_state(tmp_path, log=log) as state:
        told: list[str] = []

        def emit(event: PairEvent) -> None:
            record = last_state(replay(tmp_path / "journal.jsonl").records)
            told.append(f"{event.NAME} {record.after if record else None}")

        state.emit = emit
        state.note(Fact.GUEST_STARTED, "It runs.")
        assert told == ["STATE_CHANGED unprotected"]
        assert state.view().reason == "It runs."


async def test_a_fact_that_means_nothing_is_recorded_and_not_told(tmp_path: Path) -> None:
    log: Log = []
    async with fake_state(tmp_path, log=log) as state:
        state.note(Fact.SURVIVOR_RUNS, "Nobody knows why.")
        assert state.protection is Protection.DOWN
        assert log == []
        (record,) = replay(tmp_path / "journal.jsonl").records
        assert (record.kind, record.data["listed"]) == (Kind.STATE, False)


async def test_exposure_counts_from_the_guest_s_start_until_it_is_protected(tmp_path: Path) -> None:
    async with fake_state(tmp_path) as state:
        assert state.view().exposed_s is None
        state.note(Fact.GUEST_STARTED, "")
        assert state.view().exposed_s is not None
        state.note(Fact.MIGRATION_BEGAN, "")
        assert state.view().exposed_s is not None
        state.note(Fact.CHECKPOINT_COMPLETED, "")
        assert state.view().exposed_s is None
        state.note(Fact.NODE_LOST, "")
        assert state.view().exposed_s is not None


async def test_an_act_leaves_its_outcome_however_it_ends(tmp_path: Path) -> None:
    async with fake_state(tmp_path) as state:
        with pytest.raises(ZeroDivisionError):
            async with state.acting("start"):
                state.progress("mirror", 1, 2)
                assert state.view().progress is not None
                raise ZeroDivisionError
        assert state.view().progress is None
        records = replay(tmp_path / "journal.jsonl").records
        assert not open_intents(records)
        assert records[-1].data["outcome"] == "ZeroDivisionError: "
        async with state.acting("stop"):
            pass


async def test_a_copy_shows_its_rate_and_the_time_that_is_left(tmp_path: Path) -> None:
    async with fake_state(tmp_path) as state:
        clock = FakeClock()
        state.clock = clock
        async with state.acting("start"):
            state.progress("mirror", 0, 1000)
            assert (progress := state.view().progress) and progress.bytes_per_s is None
            clock.advance(4)
            state.progress("mirror", 200, 1000)
            assert (progress := state.view().progress)
            assert (progress.bytes_per_s, progress.left_s) == (50, 16)
            state.progress("migrate", 10, 30)
            assert (progress := state.view().progress) and progress.bytes_per_s is None
            state.progress("first checkpoint")
            assert (progress := state.view().progress) and progress.left_s is None


async def test_an_interrupted_act_has_cleaned_up_when_interrupt_returns(tmp_path: Path) -> None:
    async with fake_state(tmp_path) as state:
        cleaned = False

        async def act() -> None:
            nonlocal cleaned
            async with state.acting("start"):
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0.01)
                    cleaned = True

        acting = asyncio.create_task(act())
        await asyncio.sleep(0)
        with pytest.raises(PairBusy, match="start"):
            async with state.acting("stop"):
                pass
        await state.interrupt("A test wants it.")
        assert cleaned
        assert acting.cancelled()
        await state.interrupt("A test wants it.")  # nothing is under way: nothing happens


async def test_a_spared_act_ends_by_itself(tmp_path: Path) -> None:
    async with fake_state(tmp_path) as state:

        async def act() -> str:
            async with state.acting("failover"):
                await asyncio.sleep(0.01)
            return "done"

        acting = asyncio.create_task(act())
        await asyncio.sleep(0)
        await state.interrupt("A test wants it.", spare="failover")
        assert acting.result() == "done"


def no_room(*_: object) -> Record:
    raise PreconditionFailed("The journal cannot be written.", hint="free some space")


@pytest.mark.parametrize("full_from", ["beginning", "end"])
async def test_a_full_disk_refuses_an_act_and_keeps_none_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_from: str
) -> None:
    async with fake_state(tmp_path) as state:
        with pytest.raises(PreconditionFailed), monkeypatch.context() as full:
            if full_from == "beginning":
                full.setattr(Journal, "append", no_room)
            async with state.acting("start"):
                full.setattr(Journal, "append", no_room)
        async with state.acting("stop"):
            pass


async def test_who_holds_no_role_cannot_be_asked(tmp_path: Path) -> None:
    async with fake_state(tmp_path) as state:
        with pytest.raises(NotProtected, match="no running primary"):
            state.vm_of(Role.PRIMARY)


@asynccontextmanager
async def watched(
    folder: Path, spec: PairSpec | None = None
) -> AsyncIterator[tuple[PairState, FakeVM, FakeVM, Supervisor]]:
    """A pair in COLO with a supervisor that watches both."""
    log: Log = []
    async with (
        fake_state(folder, spec or make_spec(nics=0, by_hand=True), log=log) as state,
        fake_vm("a", log) as a,
        fake_vm("b", log) as b,
    ):
        supervisor, until = Supervisor(state), asyncio.Event()
        running = asyncio.create_task(supervisor.run(until))
        await asyncio.sleep(0)
        seat_pair(state, a, b)
        for seat in state.seats.values():
            supervisor.watch(seat)
        try:
            yield state, a, b, supervisor
        finally:
            until.set()
            async with asyncio.timeout(60):
                await running


@pytest.mark.parametrize("first", ["a", "b"])
async def test_a_node_that_dies_in_colo_waits_for_a_failover_and_both_end_the_pair(
    tmp_path: Path, first: str
) -> None:
    async with watched(tmp_path) as (state, a, b, _):
        one, two = (a, b) if first == "a" else (b, a)
        one.process.die()
        await becomes(lambda: state.protection is Protection.FAILOVER)
        assert state.seats[one.node].view.presence is Presence.DEAD
        assert f"failover web --to {two.node}" in state.view().reason
        assert two.process.alive()
        two.process.die()
        await becomes(lambda: state.protection is Protection.DOWN)
        assert not state.running()


@pytest.mark.parametrize("failed", [False, True])
async def test_a_secondary_that_may_still_be_promoted_outlives_its_primary(
    tmp_path: Path, failed: bool
) -> None:
    async with watched(tmp_path) as (state, a, b, _):
        state.note(Fact.NODE_LOST, "")
        if failed:
            state.note(Fact.FAILOVER_FAILED, "No proof of death in time.")
        before = state.protection
        a.process.die()
        await becomes(lambda: state.seats["a"].view.presence is Presence.DEAD)
        await asyncio.sleep(0.02)
        assert b.process.alive()
        assert state.protection is before
        assert "Node a's process has ended" in state.view().reason


async def test_a_supervisor_that_cannot_write_still_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "OBSERVE_PERIOD_S", 0.02)

    async with watched(tmp_path) as (state, a, b, _):
        await asyncio.sleep(0.01)
        with monkeypatch.context() as full:
            full.setattr(Journal, "append", no_room)
            a.event("NO_SUCH_EVENT")
            b.process.die()
            a.event("QUORUM_REPORT_BAD", **{"node-name": "nbd0", "type": "write"})
            await becomes(lambda: state.seats["b"].missed_write)
            await becomes(lambda: state.protection is Protection.FAILOVER)
            assert "cannot be written" in state.view().unwritten  # and status says that too
        await becomes(lambda: not state.view().unwritten)
        facts = [one.fact for one in replay(tmp_path / "journal.jsonl").records if one.fact]
        assert Fact.NODE_LOST in facts  # written down when there was room again
        a.event("QUORUM_REPORT_BAD")
        a.event("MIGRATION", status="colo")
        a.event("STOP")
        a.event("RESUME")
        await becomes(lambda: state.view().checkpoints.count)
        a.process.die()
        await becomes(lambda: state.protection is Protection.DOWN)


async def test_a_death_that_was_wanted_is_no_news(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, _, _):
        state.seats["a"].retired = True
        a.process.die()
        await asyncio.sleep(0.05)
        assert state.protection is Protection.COLO


async def test_the_last_guest_s_death_ends_the_pair(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b, _):
        state.note(Fact.NODE_LOST, "")
        state.note(Fact.SURVIVOR_RUNS, "")
        b.process.die()
        state.seats["b"].clear(Presence.DEAD)
        a.process.die()
        await becomes(lambda: state.protection is Protection.DOWN)
        assert "died" in state.view().reason


async def test_checkpoints_are_counted_from_the_primary_s_events(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b, _):
        await asyncio.sleep(0.01)
        a.event("STOP")
        a.event("MIGRATION", status="colo")
        a.event("RESUME")
        for vm in (a, b, a):
            vm.event("STOP")
            vm.event("RESUME")
        await becomes(lambda: state.view().checkpoints.count >= 2)
        assert state.view().checkpoints.count == 2


async def test_one_that_does_not_answer_is_impaired_and_not_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "OBSERVE_PERIOD_S", 0.02)

    async with watched(tmp_path) as (state, a, b, _):
        b.answer("query-colo-status", {"mode": "secondary"})
        for fake in a.fakes:
            fake.close()
        await becomes(
            lambda: (
                state.seats["a"].view.impairments
                and state.seats["b"].view.colo_mode is COLOMode.SECONDARY
            )
        )
        assert state.seats["a"].view.impairments == (Degradation.MONITOR,)
        assert state.seats["a"].view.presence is Presence.ALIVE
        assert state.protection is Protection.COLO


async def test_the_first_connection_ends_the_caution(tmp_path: Path) -> None:
    """It also does for a later supervisor: `believe` reads the key that this one wrote."""

    async with watched(tmp_path) as (state, a, _, supervisor):
        delays = a.takes_checkpoints()
        state.tune(with_settings(state.spec, {"checkpoint-delay": 5000}))
        before = replay(tmp_path / "journal.jsonl").records
        supervisor.entered(a)
        assert state.cautious
        await becomes(lambda: not state.cautious)
        assert delays == [5000]
        assert not believe(before).covered
        assert believe(replay(tmp_path / "journal.jsonl").records).covered
