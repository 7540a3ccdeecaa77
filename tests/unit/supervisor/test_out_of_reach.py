"""A pair of which one machine is out of reach: who goes on, what is left, and when it is ended."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.becoming import becomes
from support.conformance import until
from support.fakes import FakeVM, Log, fake_state, fake_vm, make_spec, seat_pair

from coloctl.colo import generation
from coloctl.colo.generation import Worth
from coloctl.errors import FailoverRefused, FencingFailed, PreconditionFailed
from coloctl.ha import fencing
from coloctl.ha.arbiter import FileArbiter
from coloctl.ha.failover import Steps
from coloctl.host.records import Contact
from coloctl.journal import Journal, replay
from coloctl.model.event import Record, open_intents
from coloctl.model.pair import FencingMethod, FencingSpec, NodeName, PairSpec, Role
from coloctl.model.protection import Protection
from coloctl.model.qapi import COLOMode, MigrationStatus, RunState
from coloctl.model.view import Presence
from coloctl.qmp.lost import LostMonitor
from coloctl.supervisor import acts, adopt, discovery, machines
from coloctl.supervisor.acts import failover_book, left
from coloctl.supervisor.adopt import Adoption
from coloctl.supervisor.auto_reprotect import AutoReprotect
from coloctl.supervisor.discovery import DiscoveredNode
from coloctl.supervisor.machines import MachineWatch
from coloctl.supervisor.reconcile import FoundQemu, KnownQemu, Move, believe
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

pytestmark = pytest.mark.unit

LET_GO = "x-colo-lost-heartbeat"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, failover = (
        sys.modules[f"coloctl.supervisor.acts.{name}"] for name in ("stop", "failover")
    )
    monkeypatch.setattr(failover_book, "SILENCE_S", 0.01)
    monkeypatch.setattr(fencing, "TAP_DEADLINE_S", 0.01)
    monkeypatch.setattr(stop, "NOTE_WAIT_S", 0.05)
    monkeypatch.setattr(failover, "LEFT_BEHIND_S", 0.05)


@contextlib.asynccontextmanager
async def two_machines(
    folder: Path, log: Log, spec: PairSpec | None = None
) -> AsyncIterator[tuple[PairState, FakeVM, FakeVM]]:
    """A pair in COLO; node b is on another machine, which is connected."""
    async with (
        fake_state(folder, spec, log=log) as state,
        fake_vm("a", log) as a,
        fake_vm("b", log) as b,
    ):
        b.host.move(Contact.CONNECTED)
        state.ground = replace(state.ground, hosts={"a": a.host, "b": b.host})
        seat_pair(state, a, b)
        for seat in state.seats.values():
            state.record_seat(seat)
        del log[:]
        yield state, a, b


def records(folder: Path) -> tuple[Record, ...]:
    return replay(folder / "journal.jsonl").records


def machine_watch(state: PairState, told: Log | None = None) -> MachineWatch:
    told = [] if told is None else told
    return MachineWatch(
        state,
        lambda seat: told.append(f"watched {seat.name}"),
        renew=lambda node: told.append(f"renewed {node}"),
        missed=lambda seat, name, **_: told.append(f"missed {seat.name} {name}"),
        back=lambda: told.append("back"),
    )


@pytest.mark.parametrize("contact", [Contact.CONNECTED, Contact.LOST, Contact.NEVER])
async def test_a_primary_goes_on_alone_by_its_claim_when_the_other_machine_is_gone(
    tmp_path: Path, contact: Contact
) -> None:
    """Nothing waits for that machine, and nothing is asked of it."""
    log: Log = []
    async with two_machines(tmp_path, log) as (state, _, b):
        b.host.move(contact, silent=contact is Contact.CONNECTED)
        timeline = await acts.failover(state, "a", steps=Steps(cause="link-broken"))
        assert state.protection is Protection.UNPROTECTED and timeline.survivor == "a"
        assert timeline.fence is not None and timeline.fence.how == "out-of-reach"
        assert not [line for line in log if line.startswith("b: ")]
        claim = await FileArbiter(tmp_path / "claim.json").current()
        assert claim is not None and (claim.node, claim.generation) == ("a", 1)
        assert state.left["b"].identity == b.process.identity
        assert state.left["b"].role is Role.SECONDARY
        shown = state.view().nodes
        assert "may still run" in shown["b"].left and not shown["a"].left
        assert shown["b"].doing == "left"
        assert state.seats["b"].vm is None
        again = AutoReprotect(state, lambda _: None, lambda _: None, asyncio.create_task)
        state.protection_wanted = True
        policy = replace(state.spec.policy, auto_reprotect=True)
        state.spec = replace(state.spec, policy=policy)
        again.tick()
        assert state.exposure.endswith("when the QEMU that was left on node b has ended.")
    assert believe(records(tmp_path)).left["b"].identity == b.process.identity


async def test_without_its_claim_nobody_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by the number beside its image: a timeout never stands in for the register."""
    usual = FileArbiter.claim

    async def full(*_: Any) -> None:
        raise PreconditionFailed("No space left on device.")

    log: Log = []
    async with two_machines(tmp_path, log) as (state, _, b):
        b.host.move(Contact.LOST)
        monkeypatch.setattr(FileArbiter, "claim", full)
        for force in (False, True):
            with pytest.raises(PreconditionFailed, match="No space"):
                await acts.failover(state, "a", force=force)
            assert state.protection is Protection.FAILOVER and state.generation == 0
            assert f"a: {LET_GO}" not in log and not state.left
        monkeypatch.setattr(FileArbiter, "claim", usual)
        await acts.failover(state, "a")
        assert state.protection is Protection.UNPROTECTED and f"a: {LET_GO}" in log


