"""What is found is done, in one place and once: every action, and what may hold it up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from fake_qmp import HANG, Refusal
from support.becoming import becomes
from support.fakes import FakeVM, Log, fake_state, fake_vm, make_spec, seat_pair
from support.observations import observe

from coloctl.errors import PairBusy, ReplicationError
from coloctl.ha import heartbeat
from coloctl.journal import replay
from coloctl.model.event import Kind, last_settings, worth_keeping
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import (
    ArbiterSpec,
    CheckpointSpec,
    FencingMethod,
    FencingSpec,
    GuestSpec,
    OnPanic,
    PairSpec,
    Policy,
    Role,
)
from coloctl.model.protection import Fact, Protection
from coloctl.model.view import Fencing
from coloctl.supervisor import acts, reactor
from coloctl.supervisor.acts import reset
from coloctl.supervisor.acts.powerdown import Ending
from coloctl.supervisor.loop import Supervisor
from coloctl.supervisor.reconcile import believe
from coloctl.supervisor.state import PairState

pytestmark = pytest.mark.unit

#: Nothing is the matter.
OBSERVED = observe()

Watched = tuple[PairState, FakeVM, FakeVM, Log]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor, "RETRY_S", 0.1)


def spec_of(**changes: object) -> PairSpec:
    unguarded = CheckpointSpec(guard_first_connection=False)
    return replace(make_spec(), checkpoint=unguarded, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def watched(folder: Path, spec: PairSpec | None = None) -> AsyncIterator[Watched]:
    """A pair in COLO with a supervisor that lets nobody ask; its primary is on node a."""
    log: Log = []
    async with (
        fake_state(folder, spec or spec_of(), log=log) as state,
        fake_vm("a", log) as a,
        fake_vm("b", log) as b,
    ):
        supervisor, until = Supervisor(state), asyncio.Event()
        running = asyncio.create_task(supervisor.run(until))
        await asyncio.sleep(0)
        seat_pair(state, a, b)
        for seat in state.seats.values():
            supervisor.watch(seat)
        await becomes(lambda: state.observation is not None)
        try:
            yield state, a, b, log
        finally:
            await state.interrupt("A test wants it.")
            until.set()
            async with asyncio.timeout(60):
                await running


def lose(vm: FakeVM, how: str) -> None:
    if how == "dead":
        vm.process.die()
        return
    vm.process.is_frozen = True
    vm.answer("query-yank", HANG)
    vm.answer("query-status", HANG)


def causes(log: Log) -> list[str]:
    """What was the matter, as clients heard."""
    told = [line.split()[1] for line in log if line.startswith("DIAGNOSIS")]
    return [name for name in told if name != Diagnosis.HEALTHY]


@pytest.mark.parametrize("lost", [Role.PRIMARY, Role.SECONDARY])
@pytest.mark.parametrize("how", ["dead", "frozen"])
async def test_who_is_lost_is_fenced_and_the_other_runs_alone(
    tmp_path: Path, lost: Role, how: str
) -> None:
    async with watched(tmp_path) as (state, a, b, log):
        victim, survivor = (a, b) if lost is Role.PRIMARY else (b, a)
        lose(victim, how)
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        assert not victim.process.alive()
        assert state.vm_of(Role.PRIMARY) is survivor
        assert causes(log) == [f"{lost}-{how}"]
        (found,) = (
            record
            for record in replay(tmp_path / "journal.jsonl").records
            if record.kind is Kind.OBSERVATION and "observation" in record.data
        )
        assert found.data["finding"] == f"{lost}-{how}"
        await becomes(lambda: state.view().diagnosis is Diagnosis.HEALTHY)
        assert state.view().waiting == ""


async def test_of_two_that_cannot_hear_each_other_the_primary_keeps_the_guest(
    tmp_path: Path,
) -> None:
    async with watched(tmp_path) as (state, a, b, log):
        b.host.cut_off = state.ground.hosts["b"].cut_off = True  # type: ignore[attr-defined]
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        assert causes(log) == ["link-broken"]
        assert a.process.alive() and not b.process.alive()


async def test_a_missed_write_gives_up_the_replica(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b, log):
        a.event("QUORUM_REPORT_BAD", **{"node-name": "nbd0", "type": "write"})
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        assert causes(log) == ["replica-write-error"]
        assert a.process.alive() and not b.process.alive()


async def test_a_paused_pair_waits_also_under_the_next_supervisor(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b, _):
        state.pause(True)
        a.process.die()
        await becomes(lambda: state.protection is Protection.FAILOVER)
        view = state.view()
        assert view.paused and "coloctl resume web" in view.reason == view.waiting
        assert view.diagnosis is Diagnosis.PRIMARY_DEAD
        records = replay(tmp_path / "journal.jsonl").records
        assert last_settings(worth_keeping(records))["paused"] is True
        await asyncio.sleep(0.1)
        assert b.process.alive() and state.protection is Protection.FAILOVER
        state.pause(False)
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        assert state.view().exposed_s is not None


async def test_what_is_refused_is_tried_again_until_it_can_be_done(tmp_path: Path) -> None:
    """The survivor answers the heartbeat and not the question put to it before a fence."""

    async with watched(tmp_path) as (state, a, b, log):
        b.answer("query-yank", Refusal("not now"))
        a.process.die()
        await becomes(lambda: "not now" in state.view().waiting)
        assert state.protection is Protection.FAILOVER
        assert "a: killed" not in log
        b.answer("query-yank", [])
        await becomes(lambda: state.protection is Protection.UNPROTECTED)


async def test_a_failover_that_is_tried_again_keeps_its_cause(tmp_path: Path) -> None:
    """The node is fenced by then, and who is left looks healthy."""
    claims = tmp_path / "claims"
    spec = spec_of(arbiter=ArbiterSpec(path=claims / "web"))

    async with watched(tmp_path, spec) as (state, a, _, log):
        lose(a, "frozen")
        await becomes(lambda: "a: killed" in log and "claims" in state.view().waiting)
        await becomes(lambda: state.finding.diagnosis is Diagnosis.HEALTHY)
        claims.mkdir()
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        await becomes(lambda: not state.act)
        records = replay(tmp_path / "journal.jsonl").records
        (timeline,) = (record.data for record in records if record.step == "timeline")
        assert timeline["cause"] == Diagnosis.PRIMARY_FROZEN
        assert timeline["fault_ms"] < 0


async def test_nobody_is_chosen_while_both_are_silent(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b, log):
        for vm in (a, b):
            lose(vm, "frozen")
        await becomes(lambda: state.finding.diagnosis is Diagnosis.UNKNOWN)
        await asyncio.sleep(0.1)
        assert not [line for line in log if line.endswith("killed")]
        assert state.protection is Protection.COLO


async def test_without_a_proof_the_pair_has_failed_and_is_left_alone(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, _, log):
        a.process.immortal = True
        lose(a, "frozen")
        await becomes(lambda: state.protection is Protection.FAILED)
        assert state.seats["a"].view.fencing is Fencing.FAILED
        fences = log.count("a: tap-a0 down")
        await asyncio.sleep(0.3)
        assert log.count("a: tap-a0 down") == fences
        assert "b: x-colo-lost-heartbeat" not in log
        assert "--force" in state.view().waiting


async def test_a_fence_by_hand_waits_for_a_word(tmp_path: Path) -> None:
    by_hand = spec_of(fencing=FencingSpec(FencingMethod.MANUAL))

    async with watched(tmp_path, by_hand) as (state, a, b, _):
        lose(a, "frozen")
        await becomes(lambda: state.seats["a"].view.fencing is Fencing.REQUIRED)
        assert state.protection is Protection.FAILOVER
        assert b.process.alive()
        acts.confirm_fence(state, "a")
        await becomes(lambda: state.protection is not Protection.FAILOVER)
        assert state.protection is Protection.UNPROTECTED


async def test_an_operator_and_the_supervisor_do_it_once(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, _, log):
        a.process.die()
        asked = asyncio.create_task(acts.failover(state, None))
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        with suppress(PairBusy):
            await asked
        await asyncio.sleep(0.2)
        assert state.generation == 1
        assert len([line for line in log if line.startswith("FAILED_OVER")]) == 1


async def test_a_checkpoint_under_way_ends_with_the_reason(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b, _):
        a.answer("migrate-set-parameters", HANG)
        asked = asyncio.create_task(acts.checkpoint(state))
        await a.fakes[0].got("migrate-set-parameters")
        lose(b, "frozen")
        with pytest.raises(ReplicationError, match="secondary-frozen"):
            await asked
        await becomes(lambda: state.protection is not Protection.COLO)


@pytest.mark.parametrize("first", ["a", "b"])
async def test_a_guest_that_powers_off_ends_its_pair_and_is_no_failover(
    tmp_path: Path, first: str
) -> None:
    """Both sides do, one a moment after the other; QEMU ends by itself."""

    async with watched(tmp_path) as (state, a, b, log):
        for vm in (a, b) if first == "a" else (b, a):
            if vm.process.alive():  # the pair may have ended by then
                vm.event("SHUTDOWN", guest=True, reason="guest-shutdown")
                vm.process.die()
                await asyncio.sleep(0.1)
        await becomes(lambda: state.protection is Protection.DOWN)
        assert state.view().reason == "The guest shut itself down."
        assert not state.running()
        assert state.generation == 0
        assert "a: x-colo-lost-heartbeat" not in log


async def test_the_last_write_of_a_guest_that_powers_off_is_no_reason_for_a_failover(
    tmp_path: Path,
) -> None:
    """The secondary is gone a moment earlier, and with it its disk and its connections."""

    async with watched(tmp_path) as (state, a, b, log):
        b.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        a.event("QUORUM_REPORT_BAD", **{"node-name": "nbd0", "type": "flush"})
        a.event("COLO_EXIT", mode="primary", reason="error")
        await asyncio.sleep(0.2)
        assert state.protection is Protection.COLO
        a.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        for vm in (a, b):
            vm.process.die()
        await becomes(lambda: state.protection is Protection.DOWN)
        assert state.view().reason == "The guest shut itself down."
        assert state.generation == 0
        assert "a: x-colo-lost-heartbeat" not in log


async def test_a_secondary_that_powers_off_alone_has_left(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, b, _):
        b.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        b.process.die()
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        assert a.process.alive()


async def test_a_stop_is_not_disturbed_by_what_it_does(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, _, b, log):
        asked = asyncio.create_task(acts.stop(state, force=False, timeout_s=0.3))
        await becomes(lambda: state.act == "stop")
        lose(b, "dead")
        assert await asked == Ending.CUT_OFF
        assert state.protection is Protection.DOWN
        assert causes(log) == []
        assert "FAILED_OVER" not in " ".join(log)


async def test_a_reset_is_told_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "RESET_MS", 200.0)

    async with watched(tmp_path) as (state, a, _, log):
        a.event("RESET", guest=True, reason="guest-reset")
        await becomes(lambda: state.view().diagnosis is Diagnosis.GUEST_RESET)
        await becomes(lambda: state.view().diagnosis is Diagnosis.HEALTHY)
        assert causes(log) == ["guest-reset"]
        assert state.protection is Protection.COLO


async def test_a_reset_is_over_when_the_guest_has_booted(tmp_path: Path) -> None:
    ready = spec_of(guest=GuestSpec(64, ready_line="ready: now"))

    async with watched(tmp_path, ready) as (state, a, _, log):
        console = tmp_path / "console.log"
        console.write_text("ready: now\n")  # of the life before the reset
        a.writes_to(console)
        a.event("RESET", guest=True, reason="guest-reset")
        await becomes(lambda: state.view().diagnosis is Diagnosis.GUEST_RESET)
        await asyncio.sleep(0.3)
        assert state.view().diagnosis is Diagnosis.GUEST_RESET
        with console.open("a") as written:
            written.write("booting\nready: now\n")
        await becomes(lambda: state.view().diagnosis is Diagnosis.HEALTHY)
        assert causes(log) == ["guest-reset"]


@pytest.mark.parametrize("itself", [True, False])
async def test_a_guest_that_has_panicked_is_reset_unless_it_does_that_itself(
    tmp_path: Path, itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reset, "OWN_RESET_WAIT_S", 0.2)
    restart = spec_of(policy=Policy(on_panic=OnPanic.RESTART))

    async with watched(tmp_path, restart) as (state, a, _, log):

        def resets(_: object) -> dict[str, object]:
            a.event("RESET", guest=False, reason="host-qmp-system-reset")
            return {}

        a.answer("system_reset", resets)
        a.event("GUEST_PANICKED", action="run")
        if itself:
            await asyncio.sleep(0.05)
            a.event("RESET", guest=True, reason="guest-reset")
        await becomes(lambda: state.view().diagnosis is Diagnosis.GUEST_RESET)
        await asyncio.sleep(0.4)
        assert log.count("a: system_reset") == (0 if itself else 1)
        assert state.protection is Protection.COLO


async def test_a_panic_ends_the_pair_where_the_policy_says_so(tmp_path: Path) -> None:
    stop = spec_of(policy=Policy(on_panic=OnPanic.STOP))

    async with watched(tmp_path, stop) as (state, a, _, log):
        a.event("GUEST_PANICKED", action="run")
        a.event("RESET", guest=True, reason="guest-reset")
        await becomes(lambda: state.protection is Protection.DOWN)
        assert state.view().reason == "The guest's kernel panicked."
        assert not state.running()
        assert state.generation == 0
        assert "FAILED_OVER" not in " ".join(log)


@pytest.mark.parametrize("method", FencingMethod)
async def test_a_guest_that_boots_under_tcg_does_so_alone_and_nobody_is_asked_to_switch_a_host_off(
    tmp_path: Path, method: FencingMethod
) -> None:
    """Both consoles count from the reset on, also for a later supervisor."""
    spec = spec_of(fencing=FencingSpec(method, ("/nowhere/agent",)))
    spec = replace(spec, guest=replace(spec.guest, ready_line="ready"))

    async with watched(tmp_path, spec) as (state, a, b, log):
        state.ground = replace(state.ground, facts=replace(state.ground.facts, accel="tcg"))
        assert not a.booting
        a.event("RESET", guest=True, reason="guest-reset")
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        assert a.process.alive() and not b.process.alive()
        assert state.vm_of(Role.PRIMARY) is a
        assert "reboot" in state.view().reason
        assert a.booting
        assert set(causes(log)) <= {"guest-reset", "secondary-dead"}
        assert believe(replay(tmp_path / "journal.jsonl").records).boots == {"a": 0, "b": 0}


async def test_findings_that_change_all_the_time_are_told_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is told last is what is true last."""
    monkeypatch.setattr(reactor, "REPORT_RATE", 5.0)

    async with fake_state(tmp_path) as state:
        told: list[str] = []
        state.emit = lambda event: told.append(str(event.to_json()["diagnosis"]))
        one = reactor.Reactor(state, lambda: OBSERVED, asyncio.create_task)
        panicked = {"a": replace(OBSERVED.nodes["a"], notices=("guest-panic",))}
        for _ in range(200):
            one.hear(replace(OBSERVED, nodes={**OBSERVED.nodes, **panicked}))
            one.hear(OBSERVED)
        assert len(told) < 2 * reactor.REPORT_BURST
        await asyncio.sleep(0.5)
        one.hear(OBSERVED)
        assert told[-1] == "healthy"


