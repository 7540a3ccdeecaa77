"""Real QEMUs become a pair in COLO, lose a side in every way, and leave nothing of the lost pair.

The guests are firmware alone. What a guest would write to its disk is written through the same
device by the monitor. QEMU before 11.0 needs KVM for COLO (docs/qemu.md): the firmware runs there
even where KVM is slow; without /dev/kvm those are skipped.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.pairs import (
    LONG_MS,
    PATIENCE_S,
    Inventory,
    Stage,
    accel_for,
    beside_logs,
    firmware_spec,
    guest_writes,
    holds,
    inventory,
    make_disks,
    qemu_io,
    supervised,
)

from coloctl.colo import convergence
from coloctl.colo.inspect import prepare
from coloctl.colo.protect import checkpoint_now
from coloctl.errors import FailoverRefused, ReplicationError, UnsupportedQEMU
from coloctl.lab import qemu
from coloctl.model.observation import Life
from coloctl.model.pair import MigrationTransport, PairSpec, Role, other
from coloctl.model.protection import Protection
from coloctl.model.qapi import COLOMode, MigrationStatus, RunState
from coloctl.qmp import command as qmp
from coloctl.qmp.monitor import Monitor
from coloctl.qmp.wait import until_migration, until_runstate
from coloctl.supervisor import acts
from coloctl.vm import VM

pytestmark = pytest.mark.qemu

ROLES = (Role.PRIMARY, Role.SECONDARY)

#: Announced while a running guest is protected, in this order.
PROTECTING = ("connect", "compare", "migrate", "first checkpoint")

WRITTEN = 0x11  #: before the last checkpoint
LATE = 0x22  #: after it
BLOCK = 65536


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


@pytest.fixture
def spec(folder: Path, qemu_build: qemu.Build) -> PairSpec:
    """A pair with equal, empty disks, on each QEMU of the matrix in its turn."""
    spec = firmware_spec(folder, qemu_build, accel_for(qemu_build))
    asyncio.run(make_disks(spec, qemu_build.img))
    return spec


@pytest.fixture
def newest(folder: Path, qemu_builds: Callable[[str], qemu.Build]) -> PairSpec:
    """The same on the newest QEMU, for what does not depend on the version."""
    build = qemu_builds("11.1")
    spec = firmware_spec(folder, build, "tcg")
    asyncio.run(make_disks(spec, build.img))
    return spec


async def alone(vm: VM, was: Role) -> None:
    """The guest runs, and nothing of the lost pair is left in its QEMU."""
    vitals = await vm.observe()
    assert (vitals.run_state, vitals.colo_mode) == (RunState.RUNNING, COLOMode.NONE)
    if was is Role.SECONDARY:
        # The close marker (node "witness") stays: it shows how this QEMU ends
        # (docs/life-of-a-pair.md, "A merge").
        nodes = {"colo-disk0", "childs0", "parent0", "witness"}
        wanted = Inventory(nodes=nodes, objects={"rew0"}, quorum=("childs0",))
    else:
        wanted = Inventory(nodes={"colo-disk0", "parent0"}, quorum=("parent0",))
    assert await inventory(vm) == wanted


def freeze_in_a_checkpoint(stage: Stage, vm: VM) -> asyncio.Task[None]:
    """``vm`` is stopped while the next checkpoint goes on."""

    async def wait() -> None:
        with vm.monitor.listen("STOP") as events:
            await events.next(30)
            vm.process.signal(signal.SIGSTOP)
        await stage.until(lambda: vm.process.life() is Life.STOPPED)

    return asyncio.create_task(wait())


async def lose(stage: Stage, lost: VM, fault: str) -> None:
    """The fault has happened to a pair in COLO."""
    if fault == "dead":
        lost.process.signal(signal.SIGKILL)
        await stage.until(lambda: stage.state.protection is Protection.FAILOVER)
    elif fault == "frozen in a checkpoint":
        await freeze_in_a_checkpoint(stage, lost)
    else:
        lost.process.signal(signal.SIGSTOP)
        # Not at once: each of its threads has to notice.
        await stage.until(lambda: lost.process.life() is Life.STOPPED)
        if lost is stage.secondary:
            # On the local disk at once; the replica's answer never comes.
            await qemu_io(stage.primary, f"aio_write -q -P {LATE:#x} {BLOCK} {BLOCK}")


@pytest.mark.parametrize("lost", ROLES)
@pytest.mark.parametrize("fault", ["dead", "frozen", "frozen in a checkpoint"])
async def test_the_survivor_runs_alone_and_can_be_protected_again(
    spec: PairSpec, fault: str, lost: Role
) -> None:
    async with supervised(spec) as stage:
        await stage.start()
        assert stage.state.protection is Protection.COLO
        assert "attach" in stage.steps()
        await guest_writes(stage.primary, WRITTEN, 0, BLOCK)
        await stage.checkpoints()
        victim = stage.state.vm_of(lost)
        survivor = stage.vm(other(victim.node))
        await lose(stage, victim, fault)

        timeline = await acts.failover(stage.state, None)

        assert timeline.survivor == survivor.node
        assert not victim.process.alive()
        assert stage.state.protection is Protection.UNPROTECTED
        await alone(survivor, timeline.role_before)
        assert await holds(survivor, WRITTEN, 0, BLOCK)

        await stage.start()
        assert stage.state.protection is Protection.COLO
        assert "compare" in stage.steps() and "mirror" not in stage.steps()
        await stage.checkpoints()
        assert await holds(stage.secondary, WRITTEN, 0, BLOCK)


async def test_a_replica_that_missed_a_write_is_never_promoted(spec: PairSpec) -> None:
    """The disk's way to the secondary breaks, and nothing else: checkpoints would go on."""

    async with supervised(spec) as stage:
        await stage.start()
        primary, secondary = stage.primary, stage.secondary
        nbd = [{"type": "block-node", "node-name": "nbd0"}]
        await primary.monitor.rescue(qmp.yank(nbd))
        await qemu_io(primary, f"aio_write -q -P {LATE:#x} {BLOCK} {BLOCK}")
        await stage.until_protection(Protection.FAILOVER)
        with pytest.raises(FailoverRefused, match="missed a write"):
            await acts.failover(stage.state, secondary.node)
        assert secondary.process.alive() and primary.process.alive()
        timeline = await acts.failover(stage.state, None)
        assert timeline.survivor == primary.node
        await alone(primary, Role.PRIMARY)
        assert await holds(primary, LATE, BLOCK, BLOCK)
        await stage.start()
        assert stage.state.protection is Protection.COLO
        assert stage.state.seats[secondary.node].view.impairments == ()


