"""Real pairs lose a side and nobody is asked: the supervisor notices, decides, and fails over."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.pairs import (
    Stage,
    firmware_spec,
    guest_writes,
    holds,
    make_disks,
    qemu_io,
    supervised,
)

from coloctl.errors import ReplicationError
from coloctl.journal import replay
from coloctl.lab import qemu
from coloctl.model.event import Kind
from coloctl.model.observation import Diagnosis, Observation
from coloctl.model.pair import PairSpec, Role, other
from coloctl.model.protection import Protection
from coloctl.model.qapi import COLOMode, RunState
from coloctl.model.revive import revive
from coloctl.qmp import command as qmp
from coloctl.vm import VM

pytestmark = pytest.mark.qemu

BLOCK = 65536
DEATH, FROST = signal.SIGKILL, signal.SIGSTOP


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


@pytest.fixture
def spec(folder: Path, qemu_build: qemu.Build) -> PairSpec:
    """On each QEMU of the matrix in its turn."""
    if qemu_build.name != "11.1" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip(f"COLO of QEMU {qemu_build.name} needs KVM")
    accel = "tcg" if qemu_build.name == "11.1" else "kvm"
    spec = firmware_spec(folder, qemu_build, accel, automatic=True)
    asyncio.run(make_disks(spec, qemu_build.img))
    return spec


@pytest.fixture
def newest(folder: Path, qemu_builds: Callable[[str], qemu.Build]) -> PairSpec:
    build = qemu_builds("11.1")
    spec = firmware_spec(folder, build, "tcg", automatic=True)
    asyncio.run(make_disks(spec, build.img))
    return spec


def causes(stage: Stage) -> list[str]:
    """Why each failover so far was begun, by the timelines that clients were told."""
    return [str(d["timeline"]["cause"]) for name, d in stage.events if name == "FAILED_OVER"]


async def survived(stage: Stage, victim: VM, *wanted: Diagnosis) -> None:
    """The other one runs alone, for one of the ``wanted`` reasons, and ``victim`` is dead."""
    survivor = stage.vm(other(victim.node))
    before = len(causes(stage))
    await stage.until(lambda: len(causes(stage)) > before and not stage.state.act)
    assert causes(stage)[-1] in wanted
    assert not victim.process.alive()
    assert stage.state.protection is Protection.UNPROTECTED
    vitals = await survivor.observe()
    assert (vitals.run_state, vitals.colo_mode) == (RunState.RUNNING, COLOMode.NONE)
    assert stage.primary is survivor


async def test_each_side_may_die_or_freeze_one_after_the_other(spec: PairSpec) -> None:
    """Four failovers of one pair, protected again in between; no operator chooses anybody."""

    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints(1)
        await guest_writes(stage.primary, 0x11, 0, BLOCK)
        for generation, (role, fault, wanted) in enumerate(
            (
                (Role.PRIMARY, DEATH, Diagnosis.PRIMARY_DEAD),
                (Role.SECONDARY, FROST, Diagnosis.SECONDARY_FROZEN),
                (Role.PRIMARY, FROST, Diagnosis.PRIMARY_FROZEN),
                (Role.SECONDARY, DEATH, Diagnosis.SECONDARY_DEAD),
            ),
            start=1,
        ):
            if generation > 1:
                await stage.start()
            await stage.checkpoints()
            assert stage.state.finding.diagnosis is Diagnosis.HEALTHY
            victim = stage.state.vm_of(role)
            victim.process.signal(fault)
            await survived(stage, victim, wanted)
            assert stage.state.generation == generation
            assert await holds(stage.primary, 0x11, 0, BLOCK)
        assert len(causes(stage)) == 4
        observed = [
            revive(Observation, record.data["observation"])
            for record in replay(stage.state.ground.folder / "journal.jsonl").records
            if record.kind is Kind.OBSERVATION and "observation" in record.data
        ]
        assert all(seen.nodes for seen in observed)
        assert len(observed) >= 4


@pytest.mark.parametrize("role", [Role.PRIMARY, Role.SECONDARY])
async def test_one_that_freezes_in_the_middle_of_a_checkpoint(newest: PairSpec, role: Role) -> None:
    """The first one after COLO was entered, when nothing is known of this pair's checkpoints."""

    async with supervised(newest) as stage:
        await stage.start()
        victim = stage.state.vm_of(role)
        with stage.primary.monitor.listen("STOP") as events:
            await events.next(30)
            victim.process.signal(FROST)
        frozen = {
            Role.PRIMARY: Diagnosis.PRIMARY_FROZEN,
            Role.SECONDARY: Diagnosis.SECONDARY_FROZEN,
        }[role]
        await survived(stage, victim, frozen)


async def test_a_replica_that_misses_a_write_is_given_up(newest: PairSpec) -> None:
    async with supervised(newest) as stage:
        await stage.start()
        primary, secondary = stage.primary, stage.secondary
        nbd = [{"type": "block-node", "node-name": "nbd0"}]
        await primary.monitor.rescue(qmp.yank(nbd))
        await qemu_io(primary, f"aio_write -q -P 0x22 {BLOCK} {BLOCK}")
        await survived(stage, secondary, Diagnosis.REPLICA_WRITE_ERROR)
        assert await holds(primary, 0x22, BLOCK, BLOCK)


@pytest.mark.parametrize("step", ["connect", "migrate"])
async def test_a_secondary_that_freezes_while_it_is_made_is_given_up(
    newest: PairSpec, step: str
) -> None:
    """Nothing would ever end that wait; the guest runs on, and whoever asked is told why."""

    async with supervised(newest) as stage:
        await stage.start(protected=False)
        primary = stage.primary
        stage.at_step(step, lambda: stage.secondary.process.signal(FROST))
        with pytest.raises(ReplicationError, match="secondary-frozen"):
            await stage.start()
        assert stage.state.protection is Protection.UNPROTECTED
        assert "secondary-frozen" in stage.state.view().reason
        assert stage.state.seats["b"].vm is None
        vitals = await primary.observe()
        assert vitals.run_state is RunState.RUNNING
        await stage.start()
        await stage.checkpoints(1)


async def test_a_paused_pair_waits_and_goes_on_when_it_is_resumed(newest: PairSpec) -> None:
    async with supervised(newest) as stage:
        await stage.start()
        stage.state.pause(True)
        primary, secondary = stage.primary, stage.secondary
        primary.process.signal(DEATH)
        await stage.until_protection(Protection.FAILOVER)
        view = stage.state.view()
        assert view.paused and view.exposed_s is not None
        assert "resume" in view.waiting
        assert secondary.process.alive() and not causes(stage)
        stage.state.pause(False)
        await survived(stage, primary, Diagnosis.PRIMARY_DEAD)


async def test_a_slow_heartbeat_hears_of_a_death_at_once(newest: PairSpec) -> None:
    """The kernel says so; no beat is waited for."""
    rare = replace(newest.detection, heartbeat_ms=60_000, suspect_after_ms=120_000)

    async with supervised(replace(newest, detection=rare)) as stage:
        await stage.start()
        primary = stage.primary
        primary.process.signal(DEATH)
        await survived(stage, primary, Diagnosis.PRIMARY_DEAD)
