"""Launch a QEMU of a pair: as a primary with the guest, or as an empty secondary.

Called by `supervisor.acts` and `check.trial_run`; builds command lines with `machine.cmdline` and
launches through `vm`.

Invariant: images, overlays and taps that another process uses are never touched, and no secondary
is launched over overlays that are pending.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

from coloctl.colo import guard, inuse, overlays, plugin, taps, tls
from coloctl.colo.ground import Ground
from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.machine import blockdev, cmdline, image
from coloctl.model.disk import DiskIdentity
from coloctl.model.launch import Launch
from coloctl.model.pair import NODES, NodeName, PairSpec, other
from coloctl.tasks import side_by_side
from coloctl.vm import VM, Recorder

#: For images that were made just now, and hold nothing; seconds.
REMOVE_DEADLINE_S = 10.0
#: The questions of a sweep, one after the other: the folder, two looks at the records, the removal.
_SWEEP_TRIPS = 4


async def check_room(spec: PairSpec, ground: Ground, node: NodeName) -> None:
    """Require that taps can be opened and ports are free on ``node``; else `PreconditionFailed`."""
    host = ground.hosts[node]
    _, taken = await side_by_side(
        taps.require_usable(spec, host, node), host.ports_in_use(spec.nodes[node].address)
    )
    for port, purpose in ground.wires(spec).ports().items():
        if port in taken:
            raise PreconditionFailed(
                f"Port {port} of {spec.nodes[node].address}, needed for {purpose}, is in use.",
                hint="set replication.base_port to a free range of 100 ports",
            )


async def ensure_images(spec: PairSpec, ground: Ground, node: NodeName) -> list[Path]:
    """Make an image on ``node`` for every disk without one, as big as the other node's.

    Returns those that were made; after an error none is left. Raises `PreconditionFailed` where one
    cannot be made, has another size, or is in use: any record about such an image would be wrong
    for the guest that uses it.
    """
    made: list[Path] = []
    host = ground.hosts[node]
    await inuse.require_free(host, *(disk.image[node] for disk in spec.disks))
    try:
        for i, disk in enumerate(spec.disks):
            path = disk.image[node]
            guest = await image_info(spec, ground, other(node), i)
            there = await host.identify(path)
            if not there.present:
                require_file(there, path, node)
                await image.create(
                    path,
                    guest.virtual_size,
                    disk.format,
                    host.run,
                    qemu_img=ground.node(node).qemu_img,
                    like=disk.image[other(node)] if ground.facts.one_machine else None,
                )
                made.append(path)
            image.require_equal_sizes(guest, await image_info(spec, ground, node, i))
    except BaseException:
        with contextlib.suppress(ColoctlError):
            await host.run(["rm", "-f", "--", *map(str, made)], deadline_s=REMOVE_DEADLINE_S)
        raise
    return made


def require_file(there: DiskIdentity, path: Path, node: NodeName) -> None:
    """Refuse a missing device: a file made below /dev lies in memory; `PreconditionFailed`."""
    where = Path(there.key.partition(":")[2])
    if where.is_relative_to("/dev") and not where.is_relative_to("/dev/shm"):
        raise PreconditionFailed(
            f"The device {path} of node {node} is not there.",
            hint="activate it (`lvchange -ay`, `losetup`), or correct the path in the pair file",
        )


async def require_same_sizes(spec: PairSpec, ground: Ground) -> int:
    """Require every disk on both nodes, with one size; return the bytes allocated for all of them.

    Raises `PreconditionFailed`.
    """
    allocated = 0
    for i, _ in enumerate(spec.disks):
        infos = await side_by_side(*(image_info(spec, ground, node, i) for node in NODES))
        image.require_equal_sizes(*infos)
        allocated += sum(info.actual_size for info in infos)
    return allocated


async def require_images(spec: PairSpec, ground: Ground, node: NodeName) -> None:
    """Require that every disk of ``node`` can be used; raises `PreconditionFailed`."""
    await side_by_side(*(image_info(spec, ground, node, i) for i, _ in enumerate(spec.disks)))


async def image_info(spec: PairSpec, ground: Ground, node: NodeName, disk: int) -> image.ImageInfo:
    """Inspect a disk's image on ``node``; its format is the pair file's, never the image's own."""
    described = spec.disks[disk]
    found = await image.info(
        described.image[node],
        ground.hosts[node].run,
        image_format=described.format,
        qemu_img=ground.node(node).qemu_img,
    )
    machine = None if ground.facts.one_machine else ground.node(node).machine
    return replace(found, machine=machine.name) if machine else found


def boots_alone(spec: PairSpec, ground: Ground) -> bool:
    """Return whether the guest has to boot before it can be protected, and alone when it boots
    again.

    Since 10.2 QEMU keeps the code that TCG translated when COLO overwrites the secondary's memory
    (docs/qemu.md, "Stale translations"). A guest that boots puts new code where other code was, and
    its secondary crashes; one that has booted does so rarely.
    """
    return ground.accel == "tcg" and bool(spec.guest.ready_line)


