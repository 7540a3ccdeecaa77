"""Real QEMUs, no COLO: a replica is brought in sync by what differs, whatever it held.

The guests are firmware alone. What a guest would write is written through its device by the
monitor, while both disks are read, between the turns and during them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support import commands
from support.pairs import DISK_BYTES, firmware_spec, inventory, make_disks, qemu_io

from coloctl import paths
from coloctl.clock import Deadline
from coloctl.colo import difference, difference_plan, launch, plan, resync
from coloctl.colo.ground import Ground, same_on_both
from coloctl.errors import ColoctlError, ResyncFailed
from coloctl.ha.failover import abandon_secondary
from coloctl.host import LocalHost, open_host
from coloctl.host.machine import this_machine
from coloctl.lab import qemu
from coloctl.machine import image
from coloctl.model.copied import CopyReport, Method
from coloctl.model.pair import DiskSpec, PairSpec
from coloctl.model.qapi import RunState
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import run
from coloctl.vm import VM, inspect

pytestmark = pytest.mark.qemu

KIB, MIB = 1024, 1024 * 1024
PATIENCE_S = 60.0

Newest = tuple[PairSpec, qemu.Build]


@dataclass
class Duo:
    """A primary whose guest runs, and a secondary whose replica is connected and not yet joined."""

    spec: PairSpec
    ground: Ground
    primary: VM
    secondary: VM

    @property
    def size(self) -> int:
        """Of the first disk, bytes."""
        return DISK_BYTES

    async def write(self, pattern: int, offset: int, length: int, vm: VM | None = None) -> None:
        await qemu_io(vm or self.primary, f"write -P {pattern:#x} {offset} {length}")

    async def join(self, *, known: bool = True, rate: int = 0, report: Any = None) -> CopyReport:
        return await resync.join(
            self.spec,
            self.primary,
            self.secondary,
            deadline=Deadline(PATIENCE_S),
            report=report or (lambda *_: None),
            known=known,
            rate=lambda: rate,
        )

    async def clean(self) -> None:
        """The guest runs, and nothing of a resync is left in the primary or beside it."""
        assert (await self.primary.observe()).run_state is RunState.RUNNING
        found = await inventory(self.primary)
        assert not found.exports and not found.jobs
        listed = await self.primary.execute(qmp.query_named_block_nodes())
        assert not [node for node in listed if node.get("dirty-bitmaps")]
        with pytest.raises(ColoctlError, match="NBD server not running"):
            await self.primary.execute(qmp.nbd_server_stop())
        assert not list(self.primary.rundir.glob("resync*"))


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("d")


@contextlib.asynccontextmanager
async def grounded(spec: PairSpec, build: qemu.Build) -> AsyncIterator[Ground]:
    hosts = {node: open_host("local") for node in ("a", "b")}
    try:
        binary = await inspect(build.binary, hosts["a"])
        yield Ground(hosts, same_on_both(binary, "tcg"), paths.pair_dir(spec.name))
    finally:
        for host in hosts.values():
            await host.aclose()
        shutil.rmtree(paths.pair_dir(spec.name), ignore_errors=True)


async def second(spec: PairSpec, ground: Ground, primary: VM) -> VM:
    """A new secondary, its exports connected."""
    secondary = await launch.launch_secondary(spec, ground, "b", record=None)
    try:
        deadline = Deadline(PATIENCE_S)
        steps = plan.prepare_secondary(ground.wires(spec), "b", ground.node("b").binary.dialect)
        await run(steps, secondary.monitor, deadline=deadline)
        await run(
            plan.connect_replicas(ground.wires(spec), "b"), primary.monitor, deadline=deadline
        )
    except BaseException:
        await secondary.kill(10)
        raise
    return secondary


@contextlib.asynccontextmanager
async def duo(spec: PairSpec, build: qemu.Build) -> AsyncIterator[Duo]:
    async with grounded(spec, build) as ground:
        primary = await launch.launch_primary(spec, ground, "a", paused=False, record=None)
        vms = [primary]
        try:
            vms.append(await second(spec, ground, primary))
            pair = Duo(spec, ground, *vms)
            vms = [pair.primary]
            try:
                yield pair
            finally:
                await pair.secondary.kill(10)
        finally:
            for vm in vms:
                await vm.kill(10)


@pytest.fixture
def spec(folder: Path, qemu_build: qemu.Build) -> PairSpec:
    """A pair with equal, empty disks of 16 MiB, on each QEMU of the matrix in its turn."""
    spec = firmware_spec(folder, qemu_build, "tcg")
    asyncio.run(make_disks(spec, qemu_build.img))
    return spec


@pytest.fixture
def newest(folder: Path, qemu_builds: Callable[[str], qemu.Build]) -> Newest:
    """The same on the newest QEMU, for what does not depend on the version."""
    build = qemu_builds("11.1")
    spec = firmware_spec(folder, build, "tcg")
    asyncio.run(make_disks(spec, build.img))
    return spec, build


async def equal(spec: PairSpec, build: qemu.Build) -> bool:
    """Both images hold the same; neither is in use."""
    host = open_host("local")
    try:
        for disk in spec.disks:
            argv = [build.img, "compare", "-f", disk.format, "-F", disk.format]
            images = [disk.image["a"], disk.image["b"]]
            done = await host.run([*map(str, argv), *map(str, images)], deadline_s=60)
            if done.code:
                return False
        return True
    finally:
        await host.aclose()


async def scribble(spec: PairSpec, build: qemu.Build, node: Any, *writes: str) -> None:
    """An image holds what its node wrote before it died."""
    host = open_host("local")
    try:
        tool = build.img.with_name("qemu-io")
        commands = [word for write in writes for word in ("-c", write)]
        image = spec.disks[0].image[node]
        argv = [str(tool), "-f", spec.disks[0].format, *commands, str(image)]
        done = await host.run(argv, deadline_s=60)
        assert done.code == 0, done
    finally:
        await host.aclose()


@contextlib.asynccontextmanager
async def writing(pair: Duo, patch: pytest.MonkeyPatch) -> AsyncIterator[list[int]]:
    """The guest writes all the time, until it is stopped; the list grows with each write.

    A monitor's write is not stopped with the guest, so it must end before. One is under way when
    the guest is stopped.
    """
    chance, written, enough = random.Random(7), list[int](), asyncio.Event()

    async def write() -> None:
        size = pair.size
        while not enough.is_set():
            offset = chance.randrange(size // 512) * 512
            length = min(chance.choice((512, 4096, 64 * KIB, 200 * KIB)), size - offset)
            words = chance.choice((f"write -P {chance.randrange(256)}", "write -z", "discard"))
            await qemu_io(pair.primary, f"{words} {offset} {length}")
            written.append(offset)

    task = asyncio.create_task(write())
    join = difference._join

    async def stopped_first(effort: Any, turn: int) -> None:
        enough.set()
        await task
        await qemu_io(pair.primary, f"aio_write -q -P 0x77 {5 * MIB} {256 * KIB}")
        await join(effort, turn)

    patch.setattr(difference, "_join", stopped_first)
    try:
        yield written
    finally:
        enough.set()
        await task


async def test_a_replica_is_made_equal_whatever_it_wrote_after_its_last_checkpoint(
    spec: PairSpec, qemu_build: qemu.Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written, zeroed and thrown away here and there; the guest writes in every step."""
    monkeypatch.setattr(difference, "LITTLE_BYTES", 0)
    monkeypatch.setattr(difference, "TURNS", 3)
    old = ("write -P 1 0 2M", "write -P 2 4M 1M", "write -P 3 8M 128k", "write -P 3 10M 1M")

    for node in ("a", "b"):
        await scribble(spec, qemu_build, node, *old)
    late = ("write -P 9 512 512", "write -z 4M 512k", "discard 8M 128k", "write -P 9 12M 300k")
    await scribble(spec, qemu_build, "b", *late)
    async with duo(spec, qemu_build) as pair:
        await pair.write(0x11, 1 * MIB, 128 * KIB)
        async with writing(pair, monkeypatch) as written:
            copied = await pair.join()
        assert copied.method is Method.DIFFERENCE, copied
        assert written and copied.sent > 0
        assert copied.full == pair.size
        await pair.clean()
        await pair.write(0x12, 3 * MIB, 128 * KIB)  # goes to both from now on
    assert await equal(spec, qemu_build)