async def test_a_claim_of_another_supervisor_keeps_the_primary_held(tmp_path: Path) -> None:
    log: Log = []
    async with two_machines(tmp_path, log) as (state, _, b):
        b.host.move(Contact.LOST)
        await FileArbiter(tmp_path / "claim.json").claim("web", "b", 1)
        with pytest.raises(FailoverRefused, match="node b was"):
            await acts.failover(state, "a")
        assert f"a: {LET_GO}" not in log and not state.left


@pytest.mark.parametrize("contact", [Contact.LOST, Contact.NEVER])
@pytest.mark.parametrize("force", [False, True])
async def test_a_lost_primary_is_never_given_up_without_a_proof(
    tmp_path: Path, contact: Contact, force: bool
) -> None:
    log: Log = []
    async with two_machines(tmp_path, log) as (state, a, b):
        a.host.move(contact)
        b.host.move(Contact.HERE)
        with pytest.raises(FencingFailed, match="out of reach"):
            await acts.failover(state, "b", force=force)
        assert f"b: {LET_GO}" not in log and "b: tap-b0 up" not in log
        assert state.protection is Protection.FAILED and state.generation == 0 and not state.left
        a.host.move(Contact.CONNECTED, session=1)  # it is back, and its QEMU can be killed
        await acts.failover(state, "b", force=True)
        assert state.protection is Protection.UNPROTECTED and not state.left
        assert log.index("a: killed") < log.index(f"b: {LET_GO}")


async def test_an_operator_may_state_that_the_primary_s_machine_is_off(tmp_path: Path) -> None:
    by_hand = replace(make_spec(), fencing=FencingSpec(FencingMethod.MANUAL))
    log: Log = []
    async with two_machines(tmp_path, log, by_hand) as (state, a, b):
        a.host.move(Contact.LOST)
        b.host.move(Contact.HERE)
        acting = asyncio.create_task(acts.failover(state, "b"))
        await becomes(lambda: "a" in state.confirmations and state.confirmations["a"].question)
        assert f"b: {LET_GO}" not in log
        acts.confirm_fence(state, "a")
        timeline = await acting
        assert timeline.fence and timeline.fence.how == "confirmed-out-of-reach"
        assert state.left["a"].role is Role.PRIMARY  # ended when its machine is back


# -- a supervisor that is killed after any step


@dataclass
class Moment:
    """What a supervisor that is killed leaves: its files, and what it had done by then."""

    done: Log
    files: dict[str, bytes]


