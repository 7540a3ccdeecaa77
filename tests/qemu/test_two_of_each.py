"""Two disks and two network cards of every kind: one checkpoint for all, and the same machine ever.

Firmware guests; what a guest would write is written through its own device by the monitor.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from support.pairs import Stage, firmware_spec, guest_writes, holds, make_disks, supervised

from coloctl.lab import qemu
from coloctl.model.pair import NODES, DiskSpec, NicSpec, NodeName, PairSpec, Role, other
from coloctl.model.protection import Protection
from coloctl.qmp import command as qmp
from coloctl.supervisor import acts
from coloctl.vm import VM

pytestmark = pytest.mark.qemu

BLOCK = 65536
BLK, SCSI = "virtio-blk-pci", "scsi-hd"
NET, E1000 = "virtio-net-pci", "e1000"
#: Formats and models of both disks, models of both cards.
KINDS = {
    "virtio": ((("qcow2", BLK), ("qcow2", BLK)), (NET, NET)),
    "scsi-raw-e1000": ((("raw", SCSI), ("raw", SCSI)), (E1000, E1000)),
    "mixed": ((("qcow2", BLK), ("raw", SCSI)), (NET, E1000)),
    "ide-and-raw": ((("qcow2", "ide-hd"), ("raw", BLK)), (E1000, NET)),
}


@pytest.fixture(params=KINDS)
def spec(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    qemu_build: qemu.Build,
) -> PairSpec:
    """On each QEMU of the matrix in its turn."""
    if qemu_build.name != "11.1" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip(f"COLO of QEMU {qemu_build.name} needs KVM")
    disks, nics = KINDS[request.param]
    folder: Path = tmp_path_factory.mktemp("t")
    spec = firmware_spec(folder, qemu_build, "tcg" if qemu_build.name == "11.1" else "kvm")
    spec = replace(
        spec,
        checkpoint=replace(spec.checkpoint, delay_ms=1000),
        disks=tuple(
            DiskSpec(f"disk{i}", {n: folder / f"{n}{i}.{form}" for n in NODES}, form, model)
            for i, (form, model) in enumerate(disks)
        ),
        nics=tuple(
            NicSpec(f"hn{i}", f"52:54:00:c0:10:0{i}", None, model) for i, model in enumerate(nics)
        ),
    )
    asyncio.run(make_disks(spec, qemu_build.img))
    return spec


def device(spec: PairSpec, disk: int) -> str:
    """Where the monitor finds the guest's disk."""
    behind = "/virtio-backend" if spec.disks[disk].model == BLK else ""
    return f"vd{disk}{behind}"


async def write(stage: Stage, spec: PairSpec, byte: int) -> None:
    """Both disks hold ``byte`` in the same place, each a variety of its own."""
    for i, _ in enumerate(spec.disks):
        await guest_writes(stage.primary, byte + i, byte * BLOCK, BLOCK, device(spec, i))


async def hold(vm: VM, spec: PairSpec, byte: int) -> None:
    for i, _ in enumerate(spec.disks):
        assert await holds(vm, byte + i, byte * BLOCK, BLOCK, device(spec, i)), (i, byte)


async def slots(vm: VM) -> set[tuple[str, int, int]]:
    """Every device on the machine's root bus, by name and place."""
    (root,) = (bus for bus in await vm.execute(qmp.Command("query-pci", {})) if not bus["bus"])
    return {(one["qdev_id"], one["slot"], one["function"]) for one in root["devices"]}


async def lose(stage: Stage, role: Role) -> NodeName:
    """The node that had ``role`` is lost, after a checkpoint; the other runs alone."""
    await acts.checkpoint(stage.state)
    victim = stage.state.vm_of(role)
    victim.process.signal(signal.SIGKILL)
    await acts.failover(stage.state, other(victim.node))
    assert stage.state.protection is Protection.UNPROTECTED
    return other(victim.node)


async def test_both_disks_and_cards_go_through_failovers_in_both_directions(spec: PairSpec) -> None:
    async with supervised(spec) as stage:
        await stage.start()
        machine = await slots(stage.primary)
        written = []
        for byte, role in enumerate((Role.PRIMARY, Role.SECONDARY, Role.PRIMARY), start=1):
            if stage.state.protection is Protection.UNPROTECTED:
                await stage.start()
            assert await slots(stage.primary) == machine
            assert await slots(stage.secondary) == machine
            await write(stage, spec, byte)
            written.append(byte)
            survivor = stage.vm(await lose(stage, role))
            for one in written:
                await hold(survivor, spec, one)
