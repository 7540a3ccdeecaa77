"""Goal: the next start begins with the newest disks, or says what it does not know.

Method: a real pair writes, fails over from a to b, writes again and is stopped. Then what is known
of its disks is harmed as a bad day does, or the disks are devices that come back under other names,
and the pair is started again. What the guest wrote last is on the disks that it begins with, or
nothing runs and the error names what would be lost.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.pairs import (
    DISK_BYTES,
    Stage,
    firmware_spec,
    guest_writes,
    holds,
    make_disks,
    supervised,
)

from coloctl.colo import equal_disks, generation, registry
from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.lab import qemu
from coloctl.machine import image
from coloctl.model.pair import NODES, DiskSpec, NodeName, PairSpec
from coloctl.model.protection import Protection
from coloctl.supervisor import acts

pytestmark = pytest.mark.qemu

FIRST, LAST = 0x11, 0x22
PLACE = 64 * 1024


@pytest.fixture(scope="module")
def build(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    return qemu_builds("11.1")


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(tmp_path / "registry"))


async def lives_until_b_is_newer(spec: PairSpec) -> None:
    """The guest wrote on a, then on b alone, and was stopped; node a lacks what it wrote last."""
    async with supervised(spec) as stage:
        await stage.start()
        await stage.checkpoints(1)
        await guest_writes(stage.primary, FIRST, 0, PLACE)
        await stage.checkpoints(2)
        await acts.failover(stage.state, "b")
        assert stage.state.protection is Protection.UNPROTECTED
        await guest_writes(stage.primary, LAST, 0, PLACE)
        await acts.stop(stage.state, force=True)


async def begins(
    stage: Stage, *, protected: bool = False, begin_on: NodeName | None = None
) -> NodeName:
    """Start the pair; answers the node that the guest runs on, and has checked its last write."""
    watch, entered = stage.supervisor.watch, stage.supervisor.entered
    await acts.start(stage.state, watch, entered, protected=protected, begin_on=begin_on)
    assert await holds(stage.primary, LAST, 0, PLACE)
    return stage.primary.node


def companion(spec: PairSpec, node: NodeName = "b") -> Path:
    return registry.beside(spec.disks[0].image[node])


def emptied(spec: PairSpec) -> None:
    companion(spec).write_bytes(b"")


def removed(spec: PairSpec) -> None:
    companion(spec).unlink()


def a_folder(spec: PairSpec) -> None:
    companion(spec).unlink()
    companion(spec).mkdir()


def full_of_nuls(spec: PairSpec) -> None:
    companion(spec).write_bytes(b"\0" * 4096)


def nothing(spec: PairSpec) -> None:
    assert companion(spec).exists()


@pytest.mark.parametrize("harm", [nothing, emptied, removed, a_folder, full_of_nuls])
async def test_a_companion_that_is_harmed_is_known_from_the_registry(
    tmp_path: Path, build: qemu.Build, harm: Callable[[PairSpec], None]
) -> None:
    spec = firmware_spec(tmp_path, build, "tcg")

    await make_disks(spec, build.img)
    await lives_until_b_is_newer(spec)
    harm(spec)
    async with supervised(spec) as stage:
        assert await begins(stage) == "b"


@pytest.mark.parametrize("harm", [emptied, a_folder])
async def test_where_nothing_is_known_any_more_nothing_is_started(
    tmp_path: Path, build: qemu.Build, harm: Callable[[PairSpec], None]
) -> None:
    """Both copies are gone, as after an earlier coloctl: node a is not taken for the newer one."""
    spec = firmware_spec(tmp_path, build, "tcg")

    await make_disks(spec, build.img)
    await lives_until_b_is_newer(spec)
    companion(spec, "a").write_text(
        f'{{"pair": "{spec.name}", "node": "a", "generation": 0, "state": "in-sync"}}'
    )
    shutil.rmtree(tmp_path / "registry")
    harm(spec)
    async with supervised(spec) as stage:
        with pytest.raises(PreconditionFailed, match="would be lost") as refused:
            await begins(stage, protected=True)
        assert str(companion(spec)) in refused.value.message
        assert "--from NODE" in (refused.value.hint or "")
        assert stage.state.protection is Protection.DOWN
        assert await begins(stage, begin_on="b") == "b"
        if harm is emptied:
            assert b'"generation": 1001' in companion(spec).read_bytes()


async def test_an_image_that_was_overwritten_in_place_is_not_taken_for_the_newest(
    tmp_path: Path, build: qemu.Build
) -> None:
    """A backup was copied over node b's image while the pair was down: inode and companion stay."""
    spec = firmware_spec(tmp_path, build, "tcg")
    image = spec.disks[0].image["b"]

    await make_disks(spec, build.img)
    backup = shutil.copy(image, tmp_path / "backup")
    await lives_until_b_is_newer(spec)
    saved = shutil.copy(image, tmp_path / "saved")
    shutil.copyfile(backup, image)
    async with supervised(spec) as stage:
        with pytest.raises(PreconditionFailed, match="was written to after") as refused:
            await begins(stage, protected=True)
        assert str(image) in refused.value.message
        shutil.copyfile(saved, image)
        assert await begins(stage, begin_on="b") == "b"
        await acts.stop(stage.state, force=True)
    async with supervised(spec) as stage:
        assert await begins(stage) == "b"


