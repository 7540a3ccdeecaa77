"""Both copies of a pair compared while a real guest's clients write: sound, and damaged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.clients import clients
from support.pairs import Stage, supervised

from coloctl.lab import guest, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec
from coloctl.model.protection import Protection
from coloctl.model.verified import VerifyOutcome

pytestmark = pytest.mark.guest

CHUNK = 65536
#: Appended to both images, after the end of the guest's filesystem: data that no guest writes, so
#: damage there stays. (The kernel rewrites even its superblock, and mends what was flipped there.)
AT_REST = b"at rest " * (CHUNK // 8)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-verify") as lab:
        yield lab


@pytest.fixture
def spec(described: PairSpec, qemu_builds: Callable[[str], qemu.Build]) -> PairSpec:
    build = qemu_builds("11.1")
    disk = described.disks[0]
    raw = {node: path.with_suffix(".raw") for node, path in disk.image.items()}
    for node, path in disk.image.items():
        argv = [str(build.img), "convert", "-O", "raw", str(path), str(raw[node])]
        os.spawnv(os.P_WAIT, argv[0], argv)
        with raw[node].open("ab") as image:
            image.write(AT_REST)
    return replace(
        described,
        disks=(replace(disk, image=raw, format="raw"),),
        guest=replace(described.guest, ready_line=guest.READY_LINE),
    )


def data(image: Path) -> int:
    """How many bytes of a raw image are no holes; the guest's ext4 only ever makes it more."""
    size, found = image.stat().st_size, 0
    with image.open("rb") as file:
        end = 0
        with contextlib.suppress(OSError):  # ENXIO: no data behind the last hole
            while end < size:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
                found += end - begin
    return found


async def flipped(stage: Stage) -> int:
    """Flip one bit of `AT_REST` in the secondary's image, and return where its chunk begins."""
    path = stage.state.spec.disks[0].image[stage.secondary.node]
    with path.open("r+b") as image:
        place = image.seek(0, os.SEEK_END) - len(AT_REST) + 2000
        image.seek(place)
        (byte,) = image.read(1)
        image.seek(place)
        image.write(bytes([byte ^ 0x40]))
    return place // CHUNK * CHUNK


async def test_a_sound_pair_is_equal_under_load_and_a_flipped_byte_is_found(
    spec: PairSpec, lab: Lab, tmp_path: Path
) -> None:
    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints(2)
        with clients(lab, tmp_path / "history.jsonl", 4) as load:
            await load.acknowledged(5)
            for number in range(2):
                least = data(stage.state.spec.disks[0].image[stage.primary.node])
                found = await stage.supervisor.verifying.verify(memory=number == 0)
                assert found.outcome is VerifyOutcome.EQUAL, found
                assert found.disks[0].read >= least > 0
                if (memory := found.pages) is not None:  # a kernel at work is mostly still
                    assert memory.same > memory.pages // 2 and memory.moving
                assert (memory is not None) is (number == 0), found
            await load.acknowledged(5)
            assert stage.state.protection is Protection.COLO
            at = await flipped(stage)
            found = await stage.supervisor.verifying.verify(memory=False)
            assert found.outcome is VerifyOutcome.DIFFERENT, found
            assert any(begin <= at < end for begin, end in found.disks[0].differs)
            assert found.different <= 4 * CHUNK
            await load.acknowledged(5)
            assert stage.state.protection is Protection.COLO
            assert not [n for n, d in stage.events if n == "DIAGNOSIS"]
            print("longest pause", stage.state.seats[stage.primary.node].stats.longest_pause_s)
            load.end()
