"""What a new supervisor does with a pair that a dead one left, on QEMUs that are made up."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.fakes import FakeVM, Log, fake_state, fake_vm, seat_pair

from coloctl.host.base import Identity
from coloctl.host.gone import GoneProcess
from coloctl.journal import replay
from coloctl.model import event
from coloctl.model.event import Kind, open_intents
from coloctl.model.pair import NodeName, Role
from coloctl.model.protection import Fact, Protection
from coloctl.model.qapi import COLOMode, MigrationStatus, RunState
from coloctl.model.view import Degradation, Presence
from coloctl.qmp.lost import LostMonitor
from coloctl.supervisor import adopt
from coloctl.supervisor.adopt import Adoption
from coloctl.supervisor.discovery import DiscoveredNode
from coloctl.supervisor.reconcile import FoundQemu, Move, MovePlan
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

pytestmark = pytest.mark.unit


@dataclass
class Heir:
    """A new supervisor's state, and what it told the loop."""

    state: PairState
    log: Log
    watched: list[str] = field(default_factory=list)
    entered: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    plan: Move = Move.GONE
    ended: bool = False


def colo(role: Role) -> FoundQemu:
    mode = COLOMode.PRIMARY if role is Role.PRIMARY else COLOMode.SECONDARY
    return FoundQemu(role, True, False, RunState.RUNNING, MigrationStatus.COLO, mode)


def running(role: Role = Role.PRIMARY) -> FoundQemu:
    return FoundQemu(role, True, False, RunState.RUNNING, MigrationStatus.NONE, COLOMode.NONE)


def gone(vm: FakeVM, role: Role) -> DiscoveredNode:
    process = GoneProcess(Identity(1, 1), node=vm.node)
    ghost = VM(vm.node, vm.host, process, LostMonitor(vm.node, "it is gone"), vm.rundir)
    return DiscoveredNode(FoundQemu(role, alive=False), ghost)


Past = Callable[[PairState], None]
Finding = Callable[[FakeVM, FakeVM], dict[NodeName, DiscoveredNode]]


@contextlib.asynccontextmanager
async def inherited(
    folder: Path, past: Past, finding: Finding, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Heir]:
    """The journal is that of a pair in COLO and ``past``; then another supervisor took over."""
    log: Log = []
    async with fake_vm("a", log) as a, fake_vm("b", log) as b:
        async with fake_state(folder, log=log) as dead:
            seat_pair(dead, a, b)
            for seat in dead.seats.values():
                dead.record_seat(seat)
            past(dead)
        del log[:]
        history = replay(folder / "journal.jsonl").records

        async def look(*_: Any) -> Mapping[NodeName, DiscoveredNode]:
            return finding(a, b)

        monkeypatch.setattr(adopt, "look", look)
        async with fake_state(folder, log=log) as state:
            heir = Heir(state, log)

            def missed(seat: Seat, name: str, **_: Any) -> None:
                heir.missed.append(f"{seat.name}: {name}")

            adoption = Adoption(
                state,
                history,
                watch=lambda seat: heir.watched.append(seat.name),
                entered=lambda vm: heir.entered.append(vm.node),
                missed=missed,
            )
            await adoption.adopt()
            heir.plan = adoption.plan.move
            heir.ended = await adoption.finish()
            yield heir
        assert not open_intents(replay(folder / "journal.jsonl").records)


def whole(a: FakeVM, b: FakeVM) -> dict[NodeName, DiscoveredNode]:
    return {
        "a": DiscoveredNode(colo(Role.PRIMARY), a),
        "b": DiscoveredNode(colo(Role.SECONDARY), b),
    }


def began(act: str, **asked: Any) -> Past:
    return lambda state: state.record(Kind.INTENT, act=act, data=asked)


async def test_a_whole_pair_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def past(state: PairState) -> None:
        state.generation = 3
        settings = {"checkpoint-delay": 70, "compare-timeout": 500, "mirror-rate": 1 << 20}
        state.record(Kind.OUTCOME, act="set", data=settings)
        state.record(Kind.NOTE, data={"first-connection": event.COVERED})
        state.record(Kind.INTENT, act="set")
        state.pause(True)

    async with inherited(tmp_path, past, whole, monkeypatch) as heir:
        state = heir.state
        assert heir.plan is Move.ADOPT_COLO and heir.watched == ["a", "b"]
        assert state.protection is Protection.COLO and state.view().reason == "test"
        assert (state.generation, state.delay_ms, state.paused) == (3, 70, True)
        assert state.spec.checkpoint.compare_timeout_ms == 500
        assert state.spec.policy.mirror_rate == 1 << 20
        assert all(seat.in_colo for seat in state.seats.values())
        assert heir.entered == []  # its first connection was covered
        for said in ("migrate-set-parameters", "qom-set"):
            assert f"a: {said}" in heir.log  # a change cut short is made again
        assert not any(": killed" in line for line in heir.log)


async def test_the_pace_of_a_pair_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def past(state: PairState) -> None:
        state.record(Kind.OUTCOME, act="set", data={"checkpoint-mode": "adaptive"})
        state.record(Kind.NOTE, data={event.PACE: 4000, "why": "so"})
        state.record(Kind.NOTE, data={"first-connection": event.COVERED})

    async with inherited(tmp_path, past, whole, monkeypatch) as heir:
        assert (heir.state.adaptive, heir.state.period_ms()) == (True, 4000)