async def test_only_what_differs_is_sent(spec: PairSpec, qemu_build: qemu.Build) -> None:
    for node in ("a", "b"):
        await scribble(spec, qemu_build, node, "write -P 1 0 8M")
    await scribble(spec, qemu_build, "b", "write -P 9 3M 512", "write -P 9 12M 64k")
    async with duo(spec, qemu_build) as pair:
        copied = await pair.join()
    # One chunk that holds data here, and one that is a hole and travels as a word.
    assert (copied.sent, copied.read) == (64 * KIB, 8 * MIB)
    assert await equal(spec, qemu_build)


async def test_several_disks_raw_ones_and_odd_sizes(folder: Path, qemu_build: qemu.Build) -> None:
    spec = firmware_spec(folder, qemu_build, "tcg")
    raw = {node: folder / f"{node}.raw" for node in ("a", "b")}
    for number, path in enumerate(raw.values()):
        path.write_bytes(bytes([5, number]) * (3 * MIB // 4) + bytes(512 * 37))
    spec = replace(spec, disks=(*spec.disks, DiskSpec("disk1", raw, "raw")))  # type: ignore[arg-type]

    await make_disks(replace(spec, disks=spec.disks[:1]), qemu_build.img)
    async with duo(spec, qemu_build) as pair:
        told: list[Any] = []
        await pair.write(0x11, 1 * MIB, 128 * KIB)
        copied = await pair.join(report=lambda *step: told.append(step))
        assert copied.method is Method.DIFFERENCE, copied
        assert copied.full == 16 * MIB + 3 * MIB // 2 + 512 * 37
        assert told[-1] == ("compare", copied.full, copied.full)
        await pair.clean()
    assert await equal(spec, qemu_build)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_a_replica_lost_while_it_is_mended_leaves_the_survivor_clean(
    spec: PairSpec, qemu_build: qemu.Build, fault: str
) -> None:
    """And the next one, with whatever of it reached the image, is brought in sync."""

    await scribble(spec, qemu_build, "a", "write -P 1 0 16M")
    async with duo(spec, qemu_build) as pair:
        under_way = asyncio.Event()

        def told(step: str, done: int | None, _total: int | None) -> None:
            if done:
                under_way.set()

        joining = asyncio.create_task(pair.join(rate=4 * MIB, report=told))
        await under_way.wait()
        number = signal.SIGKILL if fault == "killed" else signal.SIGSTOP
        pair.secondary.process.signal(number)
        if fault == "killed":
            with pytest.raises(ColoctlError):
                await joining
        else:
            await asyncio.sleep(0.3)
            assert not joining.done()
            joining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await joining
            await pair.clean()  # before anything was done about the replica
        await pair.secondary.kill(10)
        await abandon_secondary(spec, pair.primary, was_running=True)
        await pair.clean()
        assert "nbd0" not in (await inventory(pair.primary)).nodes

        pair.secondary = await second(spec, pair.ground, pair.primary)
        copied = await pair.join()
        assert copied.method is Method.DIFFERENCE, copied
        await pair.clean()
    assert await equal(spec, qemu_build)


async def test_a_supervisor_that_died_in_the_middle_is_cleaned_up_after(newest: Newest) -> None:
    """What its QEMU was told stays until somebody takes it back."""
    spec, build = newest

    async with duo(spec, build) as pair:
        steps = [
            *difference_plan.begin(spec, pair.primary.rundir / "resync.sock", 65536),
            *difference_plan.take_turn(0, 1, 65536),
        ]
        await run(steps, pair.primary.monitor, deadline=Deadline(10))
        await pair.secondary.kill(10)
        await abandon_secondary(spec, pair.primary, was_running=True)
        await pair.clean()


async def test_a_disk_written_in_the_pause_is_no_replica(
    newest: Newest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bitmap of the last turn is a proof: what nobody should do is found out."""
    spec, build = newest
    recorded = difference._recorded

    async with duo(spec, build) as pair:

        async def and_write(effort: Any, turn: int) -> int:
            if (await pair.primary.observe()).run_state is RunState.PAUSED:
                await pair.write(0x55, 0, 512)
            return await recorded(effort, turn)

        monkeypatch.setattr(difference, "_recorded", and_write)
        with pytest.raises(ResyncFailed, match="while the guest stood still"):
            await pair.join()
        await pair.clean()
        assert (await inventory(pair.primary)).quorum == ("parent0",)


async def refuse_the_export(pair: Duo, patch: pytest.MonkeyPatch) -> None:
    """Somebody's bitmap has the name already."""
    add = qmp.block_dirty_bitmap_add("colo-disk0", "resync0.a", granularity=65536)
    await pair.primary.execute(add)


def programs_by(patch: pytest.MonkeyPatch, *python: str) -> None:
    """Let programs of coloctl be started in another way on every host."""
    machine = replace(this_machine(), programs=python)
    patch.setattr(LocalHost, "machine", property(lambda _: machine))


async def no_python(pair: Duo, patch: pytest.MonkeyPatch) -> None:
    programs_by(patch, "/no/python", "-m")


async def broken_python(pair: Duo, patch: pytest.MonkeyPatch) -> None:
    programs_by(patch, sys.executable, "-I", "-S", "-m")


async def no_replica_to_read(pair: Duo, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        difference.Effort,
        "target",
        lambda *_: {"address": "127.0.0.1", "port": 9, "export": "parent0"},
    )


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (refuse_the_export, "Bitmap already exists"),
        (no_python, "/no/python could not be started"),
        (broken_python, "No module named"),
        (no_replica_to_read, "no connection"),
    ],
)
async def test_where_nothing_can_be_compared_everything_is_copied(
    newest: Newest,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[Duo, pytest.MonkeyPatch], Awaitable[None]],
    why: str,
) -> None:
    spec, build = newest

    await scribble(spec, build, "b", "write -P 9 3M 512k")
    async with duo(spec, build) as pair:
        await pair.write(0x11, 1 * MIB, 128 * KIB)
        await trouble(pair, monkeypatch)
        copied = await pair.join()
        assert copied.method is Method.FULL
        assert why in copied.why and why in copied.sentence()
        await pair.clean()
    assert await equal(spec, build)


