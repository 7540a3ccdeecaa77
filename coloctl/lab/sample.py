"""Write the pair file of a lab's guest: complete, ready to start, its disks beside it.

Called by `chaos.run.environment`, `chaos.run.testbed`, `bench.supervisors` and
`cli.verbs.lab_goods`; takes names and addresses from `lab.layout` and the guest's parts from
`lab.guest`.

Invariant: `document` is pure and makes what `pairfile.load` accepts. The disks exist before the
file does, so a process that finds the file finds its disks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import tomli_w

from coloctl.errors import LabError
from coloctl.lab import layout
from coloctl.lab.guest import READY_LINE, GuestImage
from coloctl.lab.network import Lab

#: The guest's address where the caller chooses no other, with its network's prefix length.
ADDRESS = f"{layout.GUEST}/{layout.PREFIX_LENGTH}"
#: The memory that the guest is tested with.
MEMORY = "256MiB"

TomlTable = Mapping[str, Any]

_HEADER = """\
# The lab's guest on both hosts of a lab. `coloctl start` protects it, `coloctl status` shows it,
# and redis in it answers the lab's client at {address}.
"""


def write_pair(
    path: Path,
    *,
    name: str,
    lab: Lab,
    guest: GuestImage,
    qemu: Path,
    accel: str,
    address: str = ADDRESS,
    memory: str = MEMORY,
    checkpoint_delay_ms: int = 1000,
    channel: str = "fd",
    base_port: int = 9000,
    append_options: Mapping[str, Any] = {},
    disks: Mapping[str, Path] = {},
    names: Mapping[str, str] = {},
    nodes: Mapping[str, TomlTable] | None = None,
    tables: Mapping[str, Any] = {},
    header: str | None = None,
    made_taps: bool = False,
) -> Path:
    """Write the pair file ``path`` for the pair ``name`` of that lab, and an empty disk per node.

    A file or disk that exists there is replaced. ``address`` ("10.77.0.10/24") is the guest's; its
    MAC follows from it, so that guests of one lab differ in both. ``append_options`` are those of
    `GuestImage.append_for`. ``disks`` names where a node's disk goes instead of beside the file,
    and ``names`` how the file names it where that differs. ``nodes`` are the tables of both nodes
    where they do not live in the hosts of the lab; with ``made_taps`` coloctl makes the taps.
    ``tables`` are laid over the document by `overlaid`. ``header`` is the comment above it, with
    ends of lines. Raises `LabError` when the files cannot be written.
    """
    append = guest.append_for(address, **append_options)
    images = disks_beside(path) | dict(disks)
    pair = document(
        name=name,
        guest=guest_table(guest, append=append, memory=memory, accel=accel, qemu=qemu),
        images={node: _named(disk, path.parent) for node, disk in images.items()} | dict(names),
        nics=[lab_nic(address, made=made_taps)],
        nodes=nodes or lab_nodes(lab),
        channel=channel,
        base_port=base_port,
        checkpoint_delay_ms=checkpoint_delay_ms,
    )
    if header is None:
        header = _HEADER.format(address=IPv4Interface(address).ip)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for disk in images.values():
            guest.copy_disk(disk)
        # Last: who finds the file finds its disks.
        path.write_text(header + tomli_w.dumps(overlaid(pair, tables)), encoding="utf-8")
    except OSError as error:
        raise LabError(
            f"The pair file {path} and its disks cannot be written: {error.strerror}.",
            hint="name a file in a folder of yours with some room",
        ) from error
    return path


def document(
    *,
    name: str,
    guest: TomlTable,
    images: Mapping[str, str],
    nodes: Mapping[str, TomlTable],
    nics: Sequence[TomlTable] = (),
    base_port: int = 9000,
    channel: str = "fd",
    checkpoint_delay_ms: int = 1000,
) -> dict[str, Any]:
    """Build the document of a pair file with one disk; pure.

    ``guest`` is its ``[guest]`` table, ``images`` each node's image of the disk as the file names
    it, ``nodes`` each node's table and ``nics`` one table per network device.
    """
    pair: dict[str, Any] = {"name": name, "guest": dict(guest)}
    pair["disk"] = [{"id": "disk0", "image": dict(images)}]
    if nics:
        pair["nic"] = [dict(nic) for nic in nics]
    pair["node"] = {node: dict(table) for node, table in nodes.items()}
    pair["replication"] = {"base_port": base_port, "channel": channel}
    pair["checkpoint"] = {"delay_ms": checkpoint_delay_ms}
    return pair


def overlaid(document: TomlTable, tables: TomlTable) -> dict[str, Any]:
    """Return ``document`` with ``tables`` laid over it.

    A table replaces the keys that it names and keeps the others; any other value replaces the
    document's.
    """
    result = dict(document)
    for key, value in tables.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key, {}), Mapping)
        result[key] = {**result.get(key, {}), **value} if both else value
    return result


def disks_beside(path: Path) -> dict[str, Path]:
    """Return the disk of each node that `write_pair` puts beside the pair file ``path``."""
    return {node: path.with_name(f"{path.stem}-{node}.qcow2") for node in ("a", "b")}


def lab_nodes(lab: Lab) -> dict[str, dict[str, str]]:
    """Return the ``[node.NAME]`` tables of both nodes in the hosts of that lab."""
    return {
        "a": {"host": f"netns:{lab.host_a}", "address": layout.REPLICATION_A},
        "b": {"host": f"netns:{lab.host_b}", "address": layout.REPLICATION_B},
    }


def lab_nic(address: str = ADDRESS, *, made: bool = False) -> dict[str, Any]:
    """Return the ``[[nic]]`` table of the guest with that address, on the taps of any lab.

    With ``made`` it names the bridge alone, and coloctl makes the taps.
    """
    if made:
        return {"id": "hn0", "mac": guest_mac(address), "bridge": layout.BRIDGE}
    taps = {"a": layout.TAPS["host-a"], "b": layout.TAPS["host-b"], "bridge": layout.BRIDGE}
    return {"id": "hn0", "mac": guest_mac(address), "tap": taps}


def guest_table(
    guest: GuestImage,
    *,
    append: str,
    memory: str = MEMORY,
    accel: str = "auto",
    qemu: Path | None = None,
) -> dict[str, str]:
    """Return the ``[guest]`` table of a pair file for this guest."""
    table = {"memory": memory, "accel": accel}
    if qemu is not None:
        table["qemu"] = str(qemu.absolute())
    table |= {"kernel": str(guest.kernel), "initrd": str(guest.initrd), "append": append}
    table["ready_line"] = READY_LINE
    return table


def _named(disk: Path, folder: Path) -> str:
    """Return the name of a disk in a pair file of ``folder``: relative if it lies there."""
    return disk.name if disk.parent == folder else str(disk.absolute())


def guest_mac(address: str = ADDRESS) -> str:
    """Return a locally administered unicast MAC: QEMU's first bytes, then the address."""
    packed = IPv4Interface(address).ip.packed
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, *packed))