async def test_a_new_session_does_not_begin_with_the_last_one_s_news(tmp_path: Path) -> None:
    """The primary of the next pair said of its last secondary that it missed a write."""

    async with watched(tmp_path) as (state, a, _, log):
        a.event("QUORUM_REPORT_BAD", **{"node-name": "nbd0", "type": "write"})
        await becomes(lambda: state.protection is Protection.UNPROTECTED)
        async with fake_vm("b", log) as fresh:
            state.seats["b"].take(fresh, Role.SECONDARY, "")
            state.note(Fact.MIGRATION_BEGAN, "")
            state.note(Fact.CHECKPOINT_COMPLETED, "")
            await asyncio.sleep(0.2)
            assert state.finding.diagnosis is Diagnosis.HEALTHY
            assert state.protection is Protection.COLO
            await acts.end(state, "b", state.seats["b"].view.presence)


async def test_nothing_begins_by_itself_while_a_stop_waits(tmp_path: Path) -> None:
    async with watched(tmp_path) as (state, a, _, log):
        state.ending = True
        lose(a, "dead")
        await becomes(lambda: state.finding.diagnosis is Diagnosis.PRIMARY_DEAD)
        await asyncio.sleep(0.2)
        assert state.generation == 0 and "a: tap-a0 down" not in log
        state.ending = False
        await becomes(lambda: state.protection is Protection.UNPROTECTED)