async def test_a_replica_that_is_not_known_is_copied_in_full_at_the_rate_that_was_asked_for(
    newest: Newest,
) -> None:
    spec, build = newest

    async with duo(spec, build) as pair:
        await pair.write(0x11, 0, 4 * MIB)
        told: list[Any] = []
        joining = asyncio.create_task(
            pair.join(known=False, rate=6 * MIB, report=lambda *step: told.append(step))
        )
        jobs: list[Any] = []
        while not jobs:
            jobs = await pair.primary.execute(commands.query_block_jobs())
        assert jobs[0]["speed"] == 6 * MIB
        copied = await joining
        assert copied.method is Method.FULL and not copied.why
        assert {step for step, *_ in told} == {"mirror"}
        await pair.clean()
    assert await equal(spec, build)


async def test_a_big_disk_with_few_differences_sends_few_bytes(newest: Newest) -> None:
    """4 GiB of which 300 MiB hold data, 8 MiB of them differ: the figures of docs/resync.md."""
    spec, build = newest

    async def measured(known: bool, rate: int) -> CopyReport:
        async with duo(spec, build) as pair:
            with pair.primary.monitor.listen("STOP", "RESUME") as events:
                began_s = time.monotonic()
                copied = await pair.join(known=known, rate=rate)
                took_s = time.monotonic() - began_s
                stop, resume = await events.next(5), await events.next(5)
        assert await equal(spec, build)
        pause_ms = (resume.at_s - stop.at_s) * 1000
        print(f"\n{rate=} {copied.method} in {took_s:.2f} s, pause {pause_ms:.1f} ms: {copied}")
        return copied

    async def differ() -> None:
        writes = [f"write -P {n} {40 * n}M 1M" for n in range(1, 9)]
        await scribble(spec, build, "b", *writes)

    host = open_host("local")
    try:
        for path in spec.disks[0].image.values():
            path.unlink()
            await image.create_overlay(path, 4096 * MIB, host.run, qemu_img=build.img)
    finally:
        await host.aclose()
    for node in ("a", "b"):
        # No two clusters are the same, so that nothing is small by chance.
        fill = [f"write -q -P {1 + n % 255} {n}M 1M" for n in range(40, 340)]
        await scribble(spec, build, node, *fill)
    # As the machine can, and as a link of 1 Gbit/s, which takes a full copy half a minute.
    for rate in (0, 119 * MIB) if os.environ.get("COLOCTL_FIGURES") else (0,):
        await differ()
        less = await measured(known=True, rate=rate)
        assert (less.sent, less.read) == (8 * MIB, 300 * MIB)
        await differ()
        assert (await measured(known=False, rate=rate)).sent >= 300 * MIB
