"""A pair file for the lab's guest in a standing lab: complete, and ready to start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from coloctl.errors import LabError
from coloctl.lab import layout
from coloctl.lab.guest import READY_LINE, GuestImage
from coloctl.lab.network import Lab

#: The guest's address where nobody chooses another, with the length of its network's prefix.
ADDRESS = f"{layout.GUEST}/{layout.PREFIX_LENGTH}"
#: What the guest is tested with.
MEMORY = "256MiB"

_PAIR = """\
# The lab's guest on both hosts of a lab. `coloctl start` protects it, `coloctl status` shows it,
# and redis in it answers the lab's client at {plain_address}.
name = {name}

{guest}

[[disk]]
id = "disk0"
image = {{ a = {disk_a}, b = {disk_b} }}

[[nic]]
id = "hn0"
mac = {mac}
tap = {{ a = {tap_a}, b = {tap_b}, bridge = {bridge} }}

[node.a]
host = {host_a}
address = {address_a}

[node.b]
host = {host_b}
address = {address_b}

[replication]
base_port = {base_port}
channel = {channel}

[checkpoint]
delay_ms = {checkpoint_delay_ms}
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
) -> Path:
    """``path`` describes the pair ``name`` of that lab, with an empty disk per node beside it.

    What was there is replaced. ``address`` ("10.77.0.10/24") is the guest's; its MAC follows from
    it, so that guests of one lab differ in both. ``append_options`` are those of
    `GuestImage.append_for`. Raises `LabError` when the files cannot be written.
    """
    disks = disks_beside(path)
    append = guest.append_for(address, **append_options)
    interface = IPv4Interface(address)
    values: dict[str, str | int] = {
        "name": name,
        "disk_a": disks["a"].name,
        "disk_b": disks["b"].name,
        "mac": guest_mac(address),
        "tap_a": layout.TAPS["host-a"],
        "tap_b": layout.TAPS["host-b"],
        "bridge": layout.BRIDGE,
        "host_a": f"netns:{lab.host_a}",
        "host_b": f"netns:{lab.host_b}",
        "address_a": layout.REPLICATION_A,
        "address_b": layout.REPLICATION_B,
        "base_port": base_port,
        "channel": channel,
        "checkpoint_delay_ms": checkpoint_delay_ms,
    }
    text = _PAIR.format(
        plain_address=interface.ip,
        guest=guest_table(guest, append=append, memory=memory, accel=accel, qemu=qemu),
        **{key: _toml(value) for key, value in values.items()},
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for disk in disks.values():
            guest.copy_disk(disk)
        # Last: whoever sees the file sees its disks.
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LabError(
            f"The pair file {path} and its disks cannot be written: {error.strerror}.",
            hint="name a file in a folder of yours with some room",
        ) from error
    return path


def disks_beside(path: Path) -> dict[str, Path]:
    """The disk of each node that `write_pair` puts beside the pair file ``path``."""
    return {node: path.with_name(f"{path.stem}-{node}.qcow2") for node in ("a", "b")}


def guest_table(
    guest: GuestImage,
    *,
    append: str,
    memory: str = MEMORY,
    accel: str = "auto",
    qemu: Path | None = None,
) -> str:
    """The ``[guest]`` table of a pair file, for this guest; without an end of line."""
    values = {"memory": memory, "accel": accel}
    if qemu is not None:
        values["qemu"] = str(qemu.absolute())
    values |= {"kernel": str(guest.kernel), "initrd": str(guest.initrd), "append": append}
    values["ready_line"] = READY_LINE
    return "\n".join(["[guest]", *(f"{key} = {_toml(value)}" for key, value in values.items())])


def guest_mac(address: str = ADDRESS) -> str:
    """A locally administered unicast MAC that begins like QEMU's and ends with the address."""
    packed = IPv4Interface(address).ip.packed
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, *packed))


def _toml(value: str | int) -> str:
    """A string or a number as TOML writes it; its escapes are JSON's, and DEL in addition."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
