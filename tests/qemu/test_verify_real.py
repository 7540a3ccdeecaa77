"""The disks of a real pair compared in COLO: sound, damaged behind QEMU's back, and lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.merging import slow
from support.pairs import Stage, firmware_spec, guest_writes, inventory, make_disks, supervised

from coloctl.lab import qemu
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import OnDifference, PairSpec, Role, VerifySpec
from coloctl.model.protection import Protection
from coloctl.model.verified import VerifyOutcome
from coloctl.supervisor import acts

pytestmark = pytest.mark.qemu

CHUNK = 65536
#: Where the secondary's image is damaged, and the chunks that hold it.
DAMAGE, LENGTH = 5 * CHUNK + 100, CHUNK


@pytest.fixture
def spec(tmp_path: Path, qemu_builds: Callable[[str], qemu.Build]) -> PairSpec:
    build = qemu_builds("11.1")
    described = firmware_spec(tmp_path, build, "tcg", automatic=True)
    described = replace(
        described,
        disks=tuple(replace(disk, format="raw") for disk in described.disks),
        verify=VerifySpec(memory=False),
    )
    asyncio.run(make_disks(described, build.img))
    return described


async def damage(stage: Stage) -> None:
    """Bytes of the secondary's image are others, and no QEMU knows of it."""
    path = stage.state.spec.disks[0].image[stage.secondary.node]
    with path.open("r+b") as image:
        image.seek(DAMAGE)
        image.write(b"\xff" * LENGTH)


async def idle_primary(stage: Stage) -> None:
    """Nothing of a comparison is left in the primary."""
    await stage.until(lambda: stage.state.beside.left is None)
    left = await inventory(stage.primary)
    assert not left.exports and not left.jobs


async def test_a_sound_pair_is_equal(spec: PairSpec) -> None:
    """What the guest wrote since the last checkpoint is on both disks as well."""

    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints()
        for number in range(3):
            await guest_writes(stage.primary, 0x11 + number, number * CHUNK, CHUNK)
            found = await stage.supervisor.verifying.verify()
            assert found.outcome is VerifyOutcome.EQUAL, found
            assert found.disks[0].size == 16 << 20 and found.disks[0].read >= CHUNK
            assert stage.state.protection is Protection.COLO
        await idle_primary(stage)


async def test_a_replica_damaged_behind_qemus_back_is_named(spec: PairSpec) -> None:
    """And only told of: which of the two disks is the right one, nobody knows."""

    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints()
        await damage(stage)
        found = await stage.supervisor.verifying.verify()
        assert found.outcome is VerifyOutcome.DIFFERENT
        assert found.disks[0].differs == ((5 * CHUNK, 7 * CHUNK),)
        assert f"at byte {5 * CHUNK}" in found.sentence()
        assert stage.state.view().to_json()["verified"]["outcome"] == "different"
        assert stage.state.protection is Protection.COLO
        await idle_primary(stage)


async def test_where_the_primary_is_trusted_a_damaged_replica_is_given_up_and_made_anew(
    spec: PairSpec,
) -> None:
    spec = replace(
        spec,
        verify=VerifySpec(memory=False, on_difference=OnDifference.RESYNC),
        policy=replace(spec.policy, auto_reprotect=True),
    )

    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints()
        secondary = stage.secondary
        await damage(stage)
        await stage.supervisor.verifying.verify()
        await stage.until(lambda: not secondary.process.alive())
        assert any(
            name == "DIAGNOSIS" and data["diagnosis"] == Diagnosis.SECONDARY_DIVERGED
            for name, data in stage.events
        )
        await stage.until_protection(Protection.COLO)
        await stage.checkpoints()
        again = await stage.supervisor.verifying.verify()
        assert again.outcome is VerifyOutcome.EQUAL


@pytest.mark.parametrize("lost", [Role.PRIMARY, Role.SECONDARY])
async def test_a_node_that_is_lost_meanwhile_breaks_it_off_and_is_survived(
    spec: PairSpec, lost: Role
) -> None:
    spec = replace(spec, verify=VerifySpec(memory=False, rate=64 * 1024))

    async with supervised(spec) as stage:
        await has_much(stage)
        await stage.checkpoints()
        verifying = asyncio.create_task(stage.supervisor.verifying.verify())
        await asyncio.sleep(1.0)
        assert not verifying.done()
        stage.state.vm_of(lost).process.signal(9)
        found = await verifying
        assert found.outcome is VerifyOutcome.BROKEN_OFF and found.reason
        await stage.until_protection(Protection.UNPROTECTED)
        survivor = stage.primary
        await idle_primary(stage)
        await stage.start()
        await stage.checkpoints()
        assert stage.primary is survivor


async def test_an_act_does_not_wait_for_it(spec: PairSpec) -> None:
    spec = replace(spec, verify=VerifySpec(memory=False, rate=64 * 1024))

    async with supervised(spec) as stage:
        await has_much(stage)
        verifying = asyncio.create_task(stage.supervisor.verifying.verify())
        await asyncio.sleep(0.5)
        await acts.checkpoint(stage.state)
        assert not verifying.done()
        await acts.unprotect(stage.state)
        assert (await verifying).outcome is VerifyOutcome.BROKEN_OFF
        await idle_primary(stage)


async def has_much(stage: Stage) -> None:
    """Start the pair; its guest has written so much that a comparison at a low rate takes long."""
    await stage.start()
    await stage.checkpoints()
    await guest_writes(stage.primary, 0x11, 0, 8 << 20)


def programs() -> list[int]:
    """The programs that read disks for this process, and their children."""
    found, asked = [], [os.getpid()]
    while asked:
        pid = asked.pop()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                asked += map(int, (task / "children").read_text().split())
            if b"coloctl.nbd." in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


async def test_programs_that_stand_still_hold_no_checkpoint(spec: PairSpec) -> None:
    spec = replace(spec, verify=VerifySpec(memory=False, rate=256 * 1024))

    async with supervised(spec) as stage:
        await has_much(stage)
        # The program beside the secondary has no rate of its own and would soon be done.
        await slow(stage.secondary, spec, 256 * 1024, "read")
        verifying = asyncio.create_task(stage.supervisor.verifying.verify())
        await stage.until(lambda: len(programs()) == 2)
        await asyncio.sleep(0.5)
        stopped = programs()
        assert len(stopped) == 2
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        await stage.checkpoints(5)
        assert not verifying.done() and stage.state.protection is Protection.COLO
        await acts.unprotect(stage.state)
        assert (await verifying).outcome is VerifyOutcome.BROKEN_OFF
        await stage.until(lambda: not programs())
