"""Write the pair file of the lab's guest on two machines, and make its disks in them.

Called by `cli.verbs.lab_machines`; builds the document with `lab.sample`. Each machine has the disk
at the same path of its own. The supervisor reaches both machines over ssh.

Invariant: the disks exist before the file does, so a process that finds the file finds its disks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tomli_w

from coloctl.errors import LabError
from coloctl.lab import layout
from coloctl.lab.guest import GuestImage
from coloctl.lab.machine import LabMachine
from coloctl.lab.machines import Machines
from coloctl.lab.sample import ADDRESS, document, guest_table, lab_nic

#: Inside each machine; /var/lib/coloctl is kept over a reboot.
IMAGES = Path("/var/lib/coloctl/images")

_HEADER = """\
# The lab's guest on the machines hv1 and hv2. Start it with the ssh that reaches them:
#   export "$(coloctl lab machines config)"
"""


def disks(name: str, lab: Machines) -> dict[str, Path]:
    """Return each machine's disk of the pair ``name`` as it is found from outside.

    Raises `LabError` when a machine is off.
    """
    return {one.name: one.here(image_of(name)) for one in _hosts(lab).values()}


def image_of(name: str) -> Path:
    """Return the disk of the pair ``name`` as its machine finds it."""
    return IMAGES / f"{name}.qcow2"


def write(
    path: Path, *, name: str, lab: Machines, guest: GuestImage, qemu: Path, accel: str
) -> Path:
    """Write the pair file ``path`` for the pair ``name``, and an empty disk in each machine.

    A file or disk that exists there is replaced. Raises `LabError` when a machine is off or when
    the files cannot be written.
    """
    addresses = {"a": layout.REPLICATION_A, "b": layout.REPLICATION_B}
    pair = document(
        name=name,
        guest=guest_table(guest, append=guest.append_for(ADDRESS), accel=accel, qemu=qemu),
        images={node: str(image_of(name)) for node in addresses},
        nics=[lab_nic()],
        nodes={
            node: {"host": f"ssh://{one.name}", "address": addresses[node]}
            for node, one in _hosts(lab).items()
        },
    )
    try:
        for disk in disks(name, lab).values():
            disk.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            guest.copy_disk(disk)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_HEADER + tomli_w.dumps(pair), encoding="utf-8")
    except OSError as error:
        raise LabError(
            f"The pair file {path} and its disks cannot be written: {error.strerror}.",
            hint="name a file in a folder of yours with some room",
        ) from error
    return path


def _hosts(lab: Machines) -> Mapping[str, LabMachine]:
    return dict(zip(("a", "b"), map(lab.machine, lab.plan.hosts), strict=True))
