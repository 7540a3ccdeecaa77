"""The act of a failover on a pair without QEMU: who survives, and what a failure leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from fake_qmp import HANG, Refusal
from support.fakes import FakeHost, Log, fake_state, fake_vm, in_colo, make_spec

from coloctl.colo import generation
from coloctl.errors import (
    ColoctlError,
    FailoverRefused,
    FencingFailed,
    PreconditionFailed,
)
from coloctl.ha import fencing
from coloctl.ha.arbiter import FILE_NAME, Claim, FileArbiter
from coloctl.ha.failover import Steps
from coloctl.host.records import Death
from coloctl.journal import replay
from coloctl.model.event import Record, open_intents
from coloctl.model.pair import ArbiterSpec, FencingMethod, FencingSpec, NodeName, Role
from coloctl.model.pairevent import PairEvent, StepReached
from coloctl.model.protection import Fact, Protection
from coloctl.model.timeline import Timeline
from coloctl.model.view import Fencing, Presence
from coloctl.supervisor import acts
from coloctl.supervisor.acts import failover_book
from coloctl.supervisor.acts.cause import outcome
from coloctl.supervisor.state import PairState

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover_book, "SILENCE_S", 0.05)


async def waits_for_a_person(state: PairState) -> asyncio.Task[Timeline]:
    """A failover to node b that has asked for a confirmation."""
    asked, tell = asyncio.Event(), state.emit

    def emit(event: PairEvent) -> None:
        tell(event)
        if isinstance(event, StepReached) and event.step == "confirmation-awaited":
            asked.set()

    state.emit = emit
    acting = asyncio.create_task(acts.failover(state, "b"))
    async with asyncio.timeout(60):
        await asked.wait()
    return acting


def fences(folder: Path) -> list[Record]:
    return [r for r in replay(folder / "journal.jsonl").records if r.step == "fence"]


@pytest.mark.parametrize(
    "facts",
    [
        (),
        (Fact.GUEST_STARTED,),
        (Fact.GUEST_STARTED, Fact.RESYNC_BEGAN),
        (Fact.MIGRATION_BEGAN,),
    ],
)
async def test_no_failover_without_a_complete_checkpoint(
    tmp_path: Path, facts: tuple[Fact]
) -> None:
    log: Log = []
    async with (
        fake_state(tmp_path) as state,
        fake_vm("a", log) as a,
        fake_vm("b", log) as b,
    ):
        for vm, role in ((a, Role.PRIMARY), (b, Role.SECONDARY)):
            state.seats[vm.node].take(vm, role, "")
        for fact in facts:
            state.note(fact, "test")
        before = state.protection
        for to in (None, "a", "b"):
            with pytest.raises(FailoverRefused, match="complete checkpoint"):
                await acts.failover(state, to)  # type: ignore[arg-type]
            with pytest.raises(FailoverRefused, match="complete checkpoint"):
                await acts.failover(state, to, force=True)  # type: ignore[arg-type]
        assert state.protection is before
        assert log == []


#: What is wrong with whom, who was asked for, and who survives (None: refused).
SURVIVORS: list[tuple[dict[str, str], NodeName | None, NodeName | None]] = [
    ({}, None, "b"),
    ({}, "a", "a"),
    ({}, "b", "b"),
    ({"a": "dead"}, None, "b"),
    ({"b": "dead"}, None, "a"),
    ({"a": "frozen"}, None, "b"),
    ({"b": "frozen"}, None, "a"),
    ({"b": "silent"}, None, "a"),
    ({"a": "silent"}, None, "b"),
    ({"b": "dead"}, "b", None),
    ({"a": "frozen"}, "a", None),
    ({"a": "dead", "b": "dead"}, None, None),
    ({"a": "dead", "b": "frozen"}, None, None),
    ({"a": "frozen", "b": "silent"}, None, None),
]


@pytest.mark.parametrize(("wrong", "to", "survivor"), SURVIVORS)
async def test_the_survivor_is_one_that_answers(
    tmp_path: Path, wrong: dict[str, str], to: NodeName | None, survivor: NodeName | None
) -> None:
    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, a, b):
        for vm in (a, b):
            match wrong.get(vm.node):
                case "dead":
                    vm.process.die()
                case "frozen":
                    vm.process.is_frozen = True
                case "silent":
                    vm.answer("query-yank", HANG)
        if survivor is None:
            with pytest.raises(FailoverRefused) as refused:
                await acts.failover(state, to)
            assert refused.value.hint
            assert state.protection is Protection.COLO
            assert not [line for line in log if "killed" in line]
            return
        timeline = await acts.failover(state, to)
        assert timeline.survivor == survivor
        assert state.protection is Protection.UNPROTECTED
        lost = state.seats[timeline.lost]  # type: ignore[index]
        assert lost.vm is None
        assert (lost.view.presence, lost.view.fencing) == (Presence.DEAD, Fencing.FENCED)
        assert state.seats[survivor].view.role is Role.PRIMARY
        assert state.generation == 1


async def test_without_a_proof_the_pair_has_failed_until_an_operator_acts(tmp_path: Path) -> None:
    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, a, _):
        a.process.immortal = True
        with pytest.raises(FencingFailed):
            await acts.failover(state, "b")
        assert state.protection is Protection.FAILED
        assert state.seats["a"].view.fencing is Fencing.FAILED
        assert state.generation == 0
        assert "b: x-colo-lost-heartbeat" not in log

        with pytest.raises(FailoverRefused, match="failed") as refused:
            await acts.failover(state, None)
        assert "--force" in str(refused.value.hint)
        with pytest.raises(FencingFailed):
            await acts.failover(state, None, force=True)
        assert state.protection is Protection.FAILED

        a.process.immortal = False
        await acts.failover(state, None, force=True)
        assert state.protection is Protection.UNPROTECTED
        assert state.generation == 1


async def test_a_survivor_that_does_not_come_to_run_is_a_failure(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, _, b):
        b.answer("x-colo-lost-heartbeat", Refusal("not today"))
        with pytest.raises(FailoverRefused, match="not today"):
            await acts.failover(state, "b")
        assert state.protection is Protection.FAILED
        b.answer("x-colo-lost-heartbeat", {})
        await acts.failover(state, "b", force=True)
        assert state.protection is Protection.UNPROTECTED


async def test_a_tap_that_cannot_be_opened_is_a_failure(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, _, b):
        b.host.no_taps = True
        with pytest.raises(ColoctlError, match="tap-b0"):
            await acts.failover(state, "b")
        assert state.protection is Protection.FAILED


async def test_the_guest_matters_more_than_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next start may begin with old disks, which is told; not running at all is worse."""

    async def fail(*_: object, **__: object) -> None:
        raise PreconditionFailed("No space left on device")

    monkeypatch.setattr(generation, "write", fail)

    async with in_colo(tmp_path) as (state, _, _):
        await acts.failover(state, "b")
        assert state.protection is Protection.UNPROTECTED
        records = replay(tmp_path / "journal.jsonl").records
        (note,) = (r for r in records if "generation-not-kept" in r.data)
        assert "No space" in note.data["generation-not-kept"]
        assert "next start" in state.view().reason


