"""A guest with two disks and two network cards loses a host, and its clients lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from support.clients import Clients, ask, clients, guest_spec
from support.pairs import Stage, supervised

from coloctl.chaos.checks.verdict import Validity, worst
from coloctl.lab import guest, layout, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import NODES, DiskSpec, NicSpec, PairSpec, TapSpec, other
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = pytest.mark.guest

BLK, SCSI = "virtio-blk-pci", "scsi-hd"
NET, E1000 = "virtio-net-pci", "e1000"
#: Format and model of each disk and its name in the guest; the model of each card.
KINDS = {
    "virtio": ((("qcow2", BLK, "vda"), ("raw", BLK, "vdb")), (NET, NET)),
    "scsi-e1000": ((("raw", SCSI, "sda"), ("qcow2", SCSI, "sdb")), (E1000, E1000)),
    "mixed": ((("qcow2", BLK, "vda"), ("raw", SCSI, "sda")), (NET, E1000)),
}
#: Where both servers in the guest are reached, each with its own disk and card.
#: Of the guest's second card, in the network of `layout.SECOND_CLIENT`.
SECOND_GUEST = "10.78.0.10"
#: The guest's init starts a second redis there, whose data are on the second disk.
SECOND_REDIS_PORT = 6380
SERVERS = (layout.GUEST, f"{SECOND_GUEST}:{SECOND_REDIS_PORT}")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-two") as lab:
        yield lab


@pytest.fixture(params=KINDS)
def spec(
    request: pytest.FixtureRequest,
    lab: Lab,
    tmp_path_factory: pytest.TempPathFactory,
    qemu_builds: Callable[[str], qemu.Build],
) -> PairSpec:
    disks, nics = KINDS[request.param]
    build = qemu_builds("11.1")
    folder: Path = tmp_path_factory.mktemp("two")
    drivers = ("e1000",) if E1000 in nics else ()
    image = guest.provide(qemu_img=build.img, drivers=drivers)
    second = f"{SECOND_GUEST}/{layout.PREFIX_LENGTH}"
    names = tuple(f"/dev/{name}" for _, _, name in disks)
    spec = guest_spec(lab, image, folder, build, second_address=second, disks=names)
    described = tuple(
        DiskSpec(f"disk{i}", {n: folder / f"{n}{i}.{form}" for n in NODES}, form, model)
        for i, (form, model, _) in enumerate(disks)
    )
    for disk in described:
        for path in disk.image.values():
            make_disk(image, path, disk.format, build)
    taps = (layout.TAPS, layout.SECOND_TAPS)
    return replace(
        spec,
        guest=replace(spec.guest, ready_line=guest.READY_LINE),
        disks=described,
        nics=tuple(
            NicSpec(
                f"hn{i}",
                f"52:54:00:12:34:5{i}",
                TapSpec({"a": tap["host-a"], "b": tap["host-b"]}, layout.BRIDGE),
                model,
            )
            for i, (model, tap) in enumerate(zip(nics, taps, strict=True))
        ),
    )


def make_disk(image: guest.GuestImage, path: Path, form: str, build: qemu.Build) -> None:
    """``path`` is the guest's empty disk in that format."""
    image.copy_disk(path)
    if form == "raw":
        empty = path.with_suffix(".qcow2")
        path.rename(empty)
        convert = ["convert", "-q", "-f", "qcow2", "-O", "raw", empty, path]
        subprocess.run([build.img, *convert], check=True)


async def the_primary_is_lost(stage: Stage, at_work: list[Clients]) -> float:
    """The primary is killed in the middle of a checkpoint; when that was."""
    for one in at_work:
        await one.acknowledged(15)
    await stage.checkpoints(2)
    primary = stage.primary
    with primary.monitor.listen("STOP") as events:
        await events.next(30)
    at_s = time.monotonic()
    primary.process.signal(signal.SIGKILL)
    await acts.failover(stage.state, other(primary.node))
    for one in at_work:
        await one.acknowledged(15)
    return at_s


async def test_neither_disk_nor_card_loses_anything_in_either_direction(
    spec: PairSpec, lab: Lab, tmp_path: Path
) -> None:
    async with supervised(spec) as stage:
        for round_, victim in enumerate(("a", "b")):
            await stage.start()
            assert stage.primary.node == victim
            for server in SERVERS:
                assert await ask(lab, "FLUSHALL", server=server) == "+OK"
            with ExitStack() as stack:
                at_work = [
                    stack.enter_context(clients(lab, tmp_path / f"{round_}-{i}", 2, server=server))
                    for i, server in enumerate(SERVERS)
                ]
                at_s = await the_primary_is_lost(stage, at_work)
                verdicts = [found for one in at_work for found in one.verdicts(at_s)]
            assert worst(verdicts) is Validity.VALID, verdicts
            assert stage.state.protection is Protection.UNPROTECTED
        assert lab.bad_checksums() == 0
        assert await acts.stop(stage.state, force=False) == "guest shut down"
