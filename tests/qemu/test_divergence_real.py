"""A secondary that alone does what a sound guest would not is given up, on real pairs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.pairs import firmware_spec, make_disks, supervised

from coloctl.chaos.faults.ruin import INJECT
from coloctl.errors import MonitorError
from coloctl.lab import qemu
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import PairSpec
from coloctl.model.protection import Protection
from coloctl.qmp.command import Command
from coloctl.vm import VM

pytestmark = pytest.mark.qemu


@pytest.fixture
def spec(tmp_path: Path, qemu_builds: Callable[[str], qemu.Build]) -> PairSpec:
    build = qemu_builds("11.1")
    described = firmware_spec(tmp_path, build, "tcg", automatic=True, circular=True)
    asyncio.run(make_disks(described, build.img))
    return described


async def ruin(secondary: VM) -> None:
    """Inject machine checks until it is given up: a checkpoint may take a single one back."""
    command = Command("human-monitor-command", {"command-line": INJECT})
    with contextlib.suppress(MonitorError):
        while secondary.process.alive():
            await secondary.execute(command)
            await asyncio.sleep(0.2)


async def test_a_secondary_ruined_by_a_machine_check_is_made_anew(spec: PairSpec) -> None:
    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints(2)
        primary, secondary = stage.primary, stage.secondary
        ruining = asyncio.create_task(ruin(secondary))
        await stage.until(lambda: not secondary.process.alive())
        await ruining
        found = [data["diagnosis"] for name, data in stage.events if name == "DIAGNOSIS"]
        assert Diagnosis.SECONDARY_DIVERGED in found
        await stage.until_protection(Protection.COLO)
        assert stage.primary is primary and stage.secondary is not secondary
        await stage.checkpoints(2)


async def test_a_ruin_that_is_known_is_not_promoted_when_the_primary_dies(spec: PairSpec) -> None:
    """Failovers are paused until it is known and the primary dead: then both happen at once."""

    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints(2)
        primary, secondary = stage.primary, stage.secondary
        stage.state.pause(True)
        ruining = asyncio.create_task(ruin(secondary))
        await stage.until(lambda: stage.state.seats[secondary.node].diverged)
        ruining.cancel()
        primary.process.signal(signal.SIGKILL)
        await stage.until(lambda: not primary.process.alive())
        stage.state.pause(False)
        await stage.until(lambda: "boots the guest from there" in stage.state.view().reason)
        assert stage.state.protection is Protection.FAILOVER
        assert stage.secondary is secondary and secondary.process.alive()
        told = await secondary.execute(Command("query-colo-status"))
        assert told["mode"] == "secondary"


async def test_a_sound_pair_of_idle_guests_is_left_alone(spec: PairSpec) -> None:
    async with supervised(spec) as stage:
        await stage.start()
        secondary = stage.secondary
        await stage.checkpoints(25)
        assert stage.secondary is secondary
        assert not [name for name, _ in stage.events if name == "DIAGNOSIS"]
