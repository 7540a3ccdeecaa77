"""Goal: devices, several disks and ``replication.overlay_dir`` lose nothing in a merge either.

Method: a pair whose secondary is promoted while its device takes some pieces of the merge and holds
the others until the guest's records are written; then it takes 2 MiB per second. Or it has two
disks, and the second refuses the merge; the first is whole then, its active overlay was empty, its
hidden one was not, and its guest writes there once more. Then that QEMU ends. The next start, which
has neither state folder nor claim, has every record and leaves no overlay.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import pytest
from support.merging import ask, hold, power_off, refuse_writes, release, until_nodes_gone
from support.pairs import (
    DISK_BYTES,
    PATIENCE_S,
    Stage,
    firmware_spec,
    guest_writes,
    holds,
    make_disks,
    qemu_io,
    supervised,
)

from coloctl.colo import registry
from coloctl.lab import qemu
from coloctl.machine import blockdev
from coloctl.model.pair import NODES, CheckpointSpec, DiskSpec, PairSpec, ReplicationSpec
from coloctl.model.protection import Protection
from coloctl.model.units import MIB
from coloctl.supervisor import acts

pytestmark = pytest.mark.qemu

#: QEMU limits no single write: what is merged are several, of `PIECE` bytes. It limits none at all
#: while another disk becomes whole, so that the second of two has to refuse.
SLOW, PIECE, PIECES = 2 * MIB, MIB // 4, 32
#: So many pieces QEMU writes at once: MAX_IN_FLIGHT in its block/mirror.c. As many may be held,
#: and pass together at the release. The merge of the others then takes two seconds.
AT_ONCE = 16
RECORD, RECORDS = 4096, 4


@pytest.fixture(scope="module")
def build(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    return qemu_builds("11.1")


@dataclass
class Records:
    """What the promoted guest was told is written to its first disk: by place, the byte."""

    written: dict[int, int] = field(default_factory=dict)

    async def add(self, stage: Stage, place: int) -> None:
        byte = len(self.written) + 0x20
        await guest_writes(stage.primary, byte, place, RECORD)
        self.written[place] = byte

    async def lost(self, stage: Stage) -> list[str]:
        """What the disks do not hold; pieces of the last were in its overlay at the promotion."""
        last, vm = len(stage.state.spec.disks) - 1, stage.primary
        found = [
            f"record at {place}"
            for place, byte in self.written.items()
            if not await holds(vm, byte, place, RECORD)
        ]
        for place in range(PIECE // 2, 2 * PIECE * PIECES, 2 * PIECE):
            if not await holds(vm, 255, place, RECORD, f"vd{last}/virtio-backend"):
                found.append(f"piece at {place}")
        return found


def overlay_folders(spec: PairSpec) -> set[Path]:
    return {over.active.parent for node in NODES for over in blockdev.overlays(spec, node)}


def overlays_left(spec: PairSpec) -> list[Path]:
    return [path for folder in overlay_folders(spec) for path in folder.glob("*.*.qcow2")]


async def promote(stage: Stage, records: Records, *, followed: bool) -> None:
    """Node b serves, and its last disk still lacks what its overlays hold."""
    spec, last = stage.state.spec, len(stage.state.spec.disks) - 1
    if last:
        # The replica keeps in its hidden overlay what the primary overwrites below it.
        await guest_writes(stage.primary, 0x11, 0, 16 * RECORD)
    survivor = stage.secondary
    for place in range(0, 2 * PIECE * PIECES, 2 * PIECE):
        await qemu_io(survivor, f"write -P 255 {place} {PIECE}", f"vd{last}/virtio-backend")
    if last:
        await refuse_writes(survivor, spec, errno.EIO, last)
    else:
        await hold(survivor, spec, random.randint(1, PIECES - AT_ONCE), PIECE)
    stage.primary.process.signal(signal.SIGKILL)
    await acts.failover(stage.state, "b")
    if not followed:
        stage.state.seats["b"].follow(None)
    if last:
        await until_nodes_gone(survivor.monitor, blockdev.overlay_ids(0), PATIENCE_S)
    apart = RECORD if last else 2 * PIECE * PIECES // RECORDS
    for number in range(RECORDS):  # a disk that refuses its merge acknowledges nothing
        await records.add(stage, number * apart)
    assert blockdev.overlay_ids(last)[0] in str(await ask(survivor, "query-named-block-nodes"))


async def let_go(stage: Stage) -> None:
    """What a single disk holds of its merge goes on."""
    if len(stage.state.spec.disks) == 1:
        await release(stage.primary, SLOW)


async def killed(stage: Stage) -> None:
    """At any moment of the rest of the merge, which takes two seconds."""
    await let_go(stage)
    await asyncio.sleep(random.uniform(0, 2))
    stage.primary.process.signal(signal.SIGKILL)


async def terminated(stage: Stage) -> None:
    """As a machine that shuts down ends its processes, once the word about the first is written."""
    spec, host = stage.state.spec, stage.state.ground.hosts["b"]
    async with asyncio.timeout(PATIENCE_S):
        while len((await registry.look(spec, host, "b"))[0].overlays) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    stage.primary.process.signal(signal.SIGTERM)


async def unattended(stage: Stage) -> None:
    """Killed where no supervisor had looked since the first disk was whole, if there are two."""
    stage.primary.process.signal(signal.SIGKILL)


async def stopped(stage: Stage) -> None:
    """A merge that goes on is waited for; one that was refused is not."""
    stopping = asyncio.create_task(acts.stop(stage.state, force=False, timeout_s=0.2))
    await stage.until(lambda: "merge" in stage.steps() or stopping.done())
    if not stopping.done():
        await let_go(stage)
    await stopping


async def powered_off(stage: Stage) -> None:
    await power_off(stage.primary)
    await let_go(stage)


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "registry" / "disks"))


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """A loop device per node."""
    attached: dict[str, Path] = {}
    try:
        for node in NODES:
            with (tmp_path / f"{node}.disk").open("wb") as file:
                file.truncate(DISK_BYTES)
            argv = ["losetup", "-f", "--show", file.name]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no loop devices here: {done.stderr.strip()}")
            attached[node] = Path(done.stdout.strip())
        yield attached
    finally:
        for device in attached.values():
            subprocess.run(["losetup", "-d", str(device)], check=True)


def on_device(spec: PairSpec, folder: Path, devices: dict[str, Path]) -> PairSpec:
    """Its overlays lie beside the registry: a device has no folder."""
    return replace(spec, disks=(DiskSpec("disk0", dict(devices), format="raw"),))  # type: ignore[arg-type]


def several(spec: PairSpec, folder: Path, devices: dict[str, Path]) -> PairSpec:
    """A device and a qcow2 file, with their overlays in a folder that the pair file names."""
    (folder / "overlays").mkdir()
    disks = (
        DiskSpec("system", dict(devices), format="raw"),  # type: ignore[arg-type]
        DiskSpec("data", {node: folder / f"{node}.qcow2" for node in NODES}),
    )
    replication = ReplicationSpec(base_port=23000, overlay_dir=folder / "overlays")
    return replace(spec, disks=disks, replication=replication)


def in_a_folder(spec: PairSpec, folder: Path, devices: dict[str, Path]) -> PairSpec:
    """A raw file with its overlays in a folder that the pair file names."""
    (folder / "overlays").mkdir()
    disk = DiskSpec("disk0", {node: folder / f"{node}.disk" for node in NODES}, format="raw")
    replication = ReplicationSpec(base_port=23000, overlay_dir=folder / "overlays")
    return replace(spec, disks=(disk,), replication=replication)


Ending = Callable[[Stage], Awaitable[None]]
#: Played where `COLOCTL_EVERY_MERGE` is set.
EVERY = list(
    product(
        (on_device, in_a_folder, several),
        (killed, terminated, stopped, powered_off, unattended),
    )
)


@pytest.mark.parametrize(
    ("shape", "ending"),
    EVERY
    if "COLOCTL_EVERY_MERGE" in os.environ
    else [
        (on_device, killed),
        (on_device, stopped),
        (several, terminated),
        (several, unattended),
        (several, powered_off),
    ],
)
async def test_a_merge_of_any_disks_loses_nothing(
    tmp_path: Path,
    build: qemu.Build,
    devices: dict[str, Path],
    shape: Callable[[PairSpec, Path, dict[str, Path]], PairSpec],
    ending: Ending,
) -> None:
    # The start ends with a checkpoint; the next one would empty the overlays.
    checkpoint = CheckpointSpec(delay_ms=60_000, guard_first_connection=False)
    spec = shape(firmware_spec(tmp_path, build, "tcg"), tmp_path, devices)
    spec, records = replace(spec, checkpoint=checkpoint), Records()

    files = [disk for disk in spec.disks if disk.format == "qcow2"]
    await make_disks(replace(spec, disks=tuple(files)), build.img)
    async with supervised(spec) as stage:
        await stage.start()
        await promote(stage, records, followed=ending is not unattended)
        await ending(stage)
        await stage.until_protection(Protection.DOWN)
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        assert stage.primary.node == "b"
        assert await records.lost(stage) == []
        assert overlays_left(spec) == []
