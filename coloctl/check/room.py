"""Examine the room on the filesystems that a pair writes to: its images, and its state folder.

Called by `check.doctor`; asks through `host.base`, and only looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coloctl.check.finding import Precondition, Severity
from coloctl.colo.first_copy import free_bytes
from coloctl.colo.ground import one_machine
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.machine import image
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.model.units import MIB

#: Logs, consoles, sockets and the journal of a pair are bounded well below this, bytes.
STATE_BYTES = 64 * MIB

Hosts = Mapping[NodeName, Host]
#: The ``qemu-img`` of each node.
Tools = Mapping[NodeName, Path]


async def examine_room(spec: PairSpec, hosts: Hosts, tools: Tools) -> list[Precondition]:
    """Find images that could outgrow their filesystem, and a state folder with little room.

    Raises `PreconditionFailed` where the room cannot be determined.
    """
    findings = []
    for node in NODES:
        findings += await _images(spec, node, hosts[node], tools[node])
    for host in _of_each_machine(hosts):
        folder = host.machine.state_dir
        free = await free_bytes(host, folder)
        if free >= STATE_BYTES:
            continue
        sentence = (
            f"{folder} on {host.machine.name} has {free // MIB} MiB of room left for the pair's "
            "state."
        )
        hint = "make room: without it nothing can be recorded, and decisions may have to wait"
        findings.append(Precondition("room", Severity.WARNING, sentence, hint))
    return findings or [Precondition("room", Severity.OK, "Images and state have room to grow.")]


def _of_each_machine(hosts: Hosts) -> list[Host]:
    """Return one host of each machine."""
    a, b = (hosts[node] for node in NODES)
    return [a] if one_machine(a.machine, b.machine) else [a, b]


async def _images(spec: PairSpec, node: NodeName, host: Host, qemu_img: Path) -> list[Precondition]:
    """Compare the possible growth of a node's images with the room beside them."""
    missing: dict[Path, int] = {}
    for disk in spec.disks:
        path = disk.image[node]
        try:
            info = await image.info(path, host.run, image_format=disk.format, qemu_img=qemu_img)
        except PreconditionFailed:
            continue  # the look at the disk says what is wrong with it
        grows = max(0, info.virtual_size - info.actual_size)
        missing[path.parent] = missing.get(path.parent, 0) + grows
    findings = []
    for folder, grows in missing.items():
        if folder.is_relative_to("/dev"):
            continue
        free = await free_bytes(host, folder)
        if free < grows:
            sentence = (
                f"The images of node {node} in {folder} may grow by {grows // MIB} MiB, and "
                f"{free // MIB} MiB are free there."
            )
            hint = "a guest whose image cannot grow stands still until there is room"
            findings.append(Precondition("room", Severity.WARNING, sentence, hint))
    return findings