def primary_command(spec: PairSpec, ground: Ground, node: NodeName, *, paused: bool) -> Launch:
    """Build the command that starts the guest's QEMU on ``node``."""
    facts = ground.node(node)
    return cmdline.primary(
        spec,
        node,
        facts.binary.dialect,
        binary=facts.binary.path,
        accel=ground.accel,
        rundir=ground.rundir(node),
        paused=paused,
        plugin=plugin.known(ground, node),
        devices=facts.devices,
        tls=ground.tls.get(node),
        account=facts.account,
    )


def secondary_command(spec: PairSpec, ground: Ground, node: NodeName) -> Launch:
    """Build the command that starts an empty QEMU on ``node``; its overlays are made before."""
    facts = ground.node(node)
    return cmdline.secondary(
        spec,
        node,
        facts.binary.dialect,
        binary=facts.binary.path,
        accel=ground.accel,
        rundir=ground.rundir(node),
        overlays=blockdev.overlays(spec, node),
        close_marker=blockdev.close_marker(spec, node) if spec.disks else None,
        plugin=plugin.known(ground, node),
        devices=facts.devices,
        tls=ground.tls.get(node),
        account=facts.account,
    )


async def launch_primary(
    spec: PairSpec, ground: Ground, node: NodeName, *, paused: bool, record: Recorder | None
) -> VM:
    """Launch the guest's QEMU on ``node``, its tap up, its filters present and switched off."""
    await taps.make(spec, ground.hosts[node], node, ground.node(node).account)
    images = [disk.image[node] for disk in spec.disks]
    await side_by_side(
        check_room(spec, ground, node), inuse.require_free(ground.hosts[node], *images)
    )
    rundir = ground.rundir(node)
    _, ground, console = await side_by_side(
        guard.raise_guard(spec, ground),
        _equipped(spec, ground, node),
        ground.hosts[node].read_log(rundir / "console.log", 0, 0),
    )
    written = console.size
    launch = primary_command(spec, ground, node, paused=paused)
    vm = await VM.launch(node, ground.hosts[node], launch, rundir, record=record)
    vm.boots(written)
    try:
        await taps.set_all(spec, vm.host, node, up=True)
    except BaseException:
        await vm.kill(10)
        raise
    return vm


async def _equipped(spec: PairSpec, ground: Ground, node: NodeName) -> Ground:
    """Return ``ground`` with the plugin and the TLS of ``node``, whose files are there then."""
    renewed, equipped = await side_by_side(
        plugin.renewed(ground, node), tls.equipped(spec, ground, node)
    )
    return replace(renewed, tls=equipped.tls)


async def launch_secondary(
    spec: PairSpec, ground: Ground, node: NodeName, *, record: Recorder | None
) -> VM:
    """Launch an empty QEMU on ``node``, its overlays fresh and its tap down until it is promoted.

    Raises `PreconditionFailed` where the overlays of that node are pending, and the errors of a
    launch.
    """
    rundir, host = ground.rundir(node), ground.hosts[node]
    await host.make_private(rundir)
    await taps.make(spec, host, node, ground.node(node).account)
    files = [disk.image[node] for disk in spec.disks]
    for over in blockdev.overlays(spec, node):
        files += [over.active, over.hidden]
    await side_by_side(check_room(spec, ground, node), inuse.require_free(host, *files))
    infos = side_by_side(*(image_info(spec, ground, node, i) for i, _ in enumerate(spec.disks)))
    _, ground, found = await side_by_side(
        guard.raise_guard(spec, ground), _equipped(spec, ground, node), infos
    )
    sizes = {disk.id: info.virtual_size for disk, info in zip(spec.disks, found, strict=True)}
    await overlays.make(spec, host, node, sizes, qemu_img=ground.node(node).qemu_img)
    launch = secondary_command(spec, ground, node)
    vm = await VM.launch(node, host, launch, rundir, record=record)
    try:
        await taps.set_all(spec, vm.host, node, up=False)
    except BaseException:
        await vm.kill(10)
        raise
    return vm


async def sweep(
    spec: PairSpec, ground: Ground, node: NodeName, *, keep_overlays: bool = False
) -> None:
    """Remove what ``node`` needed to run and set its taps down; its QEMU was ended before.

    Taps that coloctl made are removed. One that a process holds is another guest's by now, and is
    left as it is. Its logs stay until the pair's folder goes, and its overlays as long as they are
    pending, or ``keep_overlays`` is set because they may be.
    """
    host = ground.hosts[node]
    await taps.remove_free(spec, host, node)
    # The disk may be dead with its node; files that are left are replaced or removed later.
    with contextlib.suppress(ColoctlError, TimeoutError):
        async with asyncio.timeout(overlays.REMOVE_DEADLINE_S + host.reach.trips_s(_SWEEP_TRIPS)):
            await host.sweep(ground.rundir(node))
            if not keep_overlays:
                await overlays.remove(spec, host, node)