class Moments(list[str]):
    """A log that keeps the files of the pair as they are at each of its lines."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.seen: list[Moment] = []

    def append(self, line: str) -> None:
        super().append(line)
        files = {
            name: path.read_bytes()
            for name in ("journal.jsonl", "claim.json")
            if (path := self.folder / name).exists()
        }
        self.seen.append(Moment(list(self), files))


@pytest.fixture
def in_the_log(monkeypatch: pytest.MonkeyPatch) -> Callable[[Log], None]:
    """Each record of a journal is a line of that log too, once it is in the journal."""

    def follow(log: Log) -> None:
        usual = Journal.append

        def append(self: Journal, record: Record) -> Record:
            written = usual(self, record)
            log.append(f"journal: {record.kind} {record.act} {record.step}")
            return written

        monkeypatch.setattr(Journal, "append", append)

    return follow


@dataclass
class Successor:
    """The supervisor that follows, and the pair as it took it over."""

    state: PairState
    b: FakeVM
    adoption: Adoption


@contextlib.asynccontextmanager
async def successor(
    folder: Path, moment: Moment, log: Log, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Successor]:
    """Take the pair over at that moment; node b's machine is still out of reach."""
    folder.mkdir()
    for name, content in moment.files.items():
        (folder / name).write_bytes(content)
    released = any(line == f"a: {LET_GO}" for line in moment.done)
    mode = COLOMode.NONE if released else COLOMode.PRIMARY
    migration = MigrationStatus.NONE if released else MigrationStatus.COLO
    runs = FoundQemu(Role.PRIMARY, True, False, RunState.RUNNING, migration, mode)
    past = replay(folder / "journal.jsonl").records
    async with (
        fake_state(folder, log=log) as state,
        fake_vm("a", log) as a,
        fake_vm("b", log) as b,
    ):
        b.host.move(Contact.LOST)
        state.ground = replace(state.ground, hosts={"a": a.host, "b": b.host})

        async def look(
            _: Any, launches: Mapping[NodeName, Any], __: Any
        ) -> dict[NodeName, DiscoveredNode]:
            unknown = FoundQemu(Role.SECONDARY, alive=True, known=False)
            ghost = VM("b", b.host, b.process, LostMonitor("b", "it is out of reach"), b.rundir)
            found = {"a": DiscoveredNode(runs, a), "b": DiscoveredNode(unknown, ghost)}
            return {
                node: found[node] if node in launches else DiscoveredNode()  # type: ignore[misc]
                for node in found
            }

        monkeypatch.setattr(adopt, "look", look)
        adoption = Adoption(
            state, past, watch=lambda _: None, entered=lambda _: None, missed=lambda *_, **__: None
        )
        await adoption.adopt()
        await adoption.finish()
        yield Successor(state, b, adoption)


async def claimed(folder: Path) -> NodeName | None:
    claim = await FileArbiter(folder / "claim.json").current()
    return claim.node if claim else None


async def test_killed_after_any_step_its_successor_keeps_one_guest_and_ends_what_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_the_log: Callable[[Log], None]
) -> None:
    """From the loss of the machine to the proof that what was left there is gone."""
    (first := tmp_path / "first").mkdir()
    log = Moments(first)
    in_the_log(log)
    async with two_machines(first, log) as (state, _, b):
        b.host.move(Contact.LOST)
        log.seen.clear()
        await acts.failover(state, "a", steps=Steps(cause="link-broken"))
        b.host.move(Contact.CONNECTED, session=1)
        await machine_watch(state).look("b")
        assert not state.left and not believe(records(first)).left
    monkeypatch.undo()
    monkeypatch.setattr(failover_book, "SILENCE_S", 0.01)
    assert len(log.seen) > 20
    outcomes: set[tuple[Protection, bool]] = set()
    for number, moment in enumerate(log.seen):
        folder, after = tmp_path / str(number), []  # type: ignore[var-annotated]
        async with successor(folder, moment, after, monkeypatch) as (heir):
            state = heir.state
            everything = moment.done + after
            gone = any("ended" in line for line in moment.done)
            if f"a: {LET_GO}" in everything:
                assert await claimed(folder) == "a", moment.done[-1]
            assert not [line for line in after if line.startswith("b: ")], moment.done[-1]
            assert state.protection in {
                Protection.COLO,  # nothing was decided yet: the loop decides
                Protection.FAILOVER,
                Protection.UNPROTECTED,
            }
            outcomes.add((state.protection, "b" in state.left))
            if state.protection is Protection.UNPROTECTED:
                proven = gone and not believe(replay(folder / "journal.jsonl").records).left
                assert "b" in state.left or proven, moment.done[-1]
                assert heir.state.seats["b"].vm is None
            heir.b.host.move(Contact.CONNECTED, session=1)
            if state.left:
                with pytest.raises(PreconditionFailed, match="may still run"):
                    left.require_none(state, "a", "b")
                await machine_watch(state).look("b")
                assert any(line.startswith("b: process") for line in after)
            assert not state.left
            assert not believe(replay(folder / "journal.jsonl").records).left
    assert (Protection.COLO, False) in outcomes and (Protection.UNPROTECTED, True) in outcomes


async def test_each_act_that_was_begun_has_an_end_in_the_journal_of_a_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = []
    (first := tmp_path / "x").mkdir()
    async with two_machines(first, log) as (state, _, b):
        b.host.move(Contact.LOST)
        await acts.failover(state, "a")
        files = {n: (first / n).read_bytes() for n in ("journal.jsonl", "claim.json")}
    async with successor(tmp_path / "y", Moment(log, files), [], monkeypatch) as heir:
        assert heir.adoption.plan.move is Move.ADOPT_ALONE and "b" in heir.state.left
        assert heir.state.protection is Protection.UNPROTECTED
    assert not open_intents(records(tmp_path / "y"))


