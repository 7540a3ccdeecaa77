r"""Build the block graph of a disk on each side, as ``-blockdev`` and ``blockdev-add`` take it.

::

    primary     vdN -> colo-diskN (quorum) -> parentN (image)
                                          \-> nbdN -> the secondary's export parentN, once attached
    secondary   vdN -> colo-diskN (quorum) -> childsN (replication)
                                                `-> activeN -> hiddenN -> parentN (image)

Called by `machine.cmdline` for a QEMU that starts, and by `colo.plan` for one that runs. Numbers:
disk N is the N-th ``[[disk]]`` of the pair file, from 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coloctl import paths
from coloctl.model.pair import DiskSpec, NodeName, PairSpec
from coloctl.model.tls import TlsWire
from coloctl.model.wires import Address

Node = Mapping[str, Any]


@dataclass(frozen=True)
class Overlay:
    """The two qcow2 files of one secondary disk: empty for every new secondary.

    A promoted secondary writes to ``active`` until QEMU has merged both into the image; until then
    the disk is the image with both, ``active`` on top.
    """

    active: Path  #: what the secondary's guest wrote since the last checkpoint
    hidden: Path  #: what the primary overwrote below it meanwhile


def overlays(spec: PairSpec, node: NodeName) -> tuple[Overlay, ...]:
    """Name the overlays of each disk of ``node``, in the order of the pair's disks.

    They outlive a boot of the machine: beside the image, or in ``replication.overlay_dir``.
    """
    return tuple(_named(_stem(spec, node, disk)) for disk in spec.disks)


def scratch_overlays(spec: PairSpec, folder: Path) -> tuple[Overlay, ...]:
    """Name overlays of a secondary that is only tried, in ``folder``."""
    return tuple(_named(folder / disk.id) for disk in spec.disks)


def _named(stem: Path) -> Overlay:
    return Overlay(
        active=stem.with_name(f"{stem.name}.active.qcow2"),
        hidden=stem.with_name(f"{stem.name}.hidden.qcow2"),
    )


#: A bitmap of each active overlay that QEMU writes into its file when it closes that. It is there
#: for its name; coarse, as nothing reads its bits. Bytes.
CLOSED, CLOSED_GRANULARITY = "closed", 1 << 24

#: The node of the close marker, and its size in bytes: one cluster.
CLOSE_MARKER, CLOSE_MARKER_BYTES = "witness", 64 * 1024


def close_marker(spec: PairSpec, node: NodeName) -> Path:
    """Name the close marker: the file that shows how the QEMU of a secondary ended.

    QEMU marks a qcow2 file with lazy reference counts as dirty when it writes to it, and as clean
    when it closes it. This one is closed at no other time than at an orderly end.
    """
    stem = _stem(spec, node, spec.disks[0])
    return stem.with_name(f"{stem.name}.witness.qcow2")


def merge_log(close_marker: Path) -> Path:
    """Name the file beside a close marker in which QEMU notes its merges (`machine.merge_log`)."""
    return close_marker.with_name(close_marker.name.removesuffix("witness.qcow2") + "merge.log")


def _stem(spec: PairSpec, node: NodeName, disk: DiskSpec) -> Path:
    """Return the path that the names of a disk's overlays begin with.

    For a disk in ``/dev`` it is in another folder: no file can be made beside a device.
    """
    image, folder = disk.image[node], spec.replication.overlay_dir
    if folder is None and (not image.is_relative_to("/dev") or image.is_relative_to("/dev/shm")):
        return image
    return (folder or overlay_folder(spec, node)) / f"{spec.name}-{node}-{disk.id}"


def overlay_folder(spec: PairSpec, node: NodeName) -> Path:
    """Return the folder for overlays of devices on the machine of ``node``, which coloctl makes."""
    return spec.nodes[node].overlay_dir or paths.overlay_dir()


def primary_nodes(
    disk: DiskSpec, index: int, image: Path, devices: Collection[Path] = ()
) -> tuple[Node, ...]:
    """Build the graph of a disk whose replica is not attached yet, in creation order.

    ``devices`` are the images that were found to be block devices.
    """
    return (_image(disk, index, image, devices), _quorum(index, f"parent{index}"))


def secondary_nodes(
    disk: DiskSpec,
    index: int,
    image: Path,
    over: Overlay,
    devices: Collection[Path] = (),
) -> tuple[Node, ...]:
    """Build the graph of a replica, in creation order; ``devices`` as for `primary_nodes`.

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
            "file": _unflushed(over.active),
            "backing": {
                "driver": "qcow2",
                "node-name": f"hidden{index}",
                "file": _unflushed(over.hidden),
                "backing": f"parent{index}",
            },
        },
    }
    return (_image(disk, index, image, devices), replication, _quorum(index, f"childs{index}"))


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
    _, *rest = secondary_nodes(disk, index, image, over)
    return (*_under_scratch(disk, index, image, scratch), *rest)


