"""Both guests of a pair in COLO are compared, and what is proven is final; QEMU is made up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.becoming import becomes
from support.fakes import FakeProcess, FakeVM, Log, fake_state, fake_vm, make_spec, seat_pair

from coloctl.errors import FailoverRefused, NotProtected, PreconditionFailed
from coloctl.ha import unmatched
from coloctl.ha.processors import PROOF_LOOKS
from coloctl.host.records import Contact, ThreadTimes
from coloctl.journal import replay
from coloctl.model.event import worth_keeping
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import CheckpointSpec, NodeName, PairSpec, Policy
from coloctl.model.protection import Protection
from coloctl.model.view import Degradation
from coloctl.supervisor import acts, loop, reactor
from coloctl.supervisor.loop import Supervisor
from coloctl.supervisor.reconcile import believe
from coloctl.supervisor.state import PairState
from coloctl.supervisor.survivor import choose

pytestmark = pytest.mark.unit

Watched = tuple[PairState, FakeVM, FakeVM]
OOPS = b"[   33.120007] BUG: unable to handle page fault for address: 0000000000000008\n"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor, "RETRY_S", 0.1)
    monkeypatch.setattr(loop, "OBSERVE_PERIOD_S", 0.05)
    monkeypatch.setattr(unmatched, "GRACE_LONGEST_S", 0.3)
    monkeypatch.setattr(unmatched, "GRACE_S", 0.1)


def spec_of(*, automatic: bool = True) -> PairSpec:
    unguarded = CheckpointSpec(guard_first_connection=False)
    policy = Policy(auto_failover=automatic, auto_reprotect=False)
    return replace(make_spec(), checkpoint=unguarded, policy=policy)


@asynccontextmanager
async def watched(folder: Path, *, automatic: bool = True) -> AsyncIterator[Watched]:
    """A pair in COLO whose guests have consoles and one processor each; its primary is a."""
    log: Log = []
    async with (
        fake_state(folder, spec_of(automatic=automatic), log=log) as state,
        fake_vm("a", log) as a,
        fake_vm("b", log) as b,
    ):
        for vm in (a, b):
            vm.writes_to(folder / f"console-{vm.node}.log")
            vm.answer("query-cpus-fast", [{"cpu-index": 0, "thread-id": 1}])
        supervisor, until = Supervisor(state), asyncio.Event()
        running = asyncio.create_task(supervisor.run(until))
        await asyncio.sleep(0)
        seat_pair(state, a, b)
        for seat in state.seats.values():
            seat.in_colo = True
            supervisor.watch(seat)
        await becomes(lambda: state.observation is not None)
        await asyncio.sleep(0.2)  # their consoles are being read
        try:
            yield state, a, b
        finally:
            await state.interrupt("The test is over.")
            until.set()
            async with asyncio.timeout(60):
                await running


def write(vm: FakeVM, text: bytes) -> None:
    with vm.console.path.open("ab") as console:
        console.write(text)


async def given_up(state: PairState, a: FakeVM, b: FakeVM) -> None:
    await becomes(lambda: state.protection is Protection.UNPROTECTED)
    assert a.process.alive() and not b.process.alive()


async def test_a_secondary_that_resets_itself_alone_is_given_up(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b):
        b.event("RESET", guest=True, reason="guest-reset")
        await given_up(state, a, b)
        (found,) = (
            record.data
            for record in replay(tmp_path / "journal.jsonl").records
            if "missed" in record.data
        )
        assert found["missed"] == "divergence" and "node a's was not" in found["evidence"][0]


async def test_damage_on_its_console_alone_gives_it_up(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b):
        for vm in (a, b):
            write(vm, b"[   30.1] eth0: link up\n")
        write(b, OOPS)
        await given_up(state, a, b)


def registers(flags: str) -> str:
    told = f"RIP=ffffffff8120dfeb RFL={flags} [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0"
    return f"CPU#0\r\n{told}\r\n"


WELL, DEAF = registers("00000246"), registers("00000046")


#: How long ago the times of threads were read on the machine of both guests, seconds.
lag_s = 0.0


@pytest.fixture
def _busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processors of both run all the time, so that nothing but their registers differs."""
    began = time.monotonic()

    def worked(process: FakeProcess) -> ThreadTimes | None:
        assert process.threads == (1,)
        at_s = time.monotonic() - lag_s
        return ThreadTimes(at_s, ((at_s - began, 0.0),))

    monkeypatch.setattr(FakeProcess, "worked", worked)


@pytest.mark.usefixtures("_busy")
async def test_a_processor_that_takes_no_interrupt_gives_it_up_also_where_no_client_waits(
    tmp_path: Path,
) -> None:
    async with watched(tmp_path) as (state, a, b):
        a.answer("human-monitor-command", WELL)
        b.answer("human-monitor-command", DEAF)
        await given_up(state, a, b)


@pytest.mark.usefixtures("_busy")
async def test_it_does_so_also_where_a_checkpoint_comes_before_it_has_been_watched_for_long(
    tmp_path: Path,
) -> None:
    """After each checkpoint it takes interrupts at one look; the next checkpoint is near."""

    async with watched(tmp_path) as (state, a, b):
        looks = 0

        def look(_: object) -> str:
            nonlocal looks
            looks += 1
            if looks == PROOF_LOOKS - 2:
                looks = 0
                for event in ("STOP", "RESUME"):
                    b.event(event)
            return DEAF if looks else WELL

        a.answer("human-monitor-command", WELL)
        b.answer("human-monitor-command", look)
        await given_up(state, a, b)


