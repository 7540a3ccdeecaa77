"""Real pairs for tests: firmware guests, a supervisor's acts, and questions put to both QEMUs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import commands
from support.smallpair import own_net

from coloctl import paths
from coloctl.colo.ground import Ground
from coloctl.colo.inspect import prepare
from coloctl.colo.protect import checkpoint_now
from coloctl.errors import DeadlineMissed, MonitorError, PairBusy
from coloctl.ha.arbiter import FILE_NAME
from coloctl.host import open_host
from coloctl.journal import Journal
from coloctl.lab import qemu
from coloctl.machine import image
from coloctl.model.pair import (
    NODES,
    CheckpointSpec,
    DiskSpec,
    GuestSpec,
    NicSpec,
    NodeName,
    NodeSpec,
    PairSpec,
    Policy,
    ReplicationSpec,
    Role,
)
from coloctl.model.protection import Protection
from coloctl.model.qapi import RunState
from coloctl.model.units import MIB
from coloctl.qmp import command as qmp
from coloctl.qmp.command import Command
from coloctl.qmp.wait import until_runstate
from coloctl.supervisor import acts
from coloctl.supervisor.loop import Supervisor
from coloctl.supervisor.state import PairState
from coloctl.urgency import hurry
from coloctl.vm import VM

DISK_BYTES = 16 * MIB
#: Short enough that a test sees several checkpoints, long enough that most of the time is none.
DELAY_MS = 200
#: A checkpoint period that no test waits for.
LONG_MS = 60_000
#: What a test waits for at most, seconds; nothing measures against it.
PATIENCE_S = 30.0

#: What any QEMU has among its objects and chardevs; newer ones list their monitors twice.
STANDING = frozenset({"type", "pc.ram", "qmp0", "rescue0", "console0"})

_pairs = itertools.count(1)


def firmware_spec(
    folder: Path,
    build: qemu.Build,
    accel: str,
    *,
    automatic: bool = False,
    circular: bool = False,
    **guest: Any,
) -> PairSpec:
    """A pair on loopback addresses that no other test run has.

    Not ``automatic``: it fails over only when it is asked. ``circular``: protects itself again.
    """
    number = next(_pairs)
    net = own_net()
    return PairSpec(
        name=f"p{number}",
        guest=GuestSpec(memory_mib=64, accel=accel, qemu=build.binary, **guest),
        disks=(DiskSpec("disk0", {node: folder / f"{node}.qcow2" for node in NODES}),),
        nics=(NicSpec("hn0", "52:54:00:c0:10:01", tap=None),),
        nodes={
            node: NodeSpec(node, "local", f"{net}.{2 * number % 200 + i + 1}")
            for i, node in enumerate(NODES)
        },
        replication=ReplicationSpec(base_port=23000),
        checkpoint=CheckpointSpec(delay_ms=DELAY_MS),
        policy=Policy(auto_failover=automatic, auto_reprotect=circular),
    )


def accel_for(build: qemu.Build) -> str:
    """An accelerator that holds COLO with this build, or the test is skipped."""
    if build.name == "11.1":
        return "tcg"
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"COLO of QEMU {build.name} needs KVM: /dev/kvm: {error.strerror}")
    return "kvm"


async def make_disks(spec: PairSpec, qemu_img: Path) -> None:
    """Both nodes have the same empty disks."""
    host = open_host("local")
    try:
        for disk in spec.disks:
            for path in disk.image.values():
                if disk.format == "raw":
                    with path.open("wb") as raw:
                        raw.truncate(DISK_BYTES)
                    continue
                await image.create_overlay(path, DISK_BYTES, host.run, qemu_img=qemu_img)
    finally:
        await host.aclose()


@dataclass
class Stage:
    """One supervised pair, and everything that it said."""

    state: PairState
    supervisor: Supervisor
    events: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _deeds: dict[str, Callable[[], object]] = field(default_factory=dict)

    async def start(self, *, protected: bool = True) -> None:
        """Start the pair, or protect it again unless the supervisor has begun that by itself."""
        watch, entered = self.supervisor.watch, self.supervisor.entered
        try:
            await acts.start(self.state, watch, entered, protected=protected)
        except PairBusy:
            if not protected or self.state.act != "protect":
                raise
            await self.until_protection(Protection.COLO)

    def vm(self, node: NodeName) -> VM:
        vm = self.state.seats[node].vm
        assert vm is not None
        return vm

    @property
    def primary(self) -> VM:
        return self.state.vm_of(Role.PRIMARY)

    @property
    def secondary(self) -> VM:
        return self.state.vm_of(Role.SECONDARY)

    async def until(self, true: Callable[[], bool]) -> None:
        """Returns once ``true``; the test fails when that takes longer than its patience."""
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                self._news.clear()
                # Not everything that becomes true is announced.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await self._news.wait()

    async def checkpoints(self, more: int = 2) -> None:
        """That many checkpoints more have been taken."""
        seat = self.state.seats[self.primary.node]
        goal = seat.stats.count + more
        await self.until(lambda: seat.stats.count >= goal)

    def at_step(self, step: str, deed: Callable[[], object]) -> None:
        """``deed`` is done the moment an act announces ``step``, once."""
        self._deeds[step] = deed

    def tell(self, name: str, data: Mapping[str, Any]) -> None:
        self.events.append((name, data))
        self._news.set()
        if name == "STEP" and (deed := self._deeds.pop(data["step"], None)):
            deed()

    async def until_protection(self, wanted: Protection) -> None:
        await self.until(lambda: self.state.protection is wanted)

    def steps(self) -> list[str]:
        """The steps that acts have announced, in order."""
        return [str(data["step"]) for name, data in self.events if name == "STEP"]


def beside_logs(folder: Path) -> list[Path]:
    """What lies in ``folder`` and is neither a log nor a record of what was decided."""
    records = ("journal", "history", FILE_NAME)
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".log" and not path.name.startswith(records)
    ]


@contextlib.contextmanager
def _swept(folder: Path) -> Iterator[None]:
    """The folder held nothing but records when the pair was gone, and is gone too."""
    try:
        yield
        assert not beside_logs(folder)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _in_a_hurry() -> Iterator[None]:
    """Run as urgently as a supervisor does, which has a process of its own elsewhere."""
    policy, given = os.sched_getscheduler(0), os.sched_getparam(0)
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if not hurry():
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, given)
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


@contextlib.asynccontextmanager
async def supervised(spec: PairSpec, ground: Ground | None = None) -> AsyncIterator[Stage]:
    """The pair can be acted upon inside the block; behind it nothing of it is left."""
    ground = ground or await prepare(spec, stays=True)
    paths.make_private(ground.folder)
    with _in_a_hurry(), _swept(ground.folder), Journal(ground.folder / "journal.jsonl") as journal:
        state = PairState(spec, ground, journal, lambda event: None)
        supervisor = Supervisor(state)
        stage = Stage(state, supervisor)
        state.emit = lambda event: stage.tell(event.NAME, event.to_json())
        until = asyncio.Event()
        running = asyncio.create_task(supervisor.run(until))
        await asyncio.sleep(0)
        try:
            yield stage
        except BaseException:
            for node in NODES:
                log = ground.rundir(node) / "qemu.log"
                print("LOG", node, log.read_text() if log.exists() else "absent")
            print("JOURNAL", (ground.folder / "journal.jsonl").read_text())
            raise
        finally:
            until.set()  # nobody acts any more, not even to protect the guest again
            await running
            await acts.end_all(state)
            await ground.aclose()


def on_pair(
    spec: PairSpec,
    build: qemu.Build,
    act: Callable[[Stage], Awaitable[None]],
    *,
    started: bool = False,
) -> None:
    """Make the disks of a pair and carry ``act`` out under its supervisor, after a start or not."""

    async def run() -> None:
        await make_disks(spec, build.img)
        async with supervised(spec) as stage:
            if started:
                await stage.start()
            await act(stage)

    asyncio.run(run())


@dataclass
class Inventory:
    """What coloctl put into one QEMU, by name; ``quorum`` has the children of colo-disk0."""

    nodes: set[str] = field(default_factory=set)
    objects: set[str] = field(default_factory=set)
    chardevs: set[str] = field(default_factory=set)
    exports: set[str] = field(default_factory=set)
    jobs: set[str] = field(default_factory=set)
    quorum: tuple[str, ...] = ()


async def inventory(vm: VM) -> Inventory:
    async def named(command: Command, key: str) -> set[str]:
        names = {str(one[key]) for one in await vm.execute(command)}
        return {name for name in names if not name.startswith("#")} - STANDING

    return Inventory(
        nodes=await named(qmp.query_named_block_nodes(), "node-name"),
        objects=await named(qmp.qom_list("/objects"), "name"),
        chardevs=await named(qmp.query_chardev(), "label"),
        exports=await named(qmp.query_block_exports(), "id"),
        jobs=await named(qmp.query_jobs(), "id"),
        quorum=tuple(await _children(vm, "colo-disk0")),
    )


async def _children(vm: VM, parent: str) -> list[str]:
    graph = await vm.execute(Command("x-debug-query-block-graph", {}))
    (quorum,) = (n["id"] for n in graph["nodes"] if n["name"] == parent)
    names = {n["id"]: n["name"] for n in graph["nodes"]}
    return [names[edge["child"]] for edge in graph["edges"] if edge["parent"] == quorum]


async def qemu_io(vm: VM, words: str, device: str = "vd0/virtio-backend") -> str:
    """What qemu-io says of a command on the guest's own disk device; it writes to QEMU's log."""
    log = vm.rundir / "qemu.log"
    before = log.stat().st_size
    line = {"command-line": f'qemu-io -d /machine/peripheral/{device} "{words}"'}
    refused = await vm.execute(Command("human-monitor-command", line))
    assert not refused, refused
    return log.read_bytes()[before:].decode()


@contextlib.asynccontextmanager
async def between_checkpoints(vm: VM) -> AsyncIterator[None]:
    """Run the block where a guest may write: no checkpoint of a primary ``vm`` is under way.

    A guest stands still in a checkpoint and qemu-io does not, which may abort the secondary
    (docs/qemu.md, "A write of the monitor's in COLO"). One checkpoint comes before the block and
    one follows, unless the period is so long that a test has to ask for them.
    """
    mode = (await vm.execute(Command("query-colo-status", {})))["mode"]
    delay_ms = (await vm.execute(commands.query_migrate_parameters()))["x-checkpoint-delay"]
    if mode != "primary":
        yield
        return
    with vm.monitor.listen("STOP") as stops:
        if delay_ms < LONG_MS:
            await checkpoint_now(vm, LONG_MS, PATIENCE_S)
        with contextlib.suppress(DeadlineMissed):
            while True:  # one may have been due by the old period, or was asked for
                await stops.next(0.05)
    await until_runstate(vm.monitor, {RunState.RUNNING}, PATIENCE_S)
    yield
    if delay_ms < LONG_MS:
        with contextlib.suppress(MonitorError):  # the block may have ended it
            await vm.execute(qmp.migrate_set_parameters(x_checkpoint_delay=delay_ms))


async def guest_writes(
    vm: VM, pattern: int, offset: int, length: int, device: str = "vd0/virtio-backend"
) -> None:
    """Write to the disk of ``vm`` as its guest could: flushed, and between checkpoints.

    Returns when QEMU has acknowledged the write.

    Like a guest's, the write never holds QEMU's main loop: before 11.0 a primary that waits for its
    replica there may wait for ever in a checkpoint (docs/qemu.md, "Why the yank comes first").
    """
    async with between_checkpoints(vm):
        await _write(vm, pattern, offset, length, device)


async def _write(vm: VM, pattern: int, offset: int, length: int, device: str) -> None:
    log = vm.rundir / "qemu.log"
    before, done = log.stat().st_size, f"wrote {length}/{length} bytes"
    said = await qemu_io(vm, f"aio_write -f -P {pattern:#x} {offset} {length}", device)
    async with asyncio.timeout(PATIENCE_S):
        while not (done in said or "aio_write failed" in said):  # QEMU says other things there too
            await asyncio.sleep(0.005)
            said = log.read_bytes()[before:].decode()
    assert done in said, said


async def holds(
    vm: VM, pattern: int, offset: int, length: int, device: str = "vd0/virtio-backend"
) -> bool:
    """The disk, as the guest of ``vm`` would read it, has that byte in that place."""
    said = await qemu_io(vm, f"read -P {pattern:#x} {offset} {length}", device)
    assert f"read {length}/{length} bytes" in said, said
    return "Pattern verification failed" not in said
