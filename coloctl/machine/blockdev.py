"""The block graph of a disk on each side, as ``-blockdev`` and ``blockdev-add`` take it.

::

    primary     vdN -> colo-diskN (quorum) -> parentN (image)
                                          \\-> nbdN -> the secondary's export parentN, once attached
    secondary   vdN -> colo-diskN (quorum) -> childsN (replication)
                                                `-> activeN -> hiddenN -> parentN (image)

Numbers: disk N is the N-th ``[[disk]]`` of the pair file, from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coloctl.model.pair import DiskSpec, PairSpec
from coloctl.model.wires import Address

Node = Mapping[str, Any]


@dataclass(frozen=True)
class Overlay:
    """The two empty qcow2 files of one secondary disk: new for every new secondary."""

    active: Path  #: what the secondary's guest wrote since the last checkpoint
    hidden: Path  #: what the primary overwrote below it meanwhile


def overlays(spec: PairSpec, folder: Path) -> tuple[Overlay, ...]:
    """Where the overlays of each disk lie, in the order of the pair's disks."""
    return tuple(
        Overlay(active=folder / f"active{i}.qcow2", hidden=folder / f"hidden{i}.qcow2")
        for i, _ in enumerate(spec.disks)
    )


def primary_nodes(disk: DiskSpec, index: int, image: Path) -> tuple[Node, ...]:
    """The graph of a disk whose replica is not attached yet, in creation order."""
    return (_image(disk, index, image), _quorum(index, f"parent{index}"))


def secondary_nodes(
    disk: DiskSpec, index: int, image: Path, active: Path, hidden: Path
) -> tuple[Node, ...]:
    """The graph of a replica, in creation order.

    ``top-id`` names the quorum although it comes later: QEMU looks for it when COLO starts.
    """
    replication = {
        "driver": "replication",
        "node-name": f"childs{index}",
        "mode": "secondary",
        "top-id": f"colo-disk{index}",
        "file": {
            "driver": "qcow2",
            "node-name": f"active{index}",
            "file": _unflushed(active),
            "backing": {
                "driver": "qcow2",
                "node-name": f"hidden{index}",
                "file": _unflushed(hidden),
                "backing": f"parent{index}",
            },
        },
    }
    return (_image(disk, index, image), replication, _quorum(index, f"childs{index}"))


def scratch_primary_nodes(
    disk: DiskSpec, index: int, image: Path, scratch: Path
) -> tuple[Node, ...]:
    """Build the graph of `primary_nodes` over an image that is only read.

    ``scratch`` is an empty qcow2 of the disk's size; what the guest would write goes there.
    """
    top = f"parent{index}"
    return (*_under_scratch(disk, index, image, scratch), _quorum(index, top))


def _under_scratch(disk: DiskSpec, index: int, image: Path, scratch: Path) -> tuple[Node, ...]:
    base = f"base{index}"
    return (
        {**_image(disk, index, image), "node-name": base, "read-only": True},
        {
            "driver": "qcow2",
            "node-name": f"parent{index}",
            "file": _protocol(scratch, device=False),
            "backing": base,
        },
    )


def scratch_secondary_nodes(
    disk: DiskSpec, index: int, image: Path, scratch: Path, over: Overlay
) -> tuple[Node, ...]:
    """Build the graph of `secondary_nodes` over an image that is only read; see above."""
    _, *rest = secondary_nodes(disk, index, image, over.active, over.hidden)
    return (*_under_scratch(disk, index, image, scratch), *rest)


def overlay_ids(index: int) -> tuple[str, str]:
    """The nodes of a replica that a promotion merges into its image, and which are gone then."""
    return (f"active{index}", f"hidden{index}")


def nbd_client(index: int, at: Address, detect_zeroes: str = "on") -> Node:
    """The primary's way to the secondary's disk.

    ``detect_zeroes`` keeps a full copy from writing the holes of the image. ``reconnect-delay``
    stays at its default 0, so that a dead secondary is an error at once and never a wait.
    """
    return {
        "driver": "nbd",
        "node-name": f"nbd{index}",
        "server": at.flat(),
        "export": f"parent{index}",
        "detect-zeroes": detect_zeroes,
    }


def is_replica(node_name: str) -> bool:
    """Whether a block node is the primary's way to the secondary's disk."""
    return node_name.startswith("nbd")


def _image(disk: DiskSpec, index: int, image: Path) -> Node:
    device = image in disk.devices or (
        image.is_relative_to("/dev") and not image.is_relative_to("/dev/shm")
    )
    file = _protocol(image, device=device)
    return {"driver": disk.format, "node-name": f"parent{index}", "file": file}


def _quorum(index: int, child: str) -> Node:
    """Reads come from the first child alone; a write counts when one child has it."""
    return {
        "driver": "quorum",
        "node-name": f"colo-disk{index}",
        "read-pattern": "fifo",
        "vote-threshold": 1,
        "children": [child],
    }


def _unflushed(overlay: Path) -> Node:
    """An overlay needs to outlive its QEMU, not its host, whose loss ends the secondary anyway.

    Emptying both at each checkpoint flushes them several times while the guest stands still: 3 ms
    of it on an ordinary disk (docs/qemu.md, "Overlays").
    """
    return {**_protocol(overlay, device=False), "cache": {"no-flush": True}}


def _protocol(path: Path, *, device: bool) -> Node:
    """QEMU's ``file`` driver refuses block devices, ``host_device`` refuses files."""
    return {"driver": "host_device" if device else "file", "filename": str(path)}
