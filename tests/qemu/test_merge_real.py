"""A promoted secondary whose overlays are not in its image yet: whatever ends it, nothing is lost.

The image takes 1 MiB per second, or the beginning of the merge and the rest when a test says so.
What the guest writes meanwhile is acknowledged when QEMU says so; the image of the node has to hold
all of it at the next start.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from support.merging import (
    acknowledge,
    fill,
    lose_primary,
    missing,
    power_off,
    refuse_writes,
    release,
    until_nodes_gone,
)
from support.pairs import PATIENCE_S, Stage, firmware_spec, on_pair, supervised

from coloctl.colo import overlays, registry
from coloctl.colo.generation import Companion, Worth
from coloctl.errors import PreconditionFailed, ReplicationError
from coloctl.ha.arbiter import FILE_NAME
from coloctl.lab import qemu
from coloctl.machine import blockdev
from coloctl.model.pair import CheckpointSpec, PairSpec
from coloctl.model.protection import Protection
from coloctl.model.units import MIB
from coloctl.model.view import Merge
from coloctl.supervisor import acts
from coloctl.vm import VM

pytestmark = pytest.mark.qemu

SLOW = MIB


@pytest.fixture(scope="module")
def build(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    return qemu_builds("11.1")


def pair(folder: Path, build: qemu.Build, image_format: str = "raw") -> PairSpec:
    """Checkpoints are rare: what the test writes into the overlays stays there."""
    spec = firmware_spec(folder, build, "tcg")
    images = {
        node: path.with_suffix(f".{image_format}") for node, path in spec.disks[0].image.items()
    }
    return replace(
        spec,
        disks=(replace(spec.disks[0], format=image_format, image=images),),
        checkpoint=CheckpointSpec(delay_ms=3000, guard_first_connection=False),
    )


async def known(stage: Stage) -> Companion:
    return (await registry.look(stage.state.spec, stage.state.ground.hosts["b"], "b"))[0]


async def promote(stage: Stage) -> None:
    """Node b serves, and its merge is under way: followed, and not over before `release`."""
    await lose_primary(stage)
    await acts.failover(stage.state, "b")
    assert stage.state.protection is Protection.UNPROTECTED
    seat = stage.state.seats["b"]
    await stage.until(lambda: seat.merged_bytes[0] > 0)
    assert seat.merge is Merge.UNDER_WAY


async def refused(stage: Stage, number: int) -> None:
    """Node b serves, and its image refused the merge with that error."""
    await stage.checkpoints(1)
    await fill(stage.secondary)
    stage.primary.process.signal(signal.SIGKILL)
    await refuse_writes(stage.secondary, stage.state.spec, number)
    await acts.failover(stage.state, "b")
    await stage.until(lambda: stage.state.seats["b"].merge is Merge.REFUSED)


async def has_all(stage: Stage, build: qemu.Build, acknowledged: int) -> None:
    """Node b's image alone holds what its guest wrote, and its companion says so."""
    spec = stage.state.spec
    assert (await known(stage)).state is Worth.IN_SYNC
    assert missing(build, spec, spec.disks[0].image["b"], acknowledged) == []


async def serves_again(spec: PairSpec, build: qemu.Build, acknowledged: int) -> None:
    """The next start, with another state folder, has everything in the image before it runs."""
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        assert stage.primary.node == "b"
        await has_all(stage, build, acknowledged)
    left = [path for path in spec.disks[0].image["b"].parent.iterdir() if "b." in path.name]
    assert {path.name.removeprefix(spec.disks[0].image["b"].name) for path in left} == {
        "",
        ".generation",
    }


#: Carries something out on a pair that is protected.
on_protected = partial(on_pair, started=True)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.0, 0.3, 2.0])
def test_a_survivor_that_ends_in_its_merge_loses_nothing(
    tmp_path: Path, build: qemu.Build, image_format: str, how: signal.Signals, after_s: float
) -> None:
    spec, written = pair(tmp_path, build, image_format), 0

    async def story(stage: Stage) -> None:
        nonlocal written
        await lose_primary(stage, SLOW)
        await acts.failover(stage.state, "b")
        survivor = stage.primary
        # What the overlays held at the promotion is acknowledged too. A write into a qcow2 image
        # that is busy is not, before the merge is nearly over.
        for number in range(4 if image_format == "raw" else 0):
            await acknowledge(survivor, spec, number)
            written += 1
        await asyncio.sleep(after_s)
        survivor.process.signal(how)
        await stage.until_protection(Protection.DOWN)
        # On a busy machine the merge may be over first; told to end, QEMU finishes what it copies.
        assert (await known(stage)).state in (Worth.OVERLAY_PENDING, Worth.IN_SYNC)

    on_protected(spec, build, story)
    asyncio.run(serves_again(spec, build, written))