@pytest.mark.usefixtures("_busy")
async def test_where_neither_takes_interrupts_nobody_is_accused(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b):
        looks = []

        def look(_: object) -> str:
            looks.append(1)
            return DEAF

        a.answer("human-monitor-command", DEAF)
        b.answer("human-monitor-command", look)
        await becomes(lambda: len(looks) > 3 * PROOF_LOOKS)
        assert not state.seats["b"].diverged and state.protection is Protection.COLO


@pytest.mark.usefixtures("_busy")
async def test_times_that_were_read_too_long_ago_prove_no_stuck_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They show that a processor ran, but not that it ran between two looks."""
    frozen_s = time.monotonic()
    monkeypatch.setattr(FakeProcess, "worked", lambda _: ThreadTimes(frozen_s, ((1.0, 0.0),)))
    async with watched(tmp_path) as (state, a, b):
        looks = []

        def look(_: object) -> str:
            looks.append(1)
            return DEAF

        a.answer("human-monitor-command", WELL)
        b.answer("human-monitor-command", look)
        await becomes(lambda: len(looks) > 3 * PROOF_LOOKS)
        assert not state.seats["b"].diverged and state.protection is Protection.COLO


@pytest.mark.parametrize(("late_s", "grace_s"), [(0.04, 10.0), (0.5, 0.25)])
async def test_guests_that_do_the_same_are_sound_also_where_the_primarys_events_come_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_s: float, grace_s: float
) -> None:
    """Where they come later than the grace, checkpoints end no grace sooner."""
    monkeypatch.setattr(unmatched, "GRACE_S", grace_s)
    monkeypatch.setattr(unmatched, "GRACE_LONGEST_S", 10.0)
    async with watched(tmp_path) as (state, a, b):
        a.host.move(Contact.CONNECTED, round_trip_ms=1000 * late_s)
        b.event("RESET", guest=True, reason="guest-reset")
        for _ in range(4):
            await asyncio.sleep(late_s / 4)
            for vm in (a, b):
                vm.event("STOP")
                vm.event("RESUME")
        a.event("RESET", guest=True, reason="guest-reset")
        await asyncio.sleep(0.5)
        assert not state.seats["b"].diverged
        assert state.protection is Protection.COLO


@pytest.mark.parametrize("node", ["a", "b"])
async def test_while_a_machine_is_out_of_reach_nothing_counts_and_the_supervisor_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: NodeName
) -> None:
    monkeypatch.setattr(unmatched, "EXCUSED_S", 0.3)
    async with watched(tmp_path, automatic=False) as (state, a, b):
        away = a if node == "a" else b
        away.host.move(Contact.CONNECTED)
        away.host.move(Contact.LOST)
        b.event("RESET", guest=True, reason="guest-reset")
        write(b, OOPS)
        for _ in range(10):  # the consoles are compared at each, and cannot be read
            await asyncio.sleep(0.06)
            b.event("STOP")
            b.event("RESUME")
        assert not state.seats["b"].diverged
        write(a, OOPS)
        away.host.move(Contact.CONNECTED, session=away.host.reach.session + 1)
        await asyncio.sleep(0.6)
        assert not state.seats["b"].diverged
        assert state.protection is Protection.COLO
        b.event("RESET", guest=True, reason="guest-reset")
        await becomes(lambda: state.seats["b"].diverged)


async def test_what_both_guests_do_accuses_nobody(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b):
        b.event("RESET", guest=True, reason="guest-reset")
        write(b, OOPS)
        await asyncio.sleep(0.05)
        a.event("RESET", guest=True, reason="guest-reset")
        write(a, OOPS)
        await asyncio.sleep(1.0)
        assert not state.seats["b"].diverged
        assert state.finding.diagnosis is Diagnosis.GUEST_RESET
        assert state.protection is Protection.COLO


@pytest.mark.parametrize("node", ["a", "b"])
async def test_where_nothing_is_done_by_itself_nobody_moves_onto_a_ruin(
    tmp_path: Path, node: NodeName
) -> None:
    """Neither a switchover, nor a failover unless it is forced, nor the primary's death."""

    async with watched(tmp_path, automatic=False) as (state, a, b):
        b.event("GUEST_PANICKED", action="run")
        await becomes(lambda: state.finding.diagnosis is Diagnosis.SECONDARY_DIVERGED)
        assert Degradation.GUEST in state.seats["b"].view.impairments
        with pytest.raises((PreconditionFailed, NotProtected)):
            await acts.switchover(state, lambda _seat: None, lambda _vm: None)
        with pytest.raises(FailoverRefused, match="has diverged"):
            await acts.failover(state, "b")
        survivor, _ = await choose(state, "b", force=True)
        assert survivor.name == "b"
        if node == "a":
            a.process.die()
            await becomes(lambda: state.protection is Protection.FAILOVER)
            await becomes(lambda: "boots the guest from there" in state.view().reason)
            assert b.process.alive()


async def test_a_switchover_waits_for_what_is_undecided(tmp_path: Path) -> None:
    async with watched(tmp_path, automatic=False) as (state, _, b):
        b.event("RESET", guest=True, reason="guest-reset")
        await asyncio.sleep(0.02)
        assert state.finding.diagnosis is Diagnosis.HEALTHY
        assert state.protection is Protection.COLO
        with pytest.raises((PreconditionFailed, NotProtected)):
            await acts.switchover(state, lambda _seat: None, lambda _vm: None)


async def test_the_next_supervisor_knows_who_diverged(tmp_path: Path) -> None:
    async with watched(tmp_path, automatic=False) as (state, _, b):
        b.event("RESET", guest=True, reason="guest-reset")
        await becomes(lambda: state.seats["b"].diverged)
    records = replay(tmp_path / "journal.jsonl").records
    for kept in (records, worth_keeping(records)):
        assert believe(kept).diverged == {"b"} and not believe(kept).missed
