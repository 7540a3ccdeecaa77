"""A pair file for tests that type verbs or ask a control socket: firmware, one disk, no network."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coloctl import paths
from coloctl.lab import layout, qemu
from coloctl.lab.network import Lab

_PAIR = """\
name = "{name}"
[guest]
memory = "64MiB"
accel = "tcg"
qemu = "{qemu}"
[[disk]]
id = "disk0"
image = {{ a = "a.qcow2", b = "b.qcow2" }}
[node.a]
address = "{net}.{host}"
[node.b]
address = "{net}.{other}"
[replication]
base_port = 25000
[checkpoint]
delay_ms = 200
[policy]
auto_reprotect = false
"""


def own_net() -> str:
    """Three quarters of a loopback address that no other process's tests use."""
    pid = os.getpid()
    return f"127.{pid >> 8 & 127 | 64}.{pid & 255}"


def write_small_pair(
    file: Path, build: qemu.Build, binary: Path | None = None, number: int = 0
) -> Path:
    """``file`` describes a pair of that name, with two equal disks beside it.

    Its loopback addresses are this process's and ``number``'s own. ``binary`` runs instead of the
    build's.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for node in "ab":
        image = str(file.parent / f"{node}.qcow2")
        subprocess.run([build.img, "create", "-q", "-f", "qcow2", image, "16M"], check=True)
    host = number % 100 + 1
    file.write_text(
        _PAIR.format(
            name=file.stem, qemu=binary or build.binary, net=own_net(), host=host, other=host + 100
        )
    )
    return file


def put_on_hosts(file: Path, lab: Lab, tables: str) -> None:
    """Move the nodes of a small pair to the hosts of ``lab``, and add ``tables`` to its file."""
    text = file.read_text()
    for node, host, address in (
        ("a", lab.host_a, layout.REPLICATION_A),
        ("b", lab.host_b, layout.REPLICATION_B),
    ):
        head, mark, rest = text.partition(f"[node.{node}]\n")
        line, _, after = rest.partition("\n")
        assert line.startswith("address")
        text = f'{head}{mark}host = "netns:{host}"\naddress = "{address}"\n{after}'
    file.write_text(text.replace("[node.a]", f"{tables}[node.a]", 1))


def qemu_io(qmp: Callable[..., Any], pair: str, node: str, words: str) -> str:
    """What qemu-io says of a command on the guest's own disk; it writes to QEMU's log.

    ``qmp(node, command, **arguments)`` asks that node's QEMU.
    """
    log = paths.pair_dir(pair) / node / "qemu.log"
    before = log.stat().st_size
    line = f'qemu-io -d /machine/peripheral/vd0/virtio-backend "{words}"'
    qmp(node, "human-monitor-command", **{"command-line": line})
    said = log.read_bytes()[before:].decode(errors="replace")
    assert said, f"{log} took nothing of what qemu-io said: is there room?"
    return said