async def test_a_guest_whose_first_connection_is_to_come_is_guarded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inherited(tmp_path, lambda _: None, whole, monkeypatch) as heir:
        assert heir.entered == ["a"]


async def test_a_replica_that_missed_a_write_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def past(state: PairState) -> None:
        state.record(Kind.OBSERVATION, node="b", data={"missed": "write", "by": "nbd0"})

    async with inherited(tmp_path, past, whole, monkeypatch) as heir:
        seat = heir.state.seats["b"]
        assert seat.missed_write and Degradation.REPLICA_DISK in seat.view.impairments


async def test_a_failover_is_finished_on_whoever_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def past(state: PairState) -> None:
        state.record(Kind.INTENT, act="failover", data={"to": None, "cause": "link-broken"})
        state.note(Fact.NODE_LOST, "test")

    def finding(a: FakeVM, b: FakeVM) -> dict[NodeName, DiscoveredNode]:
        return {"a": gone(a, Role.PRIMARY), "b": DiscoveredNode(colo(Role.SECONDARY), b)}

    async with inherited(tmp_path, past, finding, monkeypatch) as heir:
        assert heir.plan is Move.FINISH_FAILOVER and heir.watched == ["b"]
        assert heir.state.protection is Protection.UNPROTECTED
        assert "a: tap-a0 down" in heir.log and "b: x-colo-lost-heartbeat" in heir.log
        assert heir.state.seats["b"].view.role is Role.PRIMARY
        again = replay(tmp_path / "journal.jsonl").records
        (timeline,) = (record.data for record in again if record.step == "timeline")
        assert timeline["cause"] == "link-broken"
        launches = {one.node: one.data["launched"] for one in event.last_launches(again)}
        assert launches["b"] == Role.PRIMARY  # so the next one knows, too


async def test_a_node_that_died_unwatched_is_left_to_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finding(a: FakeVM, b: FakeVM) -> dict[NodeName, DiscoveredNode]:
        return {"a": gone(a, Role.PRIMARY), "b": DiscoveredNode(colo(Role.SECONDARY), b)}

    async with inherited(tmp_path, lambda _: None, finding, monkeypatch) as heir:
        assert heir.plan is Move.HAND_OVER and sorted(heir.watched) == ["a", "b"]
        assert heir.state.protection is Protection.COLO and heir.missed == []
        assert heir.state.seats["a"].view.presence is Presence.DEAD
        assert "b: x-colo-lost-heartbeat" not in heir.log


async def test_a_pair_that_left_colo_unwatched_is_told_to_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finding(a: FakeVM, b: FakeVM) -> dict[NodeName, DiscoveredNode]:
        return {**whole(a, b), "a": DiscoveredNode(running(), a)}

    async with inherited(tmp_path, lambda _: None, finding, monkeypatch) as heir:
        assert heir.plan is Move.HAND_OVER and heir.missed == ["a: COLO_EXIT"]


async def test_a_stop_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past = began("stop", force=True, timeout_s=5.0)
    async with inherited(tmp_path, past, whole, monkeypatch) as heir:
        assert heir.ended and heir.state.protection is Protection.DOWN
        assert heir.log.index("b: killed") < heir.log.index("a: killed")


async def test_a_pair_of_which_nothing_lives_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finding(a: FakeVM, b: FakeVM) -> dict[NodeName, DiscoveredNode]:
        return {"a": gone(a, Role.PRIMARY), "b": gone(b, Role.SECONDARY)}

    async with inherited(tmp_path, lambda _: None, finding, monkeypatch) as heir:
        assert heir.plan is Move.GONE and heir.state.protection is Protection.DOWN
        assert not heir.ended and not heir.state.running()


async def test_a_protection_cut_short_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def past(state: PairState) -> None:
        state.record(Kind.INTENT, act="failover")
        state.note(Fact.NODE_LOST, "test")
        state.note(Fact.SURVIVOR_RUNS, "test")
        state.note(Fact.RESYNC_BEGAN, "test")

    def finding(a: FakeVM, b: FakeVM) -> dict[NodeName, DiscoveredNode]:
        waits = FoundQemu(Role.SECONDARY, True, False, RunState.INMIGRATE)
        return {"a": DiscoveredNode(running(), a), "b": DiscoveredNode(waits, b)}

    async with inherited(tmp_path, past, finding, monkeypatch) as heir:
        assert heir.plan is Move.ROLL_BACK_PROTECT
        assert heir.state.protection is Protection.UNPROTECTED
        assert heir.log.index("b: killed") < heir.log.index("a: x-colo-lost-heartbeat")
        assert "a: killed" not in heir.log and heir.state.seats["b"].vm is None


@pytest.mark.parametrize("move", Move)
@pytest.mark.parametrize("node", [None, "a"])
def test_what_is_decided_is_said_in_a_sentence_for_people(
    move: Move, node: NodeName | None
) -> None:
    said = MovePlan(move, node).sentence()
    assert said[0].isupper() and said.endswith(".")
    assert "-" not in said and "None" not in said
