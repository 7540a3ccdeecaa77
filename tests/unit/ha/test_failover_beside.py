"""What goes on beside a fence lets no survivor run: isolation, kill, claim and cut-off end in any
order, and the survivor runs on only after all of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.fakes import FakeVM, Log, fake_vm, make_spec

from coloctl.errors import FencingFailed
from coloctl.ha import fencing
from coloctl.ha.failover import Failover
from coloctl.model.pair import Role
from coloctl.model.timeline import FailoverStep

pytestmark = pytest.mark.unit

ROLES = [Role.PRIMARY, Role.SECONDARY]

#: What a survivor is told only when the other node is proven dead and the generation claimed.
LETS_RUN = {"b: x-colo-lost-heartbeat", "b: object-del"}
#: What is done as soon as that is so, also while the survivor is still cut off from its peer.
OPENS = "b: tap-b0 up"

#: What must have ended before the survivor may run on, and here waits until its gate opens. The
#: connections of a disk are closed for a secondary only.
GATES = {
    Role.SECONDARY: ("isolated", "proven", "claimed", "cut off"),
    Role.PRIMARY: ("isolated", "proven", "claimed"),
}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine does not end an isolation that waits for its gate."""
    monkeypatch.setattr(fencing, "TAP_DEADLINE_S", 60.0)


def awaited(names: tuple[str, ...], *, dead: bool) -> tuple[str, ...]:
    """Those of the parts that a failover waits for: a dead node need not be isolated."""
    return tuple(name for name in names if not (dead and name == "isolated"))


