"""The circle closes: a pair that lost a node is protected again, by itself and by request."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.pairs import (
    Inventory,
    Stage,
    between_checkpoints,
    firmware_spec,
    guest_writes,
    holds,
    inventory,
    on_pair,
    qemu_io,
)

from coloctl.colo import generation
from coloctl.colo.generation import Worth
from coloctl.errors import NotProtected, PairBusy, PreconditionFailed, ReplicationError
from coloctl.host import open_host
from coloctl.lab import qemu
from coloctl.machine import image
from coloctl.model.pair import NodeName, PairSpec, Role
from coloctl.model.protection import Fact, Protection
from coloctl.model.units import MIB
from coloctl.supervisor import acts

pytestmark = pytest.mark.qemu

#: A byte per circle, each in a place of its own.
PLACE = 64 * 1024


@pytest.fixture(scope="module")
def build(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    """The one of the matrix that holds COLO under every accelerator."""
    return qemu_builds("11.1")


async def protected_again(stage: Stage, after: int) -> None:
    """The pair is in COLO in a later generation than ``after``."""
    await stage.until(
        lambda: stage.state.generation > after and stage.state.protection is Protection.COLO
    )


def reprotect(stage: Stage) -> object:
    return acts.reprotect(stage.state, stage.supervisor.watch, stage.supervisor.entered)


def switchover(stage: Stage) -> object:
    return acts.switchover(stage.state, stage.supervisor.watch, stage.supervisor.entered)


async def mark(stage: Stage, number: int) -> None:
    """The guest has written, and a checkpoint has followed."""
    async with between_checkpoints(stage.primary):
        await guest_writes(stage.primary, number + 1, number * PLACE, PLACE)
        await qemu_io(stage.primary, "flush")
    if stage.state.protection is Protection.COLO:
        await stage.checkpoints(1)


async def marked(stage: Stage, numbers: int) -> bool:
    return all([await holds(stage.primary, n + 1, n * PLACE, PLACE) for n in range(numbers)])


def test_ten_circles_by_itself(tmp_path: Path, build: qemu.Build) -> None:
    """Whoever dies, nothing that was written is lost, and nothing grows from circle to circle."""
    spec = firmware_spec(tmp_path, build, "tcg", automatic=True, circular=True)

    async def story(stage: Stage) -> None:
        await stage.start()
        seen: dict[Role, list[Inventory]] = {Role.PRIMARY: [], Role.SECONDARY: []}
        for number in range(10):
            await mark(stage, number)
            victim = stage.primary if number % 2 == 0 else stage.secondary
            before = stage.state.generation
            victim.process.signal(signal.SIGKILL)
            await protected_again(stage, before)
            assert await marked(stage, number + 1)
            if number >= 2:  # each node has been a survivor of either kind by then
                seen[Role.PRIMARY].append(await inventory(stage.primary))
                seen[Role.SECONDARY].append(await inventory(stage.secondary))
        for inventories in seen.values():
            assert all(one == inventories[0] for one in inventories[::2])
            assert all(one == inventories[1] for one in inventories[1::2])

    on_pair(spec, build, story)


def test_roles_change_as_planned(tmp_path: Path, build: qemu.Build) -> None:
    spec = firmware_spec(tmp_path, build, "tcg")

    async def story(stage: Stage) -> None:
        await stage.start()
        for number in range(3):
            await mark(stage, number)
            node, old = stage.secondary.node, stage.primary.process
            timeline = await switchover(stage)  # type: ignore[misc]
            assert (timeline.survivor, timeline.cause) == (node, "switchover")
            assert stage.primary.node == node and not old.alive()
            assert stage.state.protection is Protection.COLO
            assert await marked(stage, number + 1)

    on_pair(spec, build, story)


def test_a_switchover_that_cannot_be_leaves_the_pair_as_it_was(
    tmp_path: Path, build: qemu.Build
) -> None:
    spec = firmware_spec(tmp_path, build, "tcg")

    async def story(stage: Stage) -> None:
        await stage.start(protected=False)
        with pytest.raises(NotProtected) as refused:
            await switchover(stage)  # type: ignore[misc]
        assert refused.value.hint
        await reprotect(stage)  # type: ignore[misc]
        stage.state.seats["b"].miss_write()
        with pytest.raises(PreconditionFailed, match="missed a write"):
            await switchover(stage)  # type: ignore[misc]
        assert stage.state.protection is Protection.COLO and stage.primary.node == "a"

    on_pair(spec, build, story)


def test_protection_is_switched_off_and_on(tmp_path: Path, build: qemu.Build) -> None:
    """Nobody protects again by himself what a person wants alone."""
    spec = firmware_spec(tmp_path, build, "tcg", automatic=True, circular=True)

    async def story(stage: Stage) -> None:
        await stage.start()
        await mark(stage, 0)
        primary = stage.primary.process.identity
        await acts.unprotect(stage.state)
        assert stage.state.protection is Protection.UNPROTECTED
        stage.supervisor._auto_reprotect.tick()
        assert not stage.state.act and not stage.state.exposure
        await reprotect(stage)  # type: ignore[misc]
        with pytest.raises(PairBusy):
            await reprotect(stage)  # type: ignore[misc]
        assert stage.state.protection is Protection.COLO
        assert stage.primary.process.identity == primary and await marked(stage, 1)

    on_pair(spec, build, story)


@pytest.mark.parametrize("step", ["connect", "compare", "migrate", "first checkpoint"])
def test_an_attempt_that_loses_its_secondary_is_followed_by_another(
    tmp_path: Path, build: qemu.Build, step: str
) -> None:
    spec = firmware_spec(tmp_path, build, "tcg", automatic=True, circular=True)

    async def story(stage: Stage) -> None:
        await stage.start()
        await mark(stage, 0)
        stage.at_step(step, lambda: stage.secondary.process.signal(signal.SIGKILL))
        stage.secondary.process.signal(signal.SIGKILL)
        await stage.until(lambda: "Attempt 1 " in stage.state.exposure)
        assert "The next one comes in " in stage.state.exposure
        await protected_again(stage, 0)
        await stage.until(lambda: not stage.state.exposure)
        assert await marked(stage, 1)

    on_pair(spec, build, story)


def test_a_node_whose_image_is_lost_gets_a_new_one(tmp_path: Path, build: qemu.Build) -> None:
    spec = firmware_spec(tmp_path, build, "tcg")

    async def story(stage: Stage) -> None:
        await stage.start()
        await mark(stage, 0)
        await acts.failover(stage.state, "a")
        spec.disks[0].image["b"].unlink()
        await reprotect(stage)  # type: ignore[misc]
        await acts.failover(stage.state, "b")
        assert await marked(stage, 1)

    on_pair(spec, build, story)


def test_a_disk_that_does_not_fit_is_named_until_it_does(tmp_path: Path, build: qemu.Build) -> None:
    spec = firmware_spec(tmp_path, build, "tcg", circular=True)
    replica = spec.disks[0].image["b"]

    async def make(size: int) -> None:
        host = open_host("local")
        try:
            await image.create_overlay(replica, size, host.run, qemu_img=build.img)
        finally:
            await host.aclose()

    async def story(stage: Stage) -> None:
        await stage.start()
        await acts.failover(stage.state, "a")
        await make(MIB)
        await stage.until(lambda: "both sides of a pair need the same size" in stage.state.exposure)
        assert stage.state.protection is Protection.UNPROTECTED
        await make(16 * MIB)
        await protected_again(stage, 0)

    on_pair(spec, build, story)


async def worths(stage: Stage) -> dict[NodeName, tuple[int, Worth]]:
    found = await generation.read(stage.state.spec, stage.state.ground.hosts)
    return {node: (one.generation, one.state) for node, one in found.items()}


def test_disks_know_what_they_are_worth(tmp_path: Path, build: qemu.Build) -> None:
    spec = firmware_spec(tmp_path, build, "tcg")

    async def story(stage: Stage) -> None:
        await stage.start(protected=False)
        assert await worths(stage) == {"a": (0, Worth.IN_SYNC), "b": (0, Worth.DIVERGED)}
        during = []
        stage.at_step(
            "compare", lambda: during.append(json.loads(_companion(spec, "b").read_text())["state"])
        )
        await reprotect(stage)  # type: ignore[misc]
        assert during == [Worth.RESYNC_TARGET]
        following = {"a": (0, Worth.IN_SYNC), "b": (0, Worth.FOLLOWING)}
        async with asyncio.timeout(30):
            while await worths(stage) != following:  # written behind the act  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await acts.failover(stage.state, "b")
        assert await worths(stage) == {"a": (0, Worth.DIVERGED), "b": (1, Worth.IN_SYNC)}

    on_pair(spec, build, story)


def _companion(spec: PairSpec, node: NodeName) -> Path:
    path = spec.disks[0].image[node]
    return path.with_name(path.name + generation.SUFFIX)


def test_half_a_copy_never_begins_alone(tmp_path: Path, build: qemu.Build) -> None:
    """The survivor's disks are lost while the other node held half a copy of them."""
    spec = firmware_spec(tmp_path, build, "tcg")

    async def story(stage: Stage) -> None:
        await stage.start()
        await mark(stage, 0)
        await acts.failover(stage.state, "b")
        stage.at_step("compare", lambda: stage.secondary.process.signal(signal.SIGKILL))
        with pytest.raises(ReplicationError):
            await reprotect(stage)  # type: ignore[misc]
        await acts.end_all(stage.state)
        stage.state.note(Fact.GUEST_GONE, "The test ended it.")
        await generation.write(spec, stage.state.ground.hosts, "b", 1, Worth.DIVERGED)
        with pytest.raises(PreconditionFailed, match="half of a copy") as refused:
            await stage.start()
        assert "--from" in (refused.value.hint or "")
        watch, entered = stage.supervisor.watch, stage.supervisor.entered
        await acts.start(stage.state, watch, entered, protected=True, begin_on="b")
        assert stage.primary.node == "b" and await marked(stage, 1)
        assert (await worths(stage))["b"] == (2, Worth.IN_SYNC)

    on_pair(spec, build, story)


def test_a_new_replica_is_not_blamed_for_what_its_predecessor_missed(
    tmp_path: Path, build: qemu.Build
) -> None:
    """QEMU tells of a second write that failed within a second when that second is over."""
    spec = firmware_spec(tmp_path, build, "tcg")

    def bad(stage: Stage) -> int:
        events = (data["event"] for name, data in stage.events if name == "NODE_EVENT")
        return sum(event == "QUORUM_REPORT_BAD" for event in events)

    async def story(stage: Stage) -> None:
        await stage.start()
        await stage.checkpoints(1)
        primary = stage.primary
        stage.secondary.process.signal(signal.SIGKILL)
        await qemu_io(primary, f"write -P 1 0 {PLACE}")
        await stage.until(lambda: bad(stage) == 1)
        await qemu_io(primary, f"write -P 2 {PLACE} {PLACE}")
        await acts.failover(stage.state, primary.node)
        await reprotect(stage)  # type: ignore[misc]
        assert bad(stage) == 2
        await stage.checkpoints(3)
        assert not any(seat.missed_write for seat in stage.state.seats.values())

    on_pair(spec, build, story)