def test_a_stop_waits_for_the_merge_of_the_survivor(tmp_path: Path, build: qemu.Build) -> None:
    spec = pair(tmp_path, build)

    async def story(stage: Stage) -> None:
        await promote(stage)
        await acknowledge(stage.primary, spec, 0)
        stopping = asyncio.create_task(acts.stop(stage.state, force=False, timeout_s=0.5))
        await stage.until(lambda: "merge" in stage.steps())
        await release(stage.primary, SLOW)
        how = await stopping
        assert how.startswith("cut off")  # firmware knows no power button
        done = [data["done"] for name, data in stage.events if name == "PROGRESS"]
        # What the guest writes meanwhile has to be merged as well, so it may go back a little.
        assert done[-1] >= done[0] > 0
        await has_all(stage, build, 1)

    on_protected(spec, build, story)
    asyncio.run(serves_again(spec, build, 1))


def test_a_guest_that_powers_itself_off_in_its_merge_ends_behind_it(
    tmp_path: Path, build: qemu.Build
) -> None:
    spec = pair(tmp_path, build)

    async def story(stage: Stage) -> None:
        await promote(stage)
        await acknowledge(stage.primary, spec, 0)
        await power_off(stage.primary)
        await release(stage.primary, SLOW)
        await stage.until_protection(Protection.DOWN)
        assert stage.state.view().reason == "The guest shut itself down."
        await has_all(stage, build, 1)

    on_protected(spec, build, story)
    asyncio.run(serves_again(spec, build, 1))


def test_a_forced_stop_leaves_the_merge_to_the_next_start(
    tmp_path: Path, build: qemu.Build
) -> None:
    spec = pair(tmp_path, build)

    async def story(stage: Stage) -> None:
        await promote(stage)
        await acknowledge(stage.primary, spec, 0)
        how = await acts.stop(stage.state, force=True)
        assert how == "killed; the next start writes node b's overlays into its image"

    on_protected(spec, build, story)
    asyncio.run(serves_again(spec, build, 1))


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_merged_is_not_merged_again(
    tmp_path: Path, build: qemu.Build, image_format: str, how: signal.Signals
) -> None:
    """The survivor and its supervisor end before it was recorded that the merge is over."""
    spec = pair(tmp_path, build, image_format)

    async def story(stage: Stage) -> None:
        await promote(stage)
        survivor, seat = stage.primary, stage.state.seats["b"]
        seat.follow(None)  # nobody looks any more
        await release(survivor)
        await until_nodes_gone(survivor.monitor, blockdev.overlay_ids(0), PATIENCE_S)
        for number in range(4):
            await acknowledge(survivor, spec, number)
        survivor.process.signal(how)
        await stage.until_protection(Protection.DOWN)
        assert (await known(stage)).state is Worth.OVERLAY_PENDING

    on_protected(spec, build, story)
    asyncio.run(serves_again(spec, build, 4))