# -- what must wait


async def test_no_qemu_is_launched_beside_one_that_was_left(tmp_path: Path) -> None:
    log: Log = []
    async with two_machines(tmp_path, log) as (state, _, b):
        b.host.move(Contact.LOST)
        await acts.failover(state, "a")
        with pytest.raises(PreconditionFailed, match=r"process \d+\) may still run: .*No route"):
            await acts.reprotect(state, lambda _: None, lambda _: None)
        await acts.stop(state, force=True, back_wait_s=0)
        assert state.protection is Protection.DOWN and "may still run" in state.view().reason
        with pytest.raises(PreconditionFailed, match="may still run"):
            await acts.start(state, lambda _: None, lambda _: None, protected=False)
        assert not [line for line in log if line.startswith("b: ")]
        assert not state.running() and state.left  # so its folder stays


@pytest.mark.parametrize("silent", [False, True])
async def test_a_stop_ends_what_it_reaches_and_names_the_rest(tmp_path: Path, silent: bool) -> None:
    log: Log = []
    async with two_machines(tmp_path, log) as (state, a, b):
        b.host.move(Contact.CONNECTED if silent else Contact.LOST, silent=silent)
        how = await acts.stop(state, force=True, back_wait_s=0)
        assert "process" in how and "may still run" in how
        assert not a.process.alive() and b.process.alive()
        assert state.left["b"].identity == b.process.identity
        assert state.seats["b"].view.presence is Presence.ABSENT


@pytest.mark.parametrize("force", [False, True])
async def test_a_stop_waits_for_a_machine_that_is_back_in_a_moment(
    tmp_path: Path, force: bool
) -> None:
    log: Log = []
    async with two_machines(tmp_path, log) as (state, _, b):
        b.host.move(Contact.LOST)
        await acts.failover(state, "a")
        watch = machine_watch(state)
        stopping = asyncio.create_task(acts.stop(state, force=force, timeout_s=0.01))
        await until(lambda: not state.running() or stopping.done())
        assert not stopping.done() and "b" in state.left
        b.host.move(Contact.CONNECTED, session=1)
        await watch.look("b")
        assert "may still run" not in await stopping
        assert not state.left


async def test_a_qemu_within_reach_that_does_not_die_is_not_left_behind(tmp_path: Path) -> None:
    log: Log = []
    async with two_machines(tmp_path, log) as (state, _, b):
        b.process.immortal = True
        with pytest.raises(FencingFailed, match="does not die"):
            await acts.stop(state, force=True)
        assert not state.left


async def test_a_supervisor_that_follows_takes_a_proof_of_the_journal_for_one(
    tmp_path: Path,
) -> None:
    async with two_machines(tmp_path, []) as (state, _, b):
        b.host.move(Contact.LOST)
        known = KnownQemu(Role.SECONDARY, b.process.identity, ended=True)
        records = {node: recorder.record for node, recorder in state.recorders.items()}
        found = (await discovery.look(state.ground, {"b": known}, records))["b"]
        assert (found.found.alive, found.found.known) == (False, True)
        assert found.vm is not None and not found.vm.process.alive()
        assert not await discovery.lives(known, "b", b.host)


# -- a machine that is back


async def test_what_was_left_is_ended_only_with_a_proof(tmp_path: Path) -> None:
    log: Log = []
    async with two_machines(tmp_path, log) as (state, _, b):
        b.host.move(Contact.LOST)
        await acts.failover(state, "a")
        told: Log = []
        watch = machine_watch(state, told)
        await watch.look("b")  # still lost: nothing is asked
        assert "b" in state.left and state.seats["b"].view.reach == "No route to host."
        with pytest.raises(FencingFailed):
            await left.finish(state, "b")
        assert "b" in state.left
        b.host.move(Contact.CONNECTED, session=1)
        await watch.look("b")
        assert not state.left and "back" in told and state.seats["b"].view.reach == ""
        pid = b.process.identity.pid
        assert log.index("b: tap-b0 down") < log.index(f"b: process {pid} ended")
        left.require_none(state, "a", "b")
        marked = (await generation.read(state.spec, state.ground.hosts))["b"]
        assert (marked.state, marked.generation) == (Worth.DIVERGED, state.generation)
    assert believe(records(tmp_path)).launches["b"].ended


