"""Find out on which hosts, with which QEMU and accelerator a pair runs; `Ground` holds the answer.

Called by `cli.verbs.start` before a start and by `control.daemon.serve`; asks `vm` for the binary,
`machine.accel` for the accelerator and `host` for the images.

Invariant: no secondary is launched from a binary that was replaced by another version since
(`require_same_binary`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coloctl import paths, probe_cache
from coloctl.colo.refuse import refuse
from coloctl.errors import PreconditionFailed, UnsupportedQEMU
from coloctl.host import open_host
from coloctl.host.base import Host
from coloctl.machine import accel as accelerators
from coloctl.machine import image
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.model.wires import Wires
from coloctl.vm import Binary, inspect


@dataclass(frozen=True)
class Facts:
    """QEMU, accelerator and images of a pair as they were found, once, when it was started.

    Note the difference: a `Ground` has open hosts besides, and belongs to one process.
    """

    binary: Binary
    accel: str
    devices: frozenset[Path]  #: images that are block devices, with any path


@dataclass(frozen=True)
class Ground:
    """The hosts, QEMU, accelerator and folder that one pair uses."""

    hosts: Mapping[NodeName, Host]
    binary: Binary
    accel: str
    folder: Path  #: the pair's state directory
    devices: frozenset[Path] = frozenset()  #: images that are block devices, with any path

    @property
    def facts(self) -> Facts:
        """The findings alone, for a supervisor that follows."""
        return Facts(self.binary, self.accel, self.devices)

    @property
    def qemu_img(self) -> Path:
        """The ``qemu-img`` that belongs to the binary."""
        return image.tool(self.binary.path)

    def rundir(self, node: NodeName) -> Path:
        """Return the folder of one node."""
        return self.folder / node

    def wires(self, spec: PairSpec) -> Wires:
        """Return the addresses at which the two QEMUs meet."""
        return Wires(spec, self.folder)

    async def aclose(self) -> None:
        """Release what the host objects hold."""
        for host in self.hosts.values():
            await host.aclose()


async def prepare(spec: PairSpec, facts: Facts | None = None) -> Ground:
    """Open the hosts, inspect the binary, and turn ``auto`` into an accelerator.

    With ``facts`` that was done before: only the hosts are opened. Raises `UnsupportedQEMU` for a
    combination that is known to break (`colo.refuse`).
    """
    hosts: dict[NodeName, Host] = {}
    try:
        for node in NODES:
            hosts[node] = open_host(spec.nodes[node].host)
        facts = facts or await _look(spec, hosts)
    except BaseException:
        for host in hosts.values():
            await host.aclose()
        raise
    return Ground(hosts, facts.binary, facts.accel, paths.pair_dir(spec.name), facts.devices)


async def _look(spec: PairSpec, hosts: Mapping[NodeName, Host]) -> Facts:
    binary = await inspect(find_qemu(spec), hosts["a"])
    accel = await accelerator(binary.path, spec.guest.accel)
    refuse(spec, binary, accel)
    return Facts(binary, accel, await _devices(spec, hosts))


async def _devices(spec: PairSpec, hosts: Mapping[NodeName, Host]) -> frozenset[Path]:
    """Find the images that are block devices, also through a symbolic link.

    One that cannot be inspected counts as what its path says; QEMU reports what is wrong with it.
    """
    found = set()
    for node in NODES:
        for disk in spec.disks:
            with contextlib.suppress(PreconditionFailed):
                if (await hosts[node].identify(disk.image[node])).device:
                    found.add(disk.image[node])
    return frozenset(found)


async def require_same_binary(ground: Ground) -> None:
    """Require that the binary on disk is the version in which the guest runs, or `UnsupportedQEMU`.

    A package that was renewed meanwhile would make a secondary of another version, and COLO holds
    between equal versions only (docs/qemu.md).
    """
    now = await inspect(ground.binary.path, ground.hosts["a"])
    if now.version != ground.binary.version:
        raise UnsupportedQEMU(
            f"{now.path} is {now.version} now, and the guest runs in {ground.binary.version}: both "
            "nodes need the same version.",
            hint="stop and start the pair for the new version, or bring the old one back",
        )


async def accelerator(binary: Path, wanted: str) -> str:
    """Return ``wanted``, or for ``auto`` the accelerator that was measured since this machine
    booted.
    """
    if wanted != "auto":
        return wanted
    key = probe_cache.key(binary, "auto", "accel")
    if known := (probe_cache.recall(key) or {}).get("accel"):
        return str(known)
    accel = await accelerators.choose(binary, wanted)
    probe_cache.remember(key, {"accel": accel})
    return accel


def find_qemu(spec: PairSpec) -> Path:
    """Return the QEMU of the pair file, or the one on PATH; raises `UnsupportedQEMU`."""
    if spec.guest.qemu is not None:
        return spec.guest.qemu
    if found := shutil.which("qemu-system-x86_64"):
        return Path(found)
    raise UnsupportedQEMU(
        "There is no qemu-system-x86_64 on PATH.",
        hint="install qemu-system-x86, or `coloctl lab qemu` and set guest.qemu",
    )