class Story:
    """A failover from node a to node b of which each part waits at its gate."""

    def __init__(self, lost: FakeVM, survivor: FakeVM, role: Role, log: Log) -> None:
        self.lost, self.survivor, self.log = lost, survivor, log
        self.gates = {name: asyncio.Event() for name in GATES[role]}
        self.failing = Failover(make_spec(), survivor, lost, role)
        self.proof_fails = False

    async def run(self) -> None:
        async with self.failing.cut_off_early():
            await self.failing.promote(await self.failing.fence(), self._claim())

    async def _claim(self) -> None:
        await self.gates["claimed"].wait()
        self.log.append("generation")

    def gate(self, monkeypatch: pytest.MonkeyPatch, *, dead: bool) -> None:
        """Let each part of the failover wait at its gate."""
        hang_up = self.survivor.host.hang_up

        async def still_held(**asked: object) -> tuple[str, ...]:
            await self.gates["proven"].wait()
            if self.proof_fails:
                raise FencingFailed("a", "Node a is dead, but its image is written to.")
            return ()

        async def cut(*given: Any) -> int:
            await self.gates["cut off"].wait()
            return await hang_up(*given)

        self.gate_tap(monkeypatch)
        if "cut off" in self.gates:
            monkeypatch.setattr(self.survivor.host, "hang_up", cut)
        if dead:
            self.lost.process.die()
            monkeypatch.setattr(self.lost.host, "still_held", still_held)
        else:
            monkeypatch.setattr(self.lost.process, "killing", self.gates["proven"].wait)

    def gate_tap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the isolation alone wait at its gate."""
        tap = self.lost.host.tap

        async def isolate(name: str, *, up: bool) -> None:
            await self.gates["isolated"].wait()
            await tap(name, up=up)

        monkeypatch.setattr(self.lost.host, "tap", isolate)

    def ran(self) -> set[str]:
        return LETS_RUN & set(self.log)


@asynccontextmanager
async def story(role: Role) -> AsyncIterator[Story]:
    log: Log = []
    async with fake_vm("a", log) as lost, fake_vm("b", log) as survivor:
        yield Story(lost, survivor, role, log)


async def settle() -> None:
    """What can go on without a gate has gone on: messages of this process have arrived."""
    for _ in range(60):
        await asyncio.sleep(0)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - a log is no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("dead", [True, False])
@pytest.mark.parametrize(
    ("role", "order"),
    [(role, order) for role in ROLES for order in itertools.permutations(GATES[role])],
)
async def test_nothing_is_released_before_all_of_them_in_every_order(
    monkeypatch: pytest.MonkeyPatch, role: Role, order: tuple[str, ...], dead: bool
) -> None:
    async with story(role) as told:
        told.gate(monkeypatch, dead=dead)
        acting = asyncio.create_task(told.run())
        for name in awaited(order, dead=dead):
            await settle()
            assert not told.ran() and not acting.done(), f"before {name}: {told.log}"
            told.gates[name].set()
        async with asyncio.timeout(60):
            await acting
        done = told.failing.steps.times()
    assert "b: x-colo-lost-heartbeat" in told.ran()
    # A dead node has nothing to be isolated from.
    before_open = ("a: killed", "generation", *(() if dead else ("a: tap-a0 down",)))
    before_run = (*before_open, OPENS, "b: yank")
    first = min(told.log.index(line) for line in told.ran())
    assert all(told.log.index(line) < first for line in before_run)
    assert all(told.log.index(line) < told.log.index(OPENS) for line in before_open)
    assert ("a: tap-a0 down" in told.log) is not dead
    for step in (FailoverStep.FENCED, FailoverStep.ARBITRATED, FailoverStep.YANKED):
        assert done[step] <= done[FailoverStep.PROMOTED]
    assert done[FailoverStep.FENCED] <= done[FailoverStep.ARBITRATED]


@pytest.mark.parametrize("role", ROLES)
async def test_only_the_peer_of_a_dead_node_is_cut_off_before_the_fence_has_returned(
    monkeypatch: pytest.MonkeyPatch, role: Role
) -> None:
    for dead in (True, False):
        async with story(role) as told:
            told.gate(monkeypatch, dead=dead)
            for name in set(told.gates) - {"proven"}:
                told.gates[name].set()
            acting = asyncio.create_task(told.run())
            if dead:
                await until(lambda told=told: "b: yank" in told.log)
            await settle()
            said = [line for line in told.log if line.startswith("b:")]
            assert bool(said) is dead and not told.ran()
            assert "generation" not in told.log
            told.gates["proven"].set()
            await acting


@pytest.mark.parametrize("role", ROLES)
async def test_a_fence_that_fails_after_the_cut_off_releases_nothing_and_may_be_done_again(
    monkeypatch: pytest.MonkeyPatch, role: Role
) -> None:
    async with story(role) as told:
        told.gate(monkeypatch, dead=True)
        for name in set(told.gates) - {"proven"}:
            told.gates[name].set()
        acting = asyncio.create_task(told.run())
        await until(lambda: "b: yank" in told.log)
        told.proof_fails = True
        told.gates["proven"].set()
        with pytest.raises(FencingFailed, match="written to"):
            await acting
        assert not told.ran() and "generation" not in told.log
        told.proof_fails = False
        told.failing = Failover(make_spec(), told.survivor, told.lost, role)
        await told.run()
        assert told.ran()


@pytest.mark.parametrize("dead", [True, False])
@pytest.mark.parametrize("role", ROLES)
async def test_one_that_is_cut_short_leaves_no_part_of_it_running(
    monkeypatch: pytest.MonkeyPatch, role: Role, dead: bool
) -> None:
    """Also where any of its parts has ended before."""
    names = awaited(GATES[role], dead=dead)
    for count in range(len(names)):
        for ended in itertools.combinations(names, count):
            async with story(role) as told:
                told.gate(monkeypatch, dead=dead)
                for name in ended:
                    told.gates[name].set()
                before = asyncio.all_tasks()
                acting = asyncio.create_task(told.run())
                await settle()
                acting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await acting
                assert not told.ran()
                assert asyncio.all_tasks() <= before


async def test_an_isolation_that_hangs_delays_no_kill_and_the_fence_waits_for_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with story(Role.SECONDARY) as told:
        told.gate_tap(monkeypatch)
        told.gates["claimed"].set()
        acting = asyncio.create_task(told.run())
        await until(lambda: "a: killed" in told.log)
        await settle()
        assert not [line for line in told.log if line.startswith("b:")] and not acting.done()
        monkeypatch.undo()
        told.gates["isolated"].set()
        await acting
    assert told.log.index("a: tap-a0 down") < told.log.index("generation")


async def test_a_kill_that_fails_is_told_when_the_node_is_isolated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with story(Role.SECONDARY) as told:
        told.gate_tap(monkeypatch)
        told.lost.process.immortal = True
        acting = asyncio.create_task(told.run())
        await settle()
        assert not acting.done()
        told.gates["isolated"].set()
        with pytest.raises(FencingFailed, match="does not die"):
            await acting
    assert told.log == ["a: tap-a0 down"]


async def test_an_isolation_that_fails_keeps_no_node_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with story(Role.SECONDARY) as told:
        told.gate(monkeypatch, dead=False)
        told.lost.host.no_taps = True
        for gate in told.gates.values():
            gate.set()
        await told.run()
    assert told.ran() and "a: tap-a0 down" not in told.log
    assert told.log.index("a: killed") < told.log.index("generation")