async def test_a_fence_that_needs_a_person_waits_for_his_word(tmp_path: Path) -> None:
    by_hand = replace(make_spec(), fencing=FencingSpec(FencingMethod.MANUAL))

    log: Log = []
    async with in_colo(tmp_path, by_hand, log) as (state, a, _):
        with pytest.raises(FailoverRefused, match="waits"):
            acts.confirm_fence(state, "a")
        acting = await waits_for_a_person(state)
        assert state.protection is Protection.FAILOVER
        assert state.seats["a"].view.fencing is Fencing.REQUIRED
        assert "`coloctl fence confirm web a`" in state.view().reason
        assert "a: tap-a0 down" in log
        assert a.process.alive() and "b: yank" not in log
        with pytest.raises(FailoverRefused, match="node b"):
            acts.confirm_fence(state, "b")
        acts.confirm_fence(state, "a")
        await acting
        assert not a.process.alive()  # it was within reach
        assert state.protection is Protection.UNPROTECTED
        (fence,) = fences(tmp_path)
        assert (fence.node, fence.data["method"]) == ("a", "manual")
        assert fence.data["how"] == "confirmed-sigkill"


@pytest.mark.parametrize("end", ["dies", "interrupted", "survivor dies"])
async def test_a_fence_that_waits_for_a_person_has_other_ends(tmp_path: Path, end: str) -> None:
    """The kernel's word needs no person, a stop ends it, and for a dead survivor nobody is asked"""
    by_hand = replace(make_spec(), fencing=FencingSpec(FencingMethod.MANUAL))

    async with in_colo(tmp_path, by_hand) as (state, a, b):
        acting = await waits_for_a_person(state)
        if end == "dies":
            a.process.die()
            await acting
            assert state.protection is Protection.UNPROTECTED
        elif end == "interrupted":
            await state.interrupt("A test wants it.")
            assert state.protection is Protection.FAILOVER
            assert state.seats["a"].view.fencing is Fencing.CLEAR
        else:
            b.process.die()
            with pytest.raises(FailoverRefused, match="Node b died"):
                await acting
            assert state.protection is Protection.FAILED
        assert not state.confirmations
        if end != "dies":
            assert a.process.alive()
            assert state.generation == 0