async def test_a_replica_that_misses_a_write_while_it_joins_is_given_up(newest: PairSpec) -> None:
    async with supervised(newest) as stage:
        await stage.start(protected=False)
        secondary = stage.state.seats[other(stage.primary.node)]
        stage.at_step("first checkpoint", secondary.miss_write)
        with pytest.raises(ReplicationError, match="missed a write"):
            await stage.start()
        assert stage.state.protection is Protection.UNPROTECTED
        assert secondary.vm is None
        await alone(stage.primary, Role.PRIMARY)


async def test_a_hold_that_comes_after_colo_began_does_not_stop_the_guest_for_a_period(
    spec: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU enters COLO by itself for an idle guest, and the stop for its last pass comes late."""

    async def until_colo_runs(
        monitor: Monitor, little: int, deadline_s: float, look: object
    ) -> None:
        await until_migration(monitor, {MigrationStatus.COLO}, deadline_s)
        await until_runstate(monitor, {RunState.RUNNING}, deadline_s)

    monkeypatch.setattr(convergence, "until_little_memory_left", until_colo_runs)
    rare = replace(spec.checkpoint, delay_ms=LONG_MS, guard_first_connection=False)

    async with supervised(replace(spec, checkpoint=rare)) as stage:
        await stage.start(protected=False)
        await stage.start()
        assert stage.state.protection is Protection.COLO
        assert (await stage.primary.observe()).run_state is RunState.RUNNING


async def test_a_checkpoint_asked_for_in_the_middle_of_another_is_not_forgotten(
    spec: PairSpec,
) -> None:
    """QEMU forgets such a request, and the next checkpoint by itself is a minute away."""

    async with supervised(spec) as stage:
        await stage.start()
        for later_ms in range(15):  # spread over what a checkpoint takes
            one = asyncio.create_task(checkpoint_now(stage.primary, LONG_MS, PATIENCE_S))
            await asyncio.sleep(later_ms / 1000)
            await checkpoint_now(stage.primary, LONG_MS, PATIENCE_S)
            await one


async def test_a_survivors_image_is_that_of_the_last_checkpoint(
    spec: PairSpec, folder: Path
) -> None:
    """What the lost primary wrote since then is taken back, in the file too, whenever it ends."""

    async with supervised(spec) as stage:
        await stage.start()
        await guest_writes(stage.primary, WRITTEN, 0, BLOCK)
        await stage.until(lambda: not stage.state.cautious)
        await acts.set_values(stage.state, {"checkpoint-delay": LONG_MS})
        await checkpoint_now(stage.primary, LONG_MS, PATIENCE_S)  # that asks for one as well
        await guest_writes(stage.primary, LATE, 0, BLOCK)
        survivor = stage.secondary
        await acts.failover(stage.state, survivor.node)
        assert await holds(survivor, WRITTEN, 0, BLOCK)
        await acts.stop(stage.state, force=True)
        img = stage.state.ground.node("a").qemu_img
        raw = folder / "raw"
        argv = [img, "convert", "-O", "raw", spec.disks[0].image[survivor.node], raw]
        done = await stage.state.ground.hosts["a"].run(list(map(str, argv)), deadline_s=30)
        assert done.code == 0, done.stderr
        assert set(raw.read_bytes()[:BLOCK]) == {WRITTEN}


async def test_a_pair_begins_again_with_the_disks_of_its_survivor(newest: PairSpec) -> None:
    """There and back: the other node's disks are old, and are never copied over the new ones."""

    for number, (begins, survives) in enumerate((("a", "b"), ("b", "a"), ("a", "a")), start=1):
        async with supervised(newest) as stage:
            await stage.start()
            assert stage.primary.node == begins
            if number > 1:
                assert await holds(stage.primary, number - 1, 0, BLOCK)
                assert await holds(stage.secondary, number - 1, 0, BLOCK)
            await acts.failover(stage.state, survives)  # type: ignore[arg-type]
            assert stage.state.generation == number
            await guest_writes(stage.primary, number, 0, BLOCK)
            await qemu_io(stage.primary, "flush")


@pytest.mark.parametrize("step", PROTECTING)
async def test_a_secondary_that_dies_while_it_is_made_leaves_the_guest_running(
    spec: PairSpec, step: str
) -> None:
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        assert stage.state.protection is Protection.UNPROTECTED
        primary = stage.primary
        await guest_writes(primary, WRITTEN, 0, BLOCK)
        stage.at_step(step, lambda: stage.secondary.process.signal(signal.SIGKILL))
        with pytest.raises(ReplicationError):
            await stage.start()
        assert stage.state.protection is Protection.UNPROTECTED
        assert stage.state.seats["b"].vm is None
        assert not beside_logs(stage.state.ground.rundir("b"))
        await alone(primary, Role.PRIMARY)
        assert await holds(primary, WRITTEN, 0, BLOCK)

        await stage.start()
        assert stage.state.protection is Protection.COLO
        await stage.checkpoints()


@pytest.mark.parametrize("step", PROTECTING)
async def test_an_interrupted_protection_leaves_the_guest_running(
    spec: PairSpec, step: str
) -> None:
    """The secondary does not even answer any more."""

    async with supervised(spec) as stage:
        await stage.start(protected=False)
        stage.state.pause(True)
        primary = stage.primary
        stuck = asyncio.Event()

        def freeze() -> None:
            stage.secondary.process.signal(signal.SIGSTOP)
            stuck.set()

        stage.at_step(step, freeze)
        starting = asyncio.create_task(stage.start())
        await stuck.wait()
        await asyncio.sleep(0.5)
        assert not starting.done()
        await stage.state.interrupt("A test wants it.")
        assert starting.cancelled()
        assert stage.state.protection is Protection.UNPROTECTED
        assert not beside_logs(stage.state.ground.rundir("b"))
        await alone(primary, Role.PRIMARY)


async def test_a_start_that_is_interrupted_leaves_nothing_but_a_guest_that_ran(
    newest: PairSpec,
) -> None:
    for step in ("images", "primary", "secondary", "connect", "migrate", "first checkpoint"):
        async with supervised(newest) as stage:
            starting = asyncio.create_task(stage.start())
            stage.at_step(step, starting.cancel)
            with pytest.raises(asyncio.CancelledError):
                await starting
            # By then the guest has run, and may have answered clients: it is not ended.
            serves = step == "first checkpoint"
            wanted = Protection.UNPROTECTED if serves else Protection.DOWN
            assert stage.state.protection is wanted
            vms = [seat.vm for seat in stage.state.seats.values() if seat.vm is not None]
            assert vms == ([stage.primary] if serves else [])


@pytest.mark.parametrize("channel", [MigrationTransport.FD, MigrationTransport.TCP])
@pytest.mark.parametrize("multifd_channels", [0, 2])
async def test_every_channel_carries_checkpoints(
    newest: PairSpec, channel: MigrationTransport, multifd_channels: int
) -> None:
    replication = replace(newest.replication, channel=channel, multifd_channels=multifd_channels)

    async with supervised(replace(newest, replication=replication)) as stage:
        await stage.start()
        await stage.checkpoints(3)
        answer = await stage.primary.execute(qmp.query_migrate_capabilities())
        (multifd,) = (one["state"] for one in answer if one["capability"] == "multifd")
        assert multifd is (multifd_channels > 0)
        survivor = stage.secondary
        await acts.failover(stage.state, survivor.node)
        await alone(survivor, Role.SECONDARY)


@pytest.mark.parametrize("broken", ["q35", "multifd", "tcg"])
async def test_what_is_known_to_break_is_refused_before_anything_starts(
    folder: Path, qemu_build: qemu.Build, broken: str
) -> None:
    spec = firmware_spec(folder, qemu_build, "kvm" if broken != "tcg" else "tcg")
    if broken == "q35":
        spec = replace(spec, guest=replace(spec.guest, machine="q35"))
    if broken == "multifd":
        spec = replace(spec, replication=replace(spec.replication, multifd_channels=2))

    if qemu_build.name == "11.1":
        await (await prepare(spec)).aclose()
        return
    with pytest.raises(UnsupportedQEMU) as refused:
        await prepare(spec)
    assert refused.value.hint
