"""Require room for the guest's disks on the node that is to get them, before anything is started.

Called by `supervisor.acts.start`, `supervisor.acts.protect`, `cli.verbs.start` for its dry run and
`check.disks`; `check.room` takes its look at a filesystem. Compares images by `machine.image`, and
asks about folders through `host.base`.

An image that is not there is made by `colo.launch`, where its folder can be written, and is as big
as the guest's. A copy is sparse: it needs what the guest's image has allocated, and a little for
its own tables. Disks that have held this guest's disks before need no room: what differs is sent.

Invariant: nothing is written here. A first copy that cannot fit is refused with its figures, and
the machine, before the guest runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coloctl.colo import launch
from coloctl.colo.ground import Ground
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.machine import image
from coloctl.model import units
from coloctl.model.pair import NodeName, PairSpec, other
from coloctl.tasks import side_by_side

#: For a program that only looks, seconds.
COMMAND_DEADLINE_S = 10.0
#: The tables of a qcow2 take 1/8192 of its data and those of a filesystem about 1/64.
SPARE = 1.02


@dataclass
class _Need:
    """The copies that go into one folder, and the bytes that they need."""

    disks: list[str] = field(default_factory=list)
    bytes: int = 0

    def add(self, disk: str, allocated: int, there: int = 0) -> None:
        """Add the copy of a disk, into an image that has ``there`` bytes already."""
        self.disks.append(disk)
        self.bytes += int(max(0, allocated - there) * SPARE)


async def require_place(
    spec: PairSpec, ground: Ground, node: NodeName, *, known: bool
) -> Mapping[Path, int]:
    """Require that ``node`` can hold the other node's disks.

    Return the images that are to be made, with the size of their disk. ``known``: its disks have
    held this guest's before. Raises `PreconditionFailed` for another size, a folder that cannot be
    written, and too little room.
    """
    host, needs = ground.hosts[node], dict[Path, _Need]()
    missing: dict[Path, int] = {}
    for index, disk in enumerate(spec.disks):
        path = disk.image[node]
        guest, there = await side_by_side(
            launch.image_info(spec, ground, other(node), index), host.identify(path)
        )
        need = needs.setdefault(path.parent, _Need())
        if there.present:
            info = await launch.image_info(spec, ground, node, index)
            image.require_equal_sizes(guest, info)
            if not known and not there.device:
                need.add(disk.id, guest.actual_size, info.actual_size)
        else:
            launch.require_file(there, path, node)
            await _require_folder(host, path)
            missing[path] = guest.virtual_size
            need.add(disk.id, guest.actual_size)
    for folder, need in needs.items():
        await _require_room(host, folder, need)
    return missing


async def require_new(host: Host, path: Path, disk: str, allocated: int) -> None:
    """Require that an image can be made at ``path``, and take ``allocated`` bytes of ``disk``.

    Raises `PreconditionFailed`.
    """
    await _require_folder(host, path)
    need = _Need()
    need.add(disk, allocated)
    await _require_room(host, path.parent, need)


async def _require_folder(host: Host, path: Path) -> None:
    folder, machine = path.parent, host.machine.name
    if why := await host.usable(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PreconditionFailed(
            f"{path} is not there on {machine}, and cannot be made in its folder: {why}.",
            hint=f"`mkdir -p {folder}` on {machine}, or name another place in the pair file",
        )


async def _require_room(host: Host, folder: Path, need: _Need) -> None:
    if need.bytes and (free := await free_bytes(host, folder)) < need.bytes:
        machine, disks = host.machine.name, " and ".join(need.disks)
        raise PreconditionFailed(
            f"{folder} on {machine} has {units.about(free)} of room, and the copy of {disks} needs "
            f"{units.about(need.bytes)}.",
            hint=f"make room on {machine}, or name another place in the pair file",
        )


async def free_bytes(host: Host, folder: Path) -> int:
    """Ask the host how many bytes an ordinary program may still write in ``folder``.

    Raises `PreconditionFailed`.
    """
    argv = [
        "sh",
        "-c",
        'd=$1; until test -e "$d"; do d=${d%/*}; d=${d:-/}; done; df -Pk "$d"',
        "sh",
    ]
    done = await host.run([*argv, str(folder)], deadline_s=COMMAND_DEADLINE_S)
    words = done.stdout.splitlines()[-1].split() if done.stdout else []
    if done.code != 0 or len(words) < 4 or not words[3].isdecimal():
        raise PreconditionFailed(
            f"The room in {folder} cannot be determined: {done.stderr.strip() or done.stdout!r}."
        )
    return int(words[3]) * 1024
