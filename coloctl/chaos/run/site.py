"""Define where the nodes of a run's pair live, as faults and evidence reach them.

Called by `chaos.run.environment`, `chaos.run.testbed`, `api.faults` and `pytest_plugin`; calls
`lab.sample` for the pair file. The faults of `chaos.faults` and `chaos.evidence.gather` ask a site
for the processes and files of a node.

Invariant: every process number and path that a site returns is one of this system. The node may use
another number or path for the same process or file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from coloctl import paths
from coloctl.lab import sample
from coloctl.lab.network import Lab


class Site(Protocol):
    """The place of a run's pair."""

    @property
    def lab(self) -> Lab:
        """The lab with the wires, the switch and the client."""
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


class LabSite:
    """The two hosts of a lab of namespaces: numbers and paths are those of this system."""

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