async def test_every_fence_is_in_the_journal(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, a, _):
        a.process.immortal = True
        with pytest.raises(FencingFailed):
            await acts.failover(state, "b")
        a.process.immortal = False
        await acts.failover(state, "b", force=True)
    failed, done = fences(tmp_path)
    assert (failed.node, failed.data["method"]) == ("a", "kill")
    assert "does not die" in failed.data["failed"]
    assert (done.node, done.data["method"], done.data["how"]) == ("a", "kill", "sigkill")
    assert done.data["ms"] >= 0


async def test_nobody_is_fenced_for_a_promotion_that_another_has_claimed(tmp_path: Path) -> None:
    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, a, _):
        await FileArbiter(tmp_path / FILE_NAME).claim("web", "a", 1)
        with pytest.raises(FailoverRefused, match="node a was"):
            await acts.failover(state, "b")
        assert state.protection is Protection.COLO
        assert a.process.alive()
        assert "a: tap-a0 down" not in log
        await FileArbiter(tmp_path / FILE_NAME).claim("web", "b", 2)
        with pytest.raises(FailoverRefused, match="generation 2"):
            await acts.failover(state, "b")
        assert a.process.alive()


async def test_a_claim_that_is_lost_after_the_fence_promotes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, _, b):
        arbiter = FileArbiter(tmp_path / FILE_NAME)
        b.before(lambda name: None)
        usual = FileArbiter.claim

        async def beaten(self: FileArbiter, *words: object) -> Claim:
            await usual(arbiter, "web", "a", 1)
            return await usual(self, *words)  # type: ignore[arg-type]

        monkeypatch.setattr(FileArbiter, "claim", beaten)
        for force in (False, True):
            with pytest.raises(FailoverRefused, match="generation 1"):
                await acts.failover(state, "b", force=force)
        assert state.protection is Protection.FAILED
        assert state.generation == 0
        assert "b: x-colo-lost-heartbeat" not in log
        assert "b: tap-b0 up" not in log


@pytest.mark.parametrize("dead", [True, False])
async def test_no_number_is_written_before_the_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    """What it follows is read beside the fence; a fence that fails leaves no number."""
    log: Log = []
    async with in_colo(tmp_path, log=log) as (state, a, _):
        disks = state.ground.hosts["b"]
        assert isinstance(disks, FakeHost)
        usual, written = FileArbiter.claim, dict(disks.files)

        async def claim(self: FileArbiter, pair: str, node: NodeName, number: int) -> Claim:
            assert disks.files == written
            return await usual(self, pair, node, number)

        monkeypatch.setattr(FileArbiter, "claim", claim)
        if dead:
            a.process.die()
        a.host.holding, a.process.immortal = ["the image is written to"], not dead
        monkeypatch.setitem(fencing.fence.__kwdefaults__, "deadline_s", 0.05)
        with pytest.raises(FencingFailed):
            await acts.failover(state, "b")
        assert disks.files == written
        a.host.holding, a.process.immortal = [], False
        await acts.failover(state, "b", force=True)
        assert disks.files != written