@pytest.mark.parametrize("how", ["dead", "frozen"])
async def test_a_primary_that_is_lost_while_its_guest_shuts_down_is_failed_over(
    tmp_path: Path, how: str
) -> None:
    """The survivor's guest is asked again: what clients saw acknowledged does not hang on luck."""

    async with watched(tmp_path) as (state, a, b, log):

        def obey(name: str) -> None:
            if name == "system_powerdown":
                b.event("SHUTDOWN", guest=True, reason="guest-shutdown")
                asyncio.get_running_loop().call_later(0.02, b.process.die)

        b.before(obey)
        stopping = asyncio.create_task(acts.stop(state, force=False, timeout_s=30))
        await a.fakes[0].got("system_powerdown")
        lose(a, how)
        assert await stopping == "guest shut down"
        assert state.generation == 1 and "b: system_powerdown" in log
        assert state.protection is Protection.DOWN


async def test_a_secondary_that_is_lost_while_the_guest_shuts_down_is_let_go(
    tmp_path: Path,
) -> None:
    async with watched(tmp_path) as (state, a, b, log):
        stopping = asyncio.create_task(acts.stop(state, force=False, timeout_s=30))
        await a.fakes[0].got("system_powerdown")
        lose(b, "frozen")
        await becomes(lambda: "a: x-colo-lost-heartbeat" in log)
        assert a.process.alive() and state.generation == 0
        a.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        a.process.die()
        assert await stopping == "guest shut down"
