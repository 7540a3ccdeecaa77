"""The memory of a real pair compared in COLO: sound, damaged behind QEMU's back, and lost."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.pairs import firmware_spec, guest_writes, make_disks, supervised

from coloctl.colo import pages
from coloctl.lab import qemu
from coloctl.model.pair import OnDifference, PairSpec, VerifySpec
from coloctl.model.protection import Protection
from coloctl.model.ram import PAGE
from coloctl.model.verified import VerifyOutcome
from coloctl.qmp.command import Command
from coloctl.vm import VM

pytestmark = pytest.mark.qemu

#: A page that firmware does not use, and a byte in it.
DAMAGE = 0x1345678
#: The guest's memory.
MIB = 32


@pytest.fixture
def spec(tmp_path: Path, qemu_builds: Callable[[str], qemu.Build]) -> PairSpec:
    build = qemu_builds("11.1")
    described = firmware_spec(tmp_path, build, "tcg", automatic=True)
    described = replace(
        described,
        guest=replace(described.guest, memory_mib=MIB),
        verify=VerifySpec(
            memory=True, on_difference=OnDifference.RESYNC
        ),  # of memory nothing follows
    )
    asyncio.run(make_disks(described, build.img))
    return described


async def flip(vm: VM, at: int) -> None:
    """A bit of the guest's memory is another one, as in memory that goes bad."""
    line = {"command-line": f"gpa2hva {at:#x}"}
    said = await vm.execute(Command("human-monitor-command", line))
    found = re.search(r" is (0x[0-9a-f]+)", str(said))
    assert found is not None, said
    place = int(found[1], 16)
    try:
        memory = os.open(f"/proc/{vm.process.identity.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        pytest.skip("the kernel lets no process write into the memory of another")
    try:
        (byte,) = os.pread(memory, 1, place)
        os.pwrite(memory, bytes([byte ^ 0x10]), place)
    finally:
        os.close(memory)


async def descriptors(vm: VM) -> list[object]:
    """What a QEMU was given and did not give back."""
    return list(await vm.execute(Command("query-fdsets")))


async def test_a_sound_pair_is_the_same_and_a_flipped_bit_is_told_at_its_page(
    spec: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LOOKS", 4)  # firmware makes no page other behind a checkpoint

    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints()
        await guest_writes(stage.primary, 0x11, 0, 1 << 20)
        found = await stage.supervisor.verifying.verify()
        assert found.outcome is VerifyOutcome.EQUAL and found.pages is not None, found
        memory = found.pages
        assert memory.pages * PAGE + memory.left_out == MIB << 20
        assert memory.same > memory.pages // 2 and not memory.different

        await flip(stage.secondary, DAMAGE)
        await stage.checkpoints()
        found = await stage.supervisor.verifying.verify()
        assert found.outcome is VerifyOutcome.DIFFERENT and found.pages is not None, found
        at = DAMAGE // PAGE * PAGE
        assert found.pages.places == ((at, at + PAGE),)
        assert f"{at:#x} (pc.ram)" in found.sentence()
        assert stage.state.view().to_json()["verified"]["pages"]["different"] == 1
        await stage.checkpoints()
        assert stage.state.protection is Protection.COLO
        assert not any(name == "DIAGNOSIS" for name, _ in stage.events)
        assert await descriptors(stage.primary) == await descriptors(stage.secondary) == []

        found = await stage.supervisor.verifying.verify(memory=False)
        assert found.outcome is VerifyOutcome.EQUAL and found.pages is None


async def test_a_primary_that_is_lost_meanwhile_is_survived_and_nothing_stays_in_the_survivor(
    spec: PairSpec,
) -> None:
    spec = replace(spec, verify=replace(spec.verify, rate=4 << 20))

    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints()
        verifying = asyncio.create_task(stage.supervisor.verifying.verify())
        await stage.until(lambda: bool(stage.state.beside.lent))
        await stage.checkpoints()  # it goes on beside them
        assert not verifying.done() and await descriptors(stage.secondary)
        stage.primary.process.signal(9)
        found = await verifying
        assert found.outcome is VerifyOutcome.BROKEN_OFF and found.reason and found.pages is None
        await stage.until_protection(Protection.UNPROTECTED)
        await stage.until(lambda: not stage.state.beside.lent)
        assert not await descriptors(stage.primary)
