"""Each QEMU of the matrix shows, however it ends, which disks of a secondary it has merged.

Of two disks one refuses its merge, and the other is whole. No supervisor looks, the guest writes to
the whole one again, and that QEMU ends. The next start has to merge the one and leave the other.
"""

from __future__ import annotations

import asyncio
import errno
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from support.merging import refuse_writes, until_nodes_gone
from support.pairs import (
    PATIENCE_S,
    Stage,
    accel_for,
    firmware_spec,
    guest_writes,
    holds,
    make_disks,
    qemu_io,
    supervised,
)

from coloctl.colo import registry
from coloctl.lab import qemu
from coloctl.machine import blockdev, merge_log
from coloctl.model.pair import NODES, CheckpointSpec, DiskSpec, PairSpec
from coloctl.model.protection import Protection
from coloctl.supervisor import acts
from coloctl.supervisor.acts import merge

pytestmark = pytest.mark.qemu

#: Written by the secondary's guest to each disk, and by the survivor's to the one that is whole.
BEFORE, AFTER, LENGTH = 0x11, 0x22, 65536
DEVICES = ("vd0/virtio-backend", "vd1/virtio-backend")


def pair(folder: Path, build: qemu.Build) -> PairSpec:
    """Two disks, and no checkpoint that would empty their overlays."""
    disks = tuple(
        DiskSpec(f"disk{i}", {node: folder / f"{node}{i}.qcow2" for node in NODES}) for i in (0, 1)
    )
    rare = CheckpointSpec(delay_ms=60_000, guard_first_connection=False)
    return replace(firmware_spec(folder, build, accel_for(build)), disks=disks, checkpoint=rare)


async def merge_one(stage: Stage, refusing: int) -> None:
    """Node b serves; the disk ``refusing`` has its overlays, and the other was written to since."""
    spec, survivor, whole = stage.state.spec, stage.secondary, 1 - refusing
    for device in DEVICES:
        await qemu_io(survivor, f"write -P {BEFORE} 0 {2 * LENGTH}", device)
    await refuse_writes(survivor, spec, errno.EIO, refusing)
    stage.primary.process.signal(signal.SIGKILL)
    await acts.failover(stage.state, "b")
    await until_nodes_gone(survivor.monitor, blockdev.overlay_ids(whole), PATIENCE_S)
    await guest_writes(survivor, AFTER, 0, LENGTH, DEVICES[whole])


@pytest.mark.parametrize("refusing", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_merge_that_was_not_recorded_is_known_afterwards(
    tmp_path: Path,
    qemu_build: qemu.Build,
    how: signal.Signals,
    refusing: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def unwatched(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(merge, "_follow", unwatched)
    spec, whole = pair(tmp_path, qemu_build), 1 - refusing
    await make_disks(spec, qemu_build.img)
    async with supervised(spec) as stage:
        await stage.start()
        log = blockdev.merge_log(blockdev.close_marker(spec, "b"))
        assert log.read_bytes() == b""  # a pair may be in COLO for a year
        await merge_one(stage, refusing)
        stage.primary.process.signal(how)
        await stage.until_protection(Protection.DOWN)
        pending, _ = await registry.look(spec, stage.state.ground.hosts["b"], "b")
        assert set(pending.overlays) == {"disk0", "disk1"}
        assert merge_log.merged(log.read_text(), 2) == {whole}, log.read_text()
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        assert stage.primary.node == "b"
        assert await holds(stage.primary, AFTER, 0, LENGTH, DEVICES[whole])
        assert await holds(stage.primary, BEFORE, LENGTH, LENGTH, DEVICES[whole])
        assert await holds(stage.primary, BEFORE, 0, 2 * LENGTH, DEVICES[refusing])
    assert not log.exists()
