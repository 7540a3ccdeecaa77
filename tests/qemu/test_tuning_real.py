"""Live settings on real pairs: QEMU is asked what it was told, and a copy how fast it goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import commands
from support.pairs import Stage, firmware_spec, make_disks, qemu_io, supervised

from coloctl.colo import generation
from coloctl.journal import Journal, replay
from coloctl.lab import qemu
from coloctl.model.pair import CheckpointMode, PairSpec
from coloctl.model.protection import Protection
from coloctl.qmp import command as qmp
from coloctl.supervisor import acts
from coloctl.supervisor.adopt import Adoption
from coloctl.supervisor.loop import Supervisor
from coloctl.supervisor.reconcile import Move
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

pytestmark = pytest.mark.qemu

SETTINGS = {
    "checkpoint-delay": "350ms",
    "compare-timeout": 450,
    "expired-scan-cycle": 60,
    "max-queue-size": 2048,
    "mirror-rate": "1GiB",
}
LIMITS = {"compare_timeout": 450, "expired_scan_cycle": 60, "max_queue_size": 2048}


@pytest.fixture(scope="module")
def build() -> qemu.Build:
    """The one QEMU of the matrix that can do COLO with every accelerator."""
    return qemu.provide("11.1")


@pytest.fixture
def pair(build: qemu.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PairSpec:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    spec = firmware_spec(tmp_path, build, "tcg")
    asyncio.run(make_disks(spec, build.img))
    return spec


async def limits(vm: VM) -> dict[str, Any]:
    return {name: await vm.execute(commands.qom_get("/objects/comp0", name)) for name in LIMITS}


async def delay_ms(vm: VM) -> int:
    told: int = (await vm.execute(commands.query_migrate_parameters()))["x-checkpoint-delay"]
    return told


async def test_every_setting_is_qemus_and_stays_through_a_failover(pair: PairSpec) -> None:
    async with supervised(pair) as stage:
        await stage.start()
        stage.state.cautious = False
        first = await limits(stage.primary)
        await acts.set_values(stage.state, SETTINGS)
        assert await limits(stage.primary) == LIMITS != first
        assert await delay_ms(stage.primary) == 350 == stage.state.period_ms()
        await stage.checkpoints()
        await acts.failover(stage.state, "b")
        await stage.start()
        assert stage.primary.node == "b"
        assert await limits(stage.primary) == LIMITS
        assert await delay_ms(stage.primary) == 350


async def test_without_protection_settings_wait_for_it(pair: PairSpec) -> None:
    async with supervised(pair) as stage:
        await stage.start(protected=False)
        await acts.set_values(stage.state, SETTINGS)
        await stage.start()
        assert await limits(stage.primary) == LIMITS
        assert await delay_ms(stage.primary) == 350


async def speed(vm: VM) -> int | None:
    return next((int(job["speed"]) for job in await vm.execute(commands.query_block_jobs())), None)


async def test_a_copy_that_runs_takes_another_rate(pair: PairSpec) -> None:
    async with supervised(pair) as stage:
        await acts.set_values(stage.state, {"mirror-rate": "64KiB"})
        await stage.start(protected=False)
        await qemu_io(stage.primary, "write -P 0x5a 0 8M")
        # As if node b had never held these disks: only a full copy is a job of QEMU's.
        replica = pair.disks[0].image["b"]
        replica.with_name(replica.name + generation.SUFFIX).unlink()
        shutil.rmtree(os.environ["COLOCTL_REGISTRY_DIR"])
        protecting = asyncio.create_task(stage.start())
        await stage.until(lambda: "mirror" in stage.steps() or protecting.done())
        async with asyncio.timeout(20):
            while await speed(stage.primary) != 64 << 10:
                assert not protecting.done()
                await asyncio.sleep(0.01)
        await acts.set_values(stage.state, {"mirror-rate": "128KiB"})
        assert await speed(stage.primary) == 128 << 10
        await acts.set_values(stage.state, {"mirror-rate": 0})
        await protecting
        assert stage.state.protection is Protection.COLO


@contextlib.asynccontextmanager
async def inherited(stage: Stage) -> AsyncIterator[PairState]:
    """Another supervisor has taken the pair over from one that fell silent."""
    folder = stage.state.ground.folder
    records = replay(folder / "journal.jsonl").records
    for seat in stage.state.seats.values():
        seat.unwatch()
        assert seat.vm is not None
        await seat.vm.monitor.aclose()
    with Journal(folder / "journal-heir.jsonl") as journal:
        state = PairState(stage.state.pair_file, stage.state.ground, journal, lambda *_: None)
        supervisor, until = Supervisor(state), asyncio.Event()
        running = asyncio.create_task(supervisor.run(until))
        await asyncio.sleep(0)
        heir = Adoption(
            state,
            records,
            watch=supervisor.watch,
            entered=supervisor.entered,
            missed=supervisor.missed,
        )
        try:
            await heir.adopt()
            assert heir.plan.move is Move.ADOPT_COLO
            yield state
        finally:
            until.set()
            await running
            for seat in state.seats.values():
                if seat.vm is not None:
                    await seat.vm.monitor.aclose()
                    seat.vm.process.close()


async def test_the_next_supervisor_keeps_every_setting(pair: PairSpec) -> None:
    async with supervised(pair) as stage:
        await stage.start()
        await acts.set_values(stage.state, SETTINGS)
        # As if the supervisor had died in the middle of it.
        await stage.primary.execute(qmp.qom_set("/objects/comp0", "compare_timeout", 1))
        async with inherited(stage) as state:
            assert state.spec == stage.state.spec != state.pair_file
            primary = state.seats["a"].vm
            assert primary is not None
            assert await limits(primary) == LIMITS
            assert await delay_ms(primary) == state.period_ms() == 350


async def test_an_idle_pair_in_adaptive_mode_takes_fewer_checkpoints(pair: PairSpec) -> None:
    checkpoint = replace(
        pair.checkpoint, mode=CheckpointMode.ADAPTIVE, max_delay_ms=800, pause_share=1.0
    )

    async with supervised(replace(pair, checkpoint=checkpoint)) as stage:
        await stage.start()
        await stage.until(lambda: not stage.state.cautious)
        await stage.until(lambda: stage.state.delay_ms == 800)
        assert await delay_ms(stage.primary) == 800
        changes = [data for name, data in stage.events if name == "PACE_CHANGED"]
        assert changes[0]["before_ms"] == 200 and changes[-1]["after_ms"] == 800
        await acts.set_values(stage.state, {"checkpoint-mode": "fixed"})
        assert await delay_ms(stage.primary) == stage.state.period_ms() == 200