async def test_a_word_that_comes_back_does_not_overrule_an_operator(
    tmp_path: Path, build: qemu.Build
) -> None:
    """Node b's companion could not be read, a person said a, and then it can be read again."""
    spec = firmware_spec(tmp_path, build, "tcg")

    await make_disks(spec, build.img)
    await lives_until_b_is_newer(spec)
    before = companion(spec).read_bytes()
    shutil.rmtree(tmp_path / "registry")
    a_folder(spec)
    async with supervised(spec) as stage:
        watch, entered = stage.supervisor.watch, stage.supervisor.entered
        await acts.start(stage.state, watch, entered, protected=False, begin_on="a")
        await guest_writes(stage.primary, LAST, 0, PLACE)
        await acts.stop(stage.state, force=True)
    companion(spec).rmdir()
    companion(spec).write_bytes(before)
    async with supervised(spec) as stage:
        assert await begins(stage) == "a"


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Callable[[NodeName], Path]]:
    """Attaches a file of the test as a loop device, the same file again when asked again."""
    attached: list[str] = []

    def attach(node: NodeName) -> Path:
        file = tmp_path / f"{node}.raw"
        if not file.exists():
            with file.open("wb") as raw:
                raw.truncate(DISK_BYTES)
        argv = ["losetup", "-f", "--show", str(file)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no loop devices here: {done.stderr.strip()}")
        attached.append(done.stdout.strip())
        return Path(attached[-1])

    def detach() -> None:
        while attached:
            subprocess.run(["losetup", "-d", attached.pop()], check=True)

    attach.detach = detach  # type: ignore[attr-defined]
    yield attach
    detach()


def on_devices(spec: PairSpec, tmp_path: Path, devices: dict[NodeName, Path]) -> PairSpec:
    """Node a's disk is behind a symbolic link, as /dev/disk/by-id has them; node b's is plain."""
    link = tmp_path / "disk-a"
    link.unlink(missing_ok=True)
    link.symlink_to(devices["a"])
    disk = DiskSpec("disk0", {"a": link, "b": devices["b"]}, format="raw")
    return replace(spec, disks=(disk,))


async def test_devices_have_a_generation(
    tmp_path: Path, build: qemu.Build, loops: Callable[[NodeName], Path]
) -> None:
    """After a failover to b, a stop and a boot, the guest begins on b, whatever its device is."""
    spec = firmware_spec(tmp_path, build, "tcg")

    before = {node: loops(node) for node in NODES}
    await lives_until_b_is_newer(on_devices(spec, tmp_path, before))
    assert not list(tmp_path.glob("*.generation"))
    async with supervised(on_devices(spec, tmp_path, before)) as stage:
        assert await begins(stage) == "b"
    loops.detach()  # type: ignore[attr-defined]
    after = {node: loops(node) for node in reversed(NODES)}  # their numbers are exchanged
    again = on_devices(spec, tmp_path, after)
    async with supervised(again) as stage:
        assert await begins(stage, protected=True) == "b"
        async with asyncio.timeout(30):
            while not (await follows(again, stage)):  # noqa: ASYNC110 - written behind the act
                await asyncio.sleep(0.02)


async def follows(spec: PairSpec, stage: Stage) -> bool:
    found = await generation.read(spec, stage.state.ground.hosts)
    return found["a"].state is generation.Worth.FOLLOWING


async def test_a_device_whose_registry_is_lost_is_new_and_one_that_is_damaged_is_not(
    tmp_path: Path, build: qemu.Build, loops: Callable[[NodeName], Path]
) -> None:
    spec = on_devices(
        firmware_spec(tmp_path, build, "tcg"), tmp_path, {node: loops(node) for node in NODES}
    )

    await lives_until_b_is_newer(spec)
    for entry in (tmp_path / "registry").iterdir():
        if b'"node": "b"' in entry.read_bytes():
            entry.write_bytes(b"")
    async with supervised(spec) as stage:
        with pytest.raises(PreconditionFailed, match="It is not known what node b's disks"):
            await begins(stage)
        assert await begins(stage, begin_on="b") == "b"


async def test_a_guest_alone_waits_for_no_comparison(
    tmp_path: Path, build: qemu.Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without protection no disk is read before the guest runs, and the other's is not needed."""
    spec = firmware_spec(tmp_path, build, "tcg")
    compared: list[Path] = []
    really = image.same_content

    async def count(a: Path, *rest: Any, **more: Any) -> bool:
        compared.append(a)
        return await really(a, *rest, **more)

    monkeypatch.setattr(image, "same_content", count)

    await make_disks(spec, build.img)
    spec.disks[0].image["b"].unlink()
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        assert not compared
        await guest_writes(stage.primary, LAST, 0, PLACE)
        await stage.start()  # the other node's disk is made and filled
        assert stage.state.protection is Protection.COLO
        assert not compared
        await acts.failover(stage.state, "b")
        assert await holds(stage.primary, LAST, 0, PLACE)


async def test_new_disks_that_are_large_or_slow_do_not_hold_the_guest(
    tmp_path: Path, build: qemu.Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs at once, and what differs follows while it serves: nothing of it is missed."""
    spec = firmware_spec(tmp_path, build, "tcg")
    monkeypatch.setattr(equal_disks, "COMPARE_WAIT_S", 0.05)
    really = image.same_content

    async def endless(a: Path, b: Path, form: str, run: Any, **more: Any) -> bool:
        # Two small disks may be compared before any deadline is looked at.
        async def sleeping(_argv: Sequence[str], *, deadline_s: float) -> Any:
            return await run(["sleep", "300"], deadline_s=deadline_s)

        return await really(a, b, form, sleeping, **more)

    monkeypatch.setattr(image, "same_content", endless)
    await make_disks(spec, build.img)
    async with supervised(spec) as stage:
        await stage.start()
        assert "compare" in stage.steps() or "mirror" in stage.steps()
        await guest_writes(stage.primary, LAST, 0, PLACE)
        await stage.checkpoints(2)
        await acts.failover(stage.state, "b")
        assert await holds(stage.primary, LAST, 0, PLACE)


async def test_a_device_that_is_missing_is_not_made_as_a_file_in_memory(
    tmp_path: Path, build: qemu.Build, loops: Callable[[NodeName], Path]
) -> None:
    absent = Path(f"/dev/coloctl-{os.getpid()}")
    spec = on_devices(
        firmware_spec(tmp_path, build, "tcg"), tmp_path, {"a": loops("a"), "b": absent}
    )

    async def story() -> None:
        async with supervised(spec) as stage:
            await stage.start(protected=False)
            with pytest.raises(ColoctlError, match=f"device {absent} of node b is not there"):
                await stage.start()
            assert stage.state.protection is Protection.UNPROTECTED

    try:
        await story()
        assert not list(absent.parent.glob(f"{absent.name}*")), "also no word about it"
    finally:
        absent.unlink(missing_ok=True)
