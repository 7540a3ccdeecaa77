"""Nothing lets a survivor run on before the fence has its proof, however a failover goes wrong."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType

import pytest
from fake_qmp import HANG, Refusal
from support.fakes import FakeVM, Log, fake_vm, make_spec

from coloctl.errors import FailoverRefused, FencingFailed
from coloctl.ha import failover, fencing
from coloctl.ha.failover import Failover, Steps, abandon_secondary
from coloctl.model.pair import Role
from coloctl.model.timeline import FailoverStep, Timeline
from coloctl.qmp.command import Command

pytestmark = pytest.mark.unit

ROLES = [Role.PRIMARY, Role.SECONDARY]

#: What each command must come after, on any survivor, in any failover.
AFTER = {
    "b: x-blockdev-change": "b: yank",
    "b: nbd-server-stop": "b: yank",
    "b: x-colo-lost-heartbeat": "b: yank",
    "b: object-del": "b: x-colo-lost-heartbeat",
    "b: chardev-remove": "b: x-colo-lost-heartbeat",
    "b: blockdev-del": "b: x-colo-lost-heartbeat",
}


#: What a survivor is told only when nobody else can be told it.
LETS_RUN = ("b: tap-b0 up", "b: x-colo-lost-heartbeat", "b: object-del")


@asynccontextmanager
async def lost_and_survivor(log: Log) -> AsyncIterator[tuple[FakeVM, FakeVM]]:
    """Node a will be lost, node b survives."""
    async with fake_vm("a", log) as lost, fake_vm("b", log) as survivor:
        yield lost, survivor


async def take_over(survivor: FakeVM, lost: FakeVM, role: Role, log: Log) -> Timeline:
    async def claim() -> None:
        log.append("generation")

    failing = Failover(make_spec(), survivor, lost, role)
    await failing.promote(await failing.fence(), claim())
    return failing.timeline(at="", generation=1)


def in_order(log: Log) -> bool:
    """The invariant, and what must precede what in the survivor."""
    said = [line for line in log if line.startswith("b:")]
    if said and not log.index("a: killed") < log.index(said[0]):
        return False
    # Only cutting it off from a peer that is dead may happen before the arbiter's word.
    lets_run = [line for line in said if line in LETS_RUN]
    if lets_run and not log.index("generation") < log.index(lets_run[0]):
        return False
    return all(
        AFTER[line] in said[:position] for position, line in enumerate(said) if line in AFTER
    )


def commands(role: Role) -> list[str]:
    """What the survivor is told when all goes well."""
    log: Log = []

    async def check() -> None:
        async with lost_and_survivor(log) as (lost, survivor):
            await take_over(survivor, lost, role, log)

    asyncio.run(check())
    return [line for line in log if line.startswith("b:") and "tap" not in line]


@pytest.mark.parametrize("role", ROLES)
async def test_the_order_of_a_failover(role: Role) -> None:
    log: Log = []

    async with lost_and_survivor(log) as (lost, survivor):
        timeline = await take_over(survivor, lost, role, log)
    assert (timeline.survivor, timeline.lost, timeline.role_before) == ("b", "a", role)
    assert list(timeline.steps) == [
        *("detected", "fenced", "arbitrated", "yanked", "promoted", "running"),
        *("cleared", "verified"),
    ]
    assert list(timeline.steps.values()) == sorted(timeline.steps.values())
    assert log[:3] == ["a: tap-a0 down", "a: killed", "generation"]
    beside = {"b: tap-b0 up", "b: yank"}
    if role is Role.SECONDARY:
        beside.add("b: trace-event-set-state")
    assert set(log[3 : 3 + len(beside)]) == beside
    assert in_order(log)
    # A primary's too: a fence that was cut short may have taken it down.
    assert log.index("generation") < log.index("b: tap-b0 up")


@pytest.mark.parametrize("role", ROLES)
async def test_without_a_proof_the_survivor_hears_nothing(role: Role) -> None:
    log: Log = []

    async with lost_and_survivor(log) as (lost, survivor):
        lost.process.immortal = True
        with pytest.raises(FencingFailed):
            await take_over(survivor, lost, role, log)
    assert log == ["a: tap-a0 down"]


async def test_a_generation_that_cannot_be_recorded_stops_the_failover() -> None:
    log: Log = []

    async def fail() -> None:
        raise OSError("No space left on device")

    async with lost_and_survivor(log) as (lost, survivor):
        failing = Failover(make_spec(), survivor, lost, Role.SECONDARY)
        proof = await failing.fence()
        with pytest.raises(OSError, match="No space"):
            await failing.promote(proof, fail())
    assert not set(log) & set(LETS_RUN)


@pytest.mark.parametrize("role", ROLES)
def test_refused_at_any_step_it_ends_well_or_says_so_and_can_be_done_again(role: Role) -> None:
    for n, line in enumerate(commands(role)):
        log: Log = []

        def refuse(name: str, n: int = n, log: Log = log) -> Refusal | None:
            said = [line for line in log if line.startswith("b:") and "tap" not in line]
            return Refusal("out of order") if len(said) == n + 1 else None

        async def check(log: Log = log, line: str = line) -> None:
            async with lost_and_survivor(log) as (lost, survivor):
                survivor.before(refuse)
                try:
                    await take_over(survivor, lost, role, log)
                except FailoverRefused as refused:
                    assert "out of order" in refused.message
                assert in_order(log), line
                survivor.before(lambda name: None)
                log.clear()
                await take_over(survivor, lost, role, log)
                assert in_order(log), line

        asyncio.run(check())


@pytest.mark.parametrize("role", ROLES)
def test_interrupted_at_any_step_it_can_be_done_again(role: Role) -> None:
    for n, line in enumerate(commands(role)):
        log: Log = []

        async def check(log: Log = log, line: str = line, n: int = n) -> None:
            async with lost_and_survivor(log) as (lost, survivor):
                acting = asyncio.create_task(take_over(survivor, lost, role, log))

                def cut(name: str) -> None:
                    said = [line for line in log if line.startswith("b:") and "tap" not in line]
                    if len(said) == n + 1:
                        acting.cancel()

                survivor.before(cut)
                with pytest.raises(asyncio.CancelledError):
                    await acting
                assert in_order(log), line
                survivor.before(lambda name: None)
                log.clear()
                await take_over(survivor, lost, role, log)
                assert in_order(log), line

        asyncio.run(check())


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("silent", ["yank", "x-colo-lost-heartbeat", "query-status"])
async def test_a_survivor_that_falls_silent_is_no_survivor(
    monkeypatch: pytest.MonkeyPatch, role: Role, silent: str
) -> None:
    monkeypatch.setattr(failover, "SURVIVOR_DEADLINE_S", 0.2)

    log: Log = []
    async with lost_and_survivor(log) as (lost, survivor):
        survivor.answer(silent, HANG)
        with pytest.raises(FailoverRefused, match="Node b"):
            await take_over(survivor, lost, role, log)


@pytest.mark.parametrize("role", ROLES)
async def test_once_the_other_is_dead_a_late_answer_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, role: Role
) -> None:
    """Each answer that the rescue monitor owes has as long as the whole promotion."""
    log: Log = []
    async with lost_and_survivor(log) as (lost, survivor):
        given: list[float] = []
        rescue = survivor.monitor.rescue

        async def asked(command: Command, deadline_s: float) -> object:
            given.append(deadline_s)
            return await rescue(command, deadline_s)

        monkeypatch.setattr(survivor.monitor, "rescue", asked)
        monkeypatch.setattr(failover, "SURVIVOR_DEADLINE_S", 3600.0)
        await take_over(survivor, lost, role, log)
    assert given and min(given) > 1800.0


async def test_a_survivor_that_does_not_run_is_not_called_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failover, "SURVIVOR_DEADLINE_S", 0.2)

    log: Log = []
    async with lost_and_survivor(log) as (lost, survivor):
        survivor.answer("query-status", {"status": "colo", "running": False})
        with pytest.raises(FailoverRefused, match="running"):
            await take_over(survivor, lost, Role.SECONDARY, log)
        survivor.answer("query-status", {"status": "running", "running": True})
        survivor.answer("query-colo-status", {"mode": "secondary"})
        with pytest.raises(FailoverRefused, match="COLO mode secondary"):
            await take_over(survivor, lost, Role.SECONDARY, log)


async def test_a_yank_is_asked_for_anew_when_an_instance_went_away() -> None:
    log: Log = []
    async with lost_and_survivor(log) as (lost, survivor):
        absent = Refusal("No such instance", "DeviceNotFound")
        turns = iter([absent, absent])
        survivor.before(lambda name: next(turns, None) if name == "yank" else None)
        await take_over(survivor, lost, Role.PRIMARY, log)
    assert log.count("b: yank") == 3
    assert log.count("b: query-yank") == 2  # after each refusal


async def test_only_what_leads_to_the_peer_is_yanked() -> None:
    log: Log = []
    ours = [
        {"type": "migration"},
        {"type": "chardev", "id": "red1"},
        {"type": "chardev", "id": "red0"},
    ]
    async with lost_and_survivor(log) as (lost, survivor):
        turns = iter([Refusal("No such instance", "DeviceNotFound")])
        survivor.before(lambda name: next(turns, None) if name == "yank" else None)
        await take_over(survivor, lost, Role.SECONDARY, log)
        yanks = [m for m in survivor.fakes[1].received if m.get("exec-oob") == "yank"]
    blind, asked = (one["arguments"]["instances"] for one in yanks)
    assert blind == ours
    assert asked == [one for one in ours if one != {"type": "chardev", "id": "red1"}]


@pytest.mark.parametrize("was_running", [True, False])
async def test_a_primary_whose_replica_was_given_up_runs_as_before(was_running: bool) -> None:
    """Yanked first, then the mirror goes, then the replica; resumed only if it ran."""
    log: Log = []

    async with fake_vm("b", log) as primary:
        jobs = [{"id": "resync0", "status": "ready", "current-progress": 1}]
        jobs[0]["total-progress"] = 2
        primary.answer("query-jobs", lambda _: jobs)
        status = {"status": "paused", "running": False}
        primary.answer("query-status", lambda _: status)

        def act(name: str) -> None:
            if name == "block-job-cancel":
                jobs[0]["status"] = "concluded"
            if name == "cont":
                status["status"] = "running"

        primary.before(act)
        await abandon_secondary(make_spec(), primary, was_running=was_running)
    order = ["yank", "block-job-cancel", "job-dismiss", "x-blockdev-change", "blockdev-del"]
    places = [log.index(f"b: {name}") for name in order]
    assert places == sorted(places)
    assert ("b: cont" in log) is was_running


async def test_the_proof_of_another_node_promotes_nothing() -> None:
    log: Log = []

    async def claim() -> None:
        log.append("generation")

    async with lost_and_survivor(log) as (lost, survivor):
        other = await Failover(make_spec(), lost, survivor, Role.PRIMARY).fence()
        log.clear()
        failing = Failover(make_spec(), survivor, lost, Role.SECONDARY)
        with pytest.raises(ValueError, match="node b was fenced, not node a"):
            await failing.promote(other, claim())
    assert log == []


async def test_each_step_is_read_once_and_in_order() -> None:
    steps = Steps(began_s=100.0)
    steps.done(FailoverStep.FENCED, 100.004)
    assert [(one.step, one.at_ms) for one in steps.unread()] == [
        (FailoverStep.DETECTED, 0.0), (FailoverStep.FENCED, 4.0),
    ]  # fmt: skip
    assert steps.unread() == ()
    waiting = asyncio.create_task(steps.more())
    await asyncio.sleep(0)
    assert not waiting.done()
    steps.done(FailoverStep.CONFIRMATION_AWAITED, 100.005)
    steps.done(FailoverStep.RUNNING, 99.0)  # a clock never makes a step earlier than the begin
    await waiting
    assert [one.step for one in steps.unread()] == [
        FailoverStep.CONFIRMATION_AWAITED, FailoverStep.RUNNING,
    ]  # fmt: skip
    # A confirmation is awaited, and is no step of a timeline.
    assert steps.times() == {"detected": 0.0, "fenced": 4.0, "running": 0.0}


@pytest.mark.parametrize("module", [failover, fencing])
def test_a_failover_calls_nothing_above_itself(module: ModuleType) -> None:
    """Its caller contributes values: an awaitable, a confirmation; never a function to call."""
    functions = [one for _, one in inspect.getmembers(module, inspect.isfunction)]
    for _, kind in inspect.getmembers(module, inspect.isclass):
        functions += [one for _, one in inspect.getmembers(kind, inspect.isfunction)]
    own = [one for one in functions if one.__module__ == module.__name__]
    assert len(own) > 10
    for one in own:
        for parameter in inspect.signature(one).parameters.values():
            assert "Callable" not in str(parameter.annotation), (one, parameter)