async def test_a_claim_that_cannot_be_written_can_be_made_later(tmp_path: Path) -> None:
    """Nothing was decided, so the pair waits in failover and it is tried again."""
    folder = tmp_path / "claims"
    spec = replace(make_spec(), arbiter=ArbiterSpec(path=folder / "web"))

    log: Log = []
    async with in_colo(tmp_path, spec, log) as (state, _, _):
        with pytest.raises(PreconditionFailed, match="claims"):
            await acts.failover(state, "b")
        assert state.protection is Protection.FAILOVER
        assert "Nothing is promoted" in state.view().reason
        assert "b: x-colo-lost-heartbeat" not in log
        folder.mkdir()
        timeline = await acts.failover(state, "b")
        assert (state.protection, timeline.generation) == (Protection.UNPROTECTED, 1)


@pytest.mark.parametrize("heard", [True, False])
async def test_the_first_frame_of_the_survivor_is_in_the_timeline(
    tmp_path: Path, heard: bool
) -> None:
    async with in_colo(tmp_path) as (state, _, b):

        def speak(name: str) -> None:
            if heard and name == "x-colo-lost-heartbeat":
                b.host.sent.set()

        b.before(speak)
        steps = (await acts.failover(state, "b")).to_json()["steps"]
        assert ("first-packet" in steps) is heard
        assert not heard or steps["arbitrated"] <= steps["first-packet"]


async def test_the_timeline_tells_what_when_and_why(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, _, _):
        now = state.clock.now()
        steps = Steps(state.clock, now, cause="primary-dead", fault_at_s=now - 0.005)
        document = (await acts.failover(state, None, steps=steps)).to_json()
        assert document["cause"] == "primary-dead"
        assert (document["survivor"], document["lost"]) == ("b", "a")
        assert (document["generation"], document["role_before"]) == (1, "secondary")
        assert (document["began_s"], document["fault_ms"]) == (now, -5.0)
        steps = document["steps"]
        assert next(iter(steps)) == "detected" and steps["detected"] == 0.0
        assert steps["fenced"] <= steps["arbitrated"] <= steps["promoted"] <= steps["running"]
        assert steps["yanked"] <= steps["promoted"]
        records = replay(tmp_path / "journal.jsonl").records
        assert [r.data for r in records if r.step == "timeline"] == [document]
        assert "primary-dead" in next(r.data["reason"] for r in records if r.fact == Fact.NODE_LOST)


async def test_an_interrupted_failover_can_be_asked_for_again(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, _, b):
        acting = asyncio.create_task(acts.failover(state, "b"))

        def cut(name: str) -> None:
            if name == "x-colo-lost-heartbeat":
                acting.cancel()

        b.before(cut)
        with pytest.raises(asyncio.CancelledError):
            await acting
        assert state.protection is Protection.FAILOVER
        b.before(lambda name: None)
        await acts.failover(state, None)
        assert state.protection is Protection.UNPROTECTED
        assert state.generation == 2


async def test_the_generation_is_on_disk_before_the_survivor_is_told(tmp_path: Path) -> None:
    async with in_colo(tmp_path) as (state, _, b):
        seen: list[int] = []

        def look(name: str) -> None:
            if name == "x-colo-lost-heartbeat":
                records = replay(tmp_path / "journal.jsonl").records
                seen.append(max(record.generation or 0 for record in records))
                assert [r for r in open_intents(records) if r.step == "promote"]

        b.before(look)
        await acts.failover(state, "b")
        assert seen == [1]


def test_the_reason_names_a_qemu_that_the_kernel_killed_for_its_memory() -> None:
    killed = str(Death(614, 0.0, None, 8 << 20))
    assert outcome("b", "a", "primary-dead", killed) == (
        "The guest runs on node b alone since node a was lost: process 614 was killed by the "
        "kernel at its memory limit of 8 MiB."
    )