@pytest.mark.parametrize("copied", [False, True])
def test_overlays_of_a_refused_merge_are_merged_after_an_orderly_end(
    tmp_path: Path, build: qemu.Build, copied: bool
) -> None:
    """QEMU closes them and the close marker at that end; copies are as good as the files."""
    spec = pair(tmp_path, build)

    async def story(stage: Stage) -> None:
        await refused(stage, errno.EIO)
        stage.primary.process.signal(signal.SIGTERM)
        await stage.until_protection(Protection.DOWN)
        names = (await known(stage)).overlays["disk0"]  # the close marker is the last
        for name in names if copied else ():
            copy = Path(shutil.copyfile(name, f"{name}.copied"))
            await asyncio.sleep(0.02)  # longer than the kernel's clock of files stands still
            copy.rename(name)

    on_protected(spec, build, story)
    asyncio.run(serves_again(spec, build, 0))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_record_of_the_entry_into_colo_is_not_written_over_that_of_a_failover(
    tmp_path: Path, build: qemu.Build, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lost node's disk answers no more from the entry on: what waits for it comes too late."""
    spec = pair(tmp_path, build)
    late, written = registry.beside(spec.disks[0].image["a"]), asyncio.Event()

    async def story(stage: Stage) -> None:
        host, entered = stage.state.ground.hosts["a"], stage.supervisor.entered
        write, answers = host.write_durably, asyncio.Event()

        async def slow(path: Path, content: bytes, *, make_folder: bool = False) -> None:
            try:
                if path == late:
                    await answers.wait()
                await write(path, content, make_folder=make_folder)
            finally:
                if path == late:
                    written.set()

        def enter(primary: VM) -> None:
            monkeypatch.setattr(host, "write_durably", slow)
            entered(primary)

        monkeypatch.setattr(stage.supervisor, "entered", enter)
        await stage.start()
        await lose_primary(stage)
        await acts.failover(stage.state, "b")
        answers.set()
        await written.wait()
        await asyncio.sleep(0.5)  # one that waited for it has been written too
        assert (await known(stage)).state is Worth.OVERLAY_PENDING
        stage.primary.process.signal(how)
        await stage.until_protection(Protection.DOWN)

    on_pair(spec, build, story)
    asyncio.run(serves_again(spec, build, 0))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_merge_that_the_image_refuses_leaves_the_guest_serving(
    tmp_path: Path, build: qemu.Build, number: int
) -> None:
    spec = pair(tmp_path, build)

    async def story(stage: Stage) -> None:
        await refused(stage, number)
        assert stage.state.protection is Protection.UNPROTECTED
        assert "coloctl stop" in stage.state.view().reason
        before = stage.state.ground.rundir("a")
        with pytest.raises(ReplicationError, match="nothing is lost"):
            await acts.reprotect(stage.state, stage.supervisor.watch, stage.supervisor.entered)
        assert not (before / "qmp.sock").exists()  # no secondary was made in vain
        how = await acts.stop(stage.state, force=False, timeout_s=0.5)
        assert how.endswith("; the next start writes node b's overlays into its image")

    on_protected(spec, build, story)
    asyncio.run(serves_again(spec, build, 0))


@pytest.mark.parametrize("claim", ["kept", "lost"])
def test_an_operator_s_word_does_not_pass_over_overlays(
    tmp_path: Path, build: qemu.Build, claim: str
) -> None:
    """Both words about the survivor's disks were damaged in its merge, and a person names them."""
    spec = pair(tmp_path, build)

    async def story(stage: Stage) -> None:
        await promote(stage)
        await acknowledge(stage.primary, spec, 0)
        await acts.stop(stage.state, force=True)
        image, hosts = spec.disks[0].image["b"], stage.state.ground.hosts
        places = [
            registry.beside(image),
            registry.entry(await hosts["b"].identify(image), hosts["b"]),
        ]
        words = [place.read_bytes() for place in places]
        for place in places:
            place.write_bytes(b"")
        watch, entered = stage.supervisor.watch, stage.supervisor.entered
        starting = acts.start(stage.state, watch, entered, protected=False, begin_on="b")
        if claim == "kept":
            await starting
            return
        (stage.state.ground.folder / FILE_NAME).unlink()
        with pytest.raises(PreconditionFailed, match="Nor is it known whether") as refused:
            await starting
        assert str(blockdev.overlays(spec, "b")[0].active) in refused.value.message
        for place, word in zip(places, words, strict=True):
            place.write_bytes(word)

    on_protected(spec, build, story)
    asyncio.run(serves_again(spec, build, 1))


def test_a_commit_that_is_cut_short_is_done_again(tmp_path: Path, build: qemu.Build) -> None:
    spec = pair(tmp_path, build)

    async def story(stage: Stage) -> None:
        await promote(stage)
        await acknowledge(stage.primary, spec, 0)
        await acts.stop(stage.state, force=True)
        hosts, img = stage.state.ground.hosts, stage.state.ground.node("b").qemu_img
        cut = 0
        for n in range(5):
            settling = asyncio.create_task(
                overlays.settle(spec, hosts, await known(stage), qemu_img=img)
            )
            await asyncio.sleep(0.01 * n)
            settling.cancel()
            await asyncio.gather(settling, return_exceptions=True)
            cut += settling.cancelled()
            assert (await known(stage)).state in (Worth.OVERLAY_PENDING, Worth.IN_SYNC)
        assert cut

    on_protected(spec, build, story)
    asyncio.run(serves_again(spec, build, 1))
