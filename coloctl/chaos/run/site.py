"""Define where the nodes of a run's pair live, as faults and evidence reach them.

Called by `chaos.run.environment`, `chaos.run.testbed`, `api.faults` and `pytest_plugin`; calls
`lab.sample` for the pair file. The faults of `chaos.faults` and `chaos.evidence.gather` ask a site
for the processes and files of a node.

Invariant: every process number and path that a site returns is one of this system. The node may use
another number or path for the same process or file.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from operator import not_
from pathlib import Path
from typing import Any, Protocol

from coloctl import paths
from coloctl.clock import Deadline
from coloctl.errors import LabError
from coloctl.lab import machine_pair, sample
from coloctl.lab.machine import LabMachine, MachineState
from coloctl.lab.machines import Machines
from coloctl.lab.network import Lab
from coloctl.model.pair import NODES

#: Inside a machine, where coloctl keeps its files of a boot.
STATE = Path("/run/coloctl")
#: How long the agents and QEMUs of a pair that has ended may take to end as well, seconds.
GRACE_S = 5.0


class Site(Protocol):
    """The place of a run's pair."""

    @property
    def lab(self) -> Lab:
        """The lab with the wires, the switch and the client."""
        ...

    @property
    def python(self) -> str:
        """A Python that QEMU's user may run on the nodes, for programs in front of QEMU."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables with which a supervisor reaches the nodes, added to this process's."""
        ...

    @property
    def machines(self) -> Mapping[str, str]:
        """The machine of each node, by name; empty where both nodes run on this system."""
        ...

    def write_pair(self, path: Path, **options: Any) -> Path:
        """Write the pair file and a disk per node; ``options`` are those of `sample.write_pair`."""
        ...

    def outer(self, node: str, pid: int) -> int | None:
        """Return the number here of a process of that node; None where it has ended."""
        ...

    def file(self, node: str, path: Path) -> Path:
        """Return where a file of that node is found from here; raises `LabError` when it is off."""
        ...

    def folder(self, pair: str, node: str) -> Path:
        """Return where the folder of a node's QEMU is found from here; raises as `file`."""
        ...

    def share(self, home: Path) -> None:
        """Make what ``home`` holds now available to both nodes at the same path."""
        ...

    def left(self, pair: str) -> Sequence[str]:
        """Describe what of a pair that has ended is left on the nodes' own machines."""
        ...


class LabSite:
    """The two hosts of a lab of namespaces: numbers and paths are those of this system."""

    environment: Mapping[str, str] = {}
    machines: Mapping[str, str] = {}
    python = sys.executable

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def write_pair(self, path: Path, **options: Any) -> Path:
        """See `Site.write_pair`; raises `LabError`."""
        return sample.write_pair(path, lab=self.lab, **options)

    def outer(self, node: str, pid: int) -> int | None:
        """Return ``pid``."""
        return pid

    def file(self, node: str, path: Path) -> Path:
        """Return ``path``."""
        return path

    def folder(self, pair: str, node: str) -> Path:
        """Return the folder of the node in that of the pair."""
        return paths.pair_dir(pair) / node

    def share(self, home: Path) -> None:
        """Change nothing: both hosts have this system's files."""

    def left(self, pair: str) -> Sequence[str]:
        """Return nothing: `chaos.evidence.remains` looks at this system."""
        return ()


class MachineSite:
    """The machines hv1 and hv2 of a lab, reached over ssh; the supervisor has this system's files.

    Its ssh connections begin in the network of the third machine.
    """

    python = "python3"  #: that of the machine: another user cannot pass into a folder of root's

    def __init__(self, lab: Machines) -> None:
        self.lab = lab

    @property
    def environment(self) -> Mapping[str, str]:
        """See `Site.environment`."""
        return {"COLOCTL_SSH": shlex.join(self.lab.ssh())}

    @property
    def machines(self) -> Mapping[str, str]:
        """See `Site.machines`."""
        return dict(zip(NODES, self.lab.plan.hosts, strict=True))

    def machine(self, node: str) -> LabMachine:
        """Return the machine of that node."""
        return self.lab.machine(self.lab.plan.hosts[NODES.index(node)])

    def write_pair(self, path: Path, **options: Any) -> Path:
        """See `Site.write_pair`; raises `LabError`. A disk is always in its machine."""
        options.pop("disks", None)
        return machine_pair.write(path, lab=self.lab, **options)

    def outer(self, node: str, pid: int) -> int | None:
        """See `Site.outer`."""
        return self.machine(node).outer(pid)

    def file(self, node: str, path: Path) -> Path:
        """See `Site.file`; raises `LabError`."""
        return self.machine(node).here(path)

    def folder(self, pair: str, node: str) -> Path:
        """See `Site.folder`; raises `LabError`."""
        return self.file(node, STATE / pair / node)

    def share(self, home: Path) -> None:
        """Copy the files into both machines; raises `LabError` when one is off."""
        for node in NODES:
            there = self.file(node, home)
            shutil.copytree(home, there, dirs_exist_ok=True)
            there.chmod(0o755)

    def left(self, pair: str) -> Sequence[str]:
        """See `Site.left`: programs and folders of the pair in machines that are on."""
        return Deadline(GRACE_S).poll_blocking(lambda: list(self._left(pair)), 0.05, done=not_)

    def _left(self, pair: str) -> Iterator[str]:
        for machine in map(self.machine, NODES):
            if machine.state() is not MachineState.UP:
                continue
            first = machine.init_pid()
            for pid in machine.pids():
                if pid != first:
                    yield f"process {pid} still runs on {machine.name}"
            try:
                folder = machine.here(STATE / pair)
            except LabError:  # it has just been switched off
                continue
            if folder.exists():
                content = ", ".join(sorted(one.name for one in folder.iterdir()))
                yield f"{STATE / pair} is still there on {machine.name}: {content or 'empty'}"


def site_of(lab: Lab) -> Site:
    """Return the site of that lab's pairs."""
    return MachineSite(lab) if isinstance(lab, Machines) else LabSite(lab)