async def test_a_loss_is_shown_and_its_end_too(tmp_path: Path) -> None:
    async with two_machines(tmp_path, []) as (state, _, b):
        watch, before = machine_watch(state), state.reason
        b.host.move(Contact.LOST)
        await watch.look("b")
        view = state.view()
        assert view.nodes["b"].doing == "out of reach" and "No route to host" in view.reason
        assert state.protection is Protection.COLO
        b.host.move(Contact.CONNECTED)
        await watch.look("b")
        view = state.view()
        assert view.nodes["b"].reach == "" and view.reason == before


async def test_a_loss_is_shown_while_a_request_to_that_machine_waits_for_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_machines(tmp_path, []) as (state, _, b):
        asked = asyncio.Event()

        async def unanswered(_: object) -> None:
            asked.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(b.host, "keep_bounded", unanswered)
        monkeypatch.setattr(machines.bounded, "PERIOD_S", -1.0)
        b.host.move(Contact.CONNECTED)
        watching = asyncio.create_task(machine_watch(state).run())
        try:
            async with asyncio.timeout(60):
                await asked.wait()
                b.host.move(Contact.LOST)
                await until(lambda: "No route to host" in state.view().nodes["b"].reach)
                b.host.move(Contact.CONNECTED)
                await until(lambda: not state.view().nodes["b"].reach)
        finally:
            watching.cancel()
            await asyncio.wait([watching])


async def test_a_new_agent_gets_the_monitors_opened_again_in_the_same_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that resumed its session lost nothing, so nothing is opened again."""
    async with two_machines(tmp_path, []) as (state, _, b):
        opened: Log = []

        async def reopen(self: VM, *_: Any, **__: Any) -> None:
            opened.append(self.node)
            self.monitor = kept

        monkeypatch.setattr(VM, "reopen", reopen)
        told: Log = []
        watch, kept = machine_watch(state, told), b.monitor
        b.host.move(Contact.LOST)
        await watch.look("b")
        b.host.move(Contact.CONNECTED)  # resumed
        await watch.look("b")
        assert opened == [] == told
        b.monitor = LostMonitor("b", "its agent is another one")
        b.host.move(Contact.CONNECTED, session=1)
        b.answer("query-colo-status", {"mode": "secondary", "last-mode": "none", "reason": "none"})
        await watch.look("b")
        assert opened == ["b"] and told == ["watched b", "renewed b"]
        assert state.seats["b"].vm is b and state.seats["b"].in_colo
        await watch.look("b")
        assert opened == ["b"]


async def test_a_pair_that_left_colo_while_its_machine_was_lost_is_told_to_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_machines(tmp_path, []) as (state, _, b):

        async def reopen(self: VM, *_: Any, **__: Any) -> None:
            self.monitor = kept

        monkeypatch.setattr(VM, "reopen", reopen)
        told: Log = []
        watch, kept = machine_watch(state, told), b.monitor
        b.monitor = LostMonitor("b", "its agent is another one")
        await watch.look("b")
        assert told == ["watched b", "renewed b", "missed b COLO_EXIT"]


async def test_a_qemu_that_is_not_found_again_is_left_to_its_death(tmp_path: Path) -> None:
    async with two_machines(tmp_path, []) as (state, _, b):
        told: Log = []
        watch = machine_watch(state, told)
        b.monitor = LostMonitor("b", "its agent is another one")
        b.host.move(Contact.CONNECTED, session=1, silent=True)  # not reported of yet
        await watch.look("b")
        b.process.die()
        b.host.move(Contact.CONNECTED, session=1)
        await watch.look("b")
        assert told == []


async def test_a_machine_that_is_this_one_is_never_looked_at(tmp_path: Path) -> None:
    async with two_machines(tmp_path, []) as (state, _, b):
        b.host.move(Contact.HERE)
        async with asyncio.timeout(60):
            await machine_watch(state).run()


async def test_a_machine_that_answers_late_is_shown_and_the_reason_stays(tmp_path: Path) -> None:
    async with two_machines(tmp_path, []) as (state, _, b):
        watch, reason = machine_watch(state), state.view().reason
        b.host.move(Contact.CONNECTED, round_trip_ms=2040.0)
        await watch.look("b")
        assert state.view().nodes["b"].late == (
            f"{b.host.machine.name} answers over ssh after 2.0 s: acts take longer, and a silence"
            " of node b's QEMU is noticed that much later."
        )
        assert state.view().reason == reason
        b.host.move(Contact.CONNECTED, round_trip_ms=80.0)
        await watch.look("b")
        assert state.view().nodes["b"].late == ""