def shown_node(disk: DiskSpec, index: int, image: Path, devices: Collection[Path] = ()) -> Node:
    """Build the node by which a QEMU without a guest shows an image; it takes no lock."""
    return {**_image(disk, index, image, devices), "read-only": True, "force-share": True}


def overlay_ids(index: int) -> tuple[str, str]:
    """Name the nodes of a replica that a promotion merges into its image and removes."""
    return (f"active{index}", f"hidden{index}")


def nbd_client(
    index: int, at: Address, detect_zeroes: str = "on", tls: TlsWire | None = None
) -> Node:
    """Build the node by which the primary reaches the secondary's disk.

    ``tls`` is the primary's, where the pair is encrypted. ``detect_zeroes`` keeps a full copy from
    writing the holes of the image. ``reconnect-delay`` stays at its default 0, so that a dead
    secondary is an error at once and never a wait.
    """
    return {
        "driver": "nbd",
        "node-name": f"nbd{index}",
        "server": at.flat(),
        "export": f"parent{index}",
        "detect-zeroes": detect_zeroes,
        **({"tls-creds": tls.ids.client, "tls-hostname": tls.peer} if tls else {}),
    }


def is_replica(node_name: str) -> bool:
    """Return whether a block node is the primary's connection to the secondary's disk."""
    return node_name.startswith("nbd")


def _image(disk: DiskSpec, index: int, image: Path, devices: Collection[Path] = ()) -> Node:
    device = image in devices or (
        image.is_relative_to("/dev") and not image.is_relative_to("/dev/shm")
    )
    file = _protocol(image, device=device)
    return {"driver": disk.format, "node-name": f"parent{index}", "file": file}


def _quorum(index: int, child: str) -> Node:
    """Build the quorum: it reads from its first child; a write counts when one child has it."""
    return {
        "driver": "quorum",
        "node-name": f"colo-disk{index}",
        "read-pattern": "fifo",
        "vote-threshold": 1,
        "children": [child],
    }


def close_marker_node(path: Path) -> Node:
    """Build the block node of the close marker, which is used by its first write alone."""
    return {"driver": "qcow2", "node-name": CLOSE_MARKER, "file": _unflushed(path)}


def _unflushed(overlay: Path) -> Node:
    """Build the file node of an overlay, which must outlive its QEMU and not its host.

    The loss of the host ends the secondary anyway. Emptying both overlays at each checkpoint
    flushes them several times while the guest stands still: 3 ms of it on an ordinary disk
    (docs/qemu.md, "Overlays").
    """
    return {**_protocol(overlay, device=False), "cache": {"no-flush": True}}


def _protocol(path: Path, *, device: bool) -> Node:
    """Build the protocol node of an image or device.

    QEMU's ``file`` driver refuses block devices, ``host_device`` refuses files.
    """
    return {"driver": "host_device" if device else "file", "filename": str(path)}
