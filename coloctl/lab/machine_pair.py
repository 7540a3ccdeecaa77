"""Write the pair file of the lab's guest on two machines, and make its disks in them.

Called by `cli.verbs.lab_machines` and `chaos.run.site`; calls `lab.sample` for the file. Each
machine has the disk at the same path of its own. The supervisor reaches both machines over ssh.

Invariant: the disks exist before the file does, so a process that finds the file finds its disks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coloctl.errors import LabError
from coloctl.lab import layout, sample
from coloctl.lab.machine import LabMachine
from coloctl.lab.machines import Machines

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


def write(path: Path, *, name: str, lab: Machines, **options: Any) -> Path:
    """Write the pair file ``path`` for the pair ``name``, and an empty disk in each machine.

    A file or disk that exists there is replaced. ``options`` are those of `sample.write_pair` but
    what concerns the nodes and the places of disks. Raises `LabError` when a machine is off or when
    the files cannot be written.
    """
    addresses = {"a": layout.REPLICATION_A, "b": layout.REPLICATION_B}
    hosts = _hosts(lab)
    places = {node: one.here(image_of(name)) for node, one in hosts.items()}
    try:
        for disk in places.values():
            # QEMU's user passes the folder to the disk that is lent to it.
            disk.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"The disks of {name} cannot be made: {error.strerror}.") from error
    written = sample.write_pair(
        path,
        name=name,
        lab=lab,
        disks=places,
        names=dict.fromkeys(places, str(image_of(name))),
        nodes={
            node: {"host": f"ssh://{one.name}", "address": addresses[node]}
            for node, one in hosts.items()
        },
        header=_HEADER,
        made_taps=True,
        **options,
    )
    for disk in places.values():
        disk.chmod(0o600)
    return written


def _hosts(lab: Machines) -> Mapping[str, LabMachine]:
    return dict(zip(("a", "b"), map(lab.machine, lab.plan.hosts), strict=True))
