"""Find out with which QEMU, tools and accelerator each node of a pair runs, and compare the two.

Called by `cli.verbs.start` before a start and by `control.daemon.serve`, for the binary of a
secondary by `supervisor.acts.protect` and `supervisor.acts.switchover`, and by `check.doctor`; asks
`vm` for a binary, a program beside it for the accelerator (`machine.accel`) and `host` for the
images.

Invariant: a pair begins only where both nodes' QEMUs have one version and one machine type, and no
secondary is launched from a binary that was replaced by another version since
(`require_same_binary`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from coloctl import paths, probe_cache
from coloctl.colo.ground import Facts, Ground, NodeFacts
from coloctl.colo.programs import PROGRAM
from coloctl.colo.refuse import refuse
from coloctl.errors import PreconditionFailed, UnsupportedQEMU
from coloctl.host import open_host
from coloctl.host.base import Host
from coloctl.machine import image
from coloctl.machine.accel import PROVE_DEADLINE_S, KvmTrial, Measurement
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.model.revive import revive
from coloctl.vm import Binary, inspect

T = TypeVar("T")


async def prepare(spec: PairSpec, facts: Facts | None = None) -> Ground:
    """Open the hosts, inspect each node's QEMU, and turn ``auto`` into an accelerator.

    With ``facts`` that was done before: only the hosts are opened. Raises `UnsupportedQEMU` for a
    combination that is known to break (`colo.refuse`), and for two QEMUs that cannot be one pair.
    """
    hosts: dict[NodeName, Host] = {}
    try:
        for node in NODES:
            hosts[node] = open_host(spec.nodes[node].host)
        facts = facts or await look(spec, hosts)
    except BaseException:
        for host in hosts.values():
            await host.aclose()
        raise
    return Ground(hosts, facts, paths.pair_dir(spec.name))


async def look(spec: PairSpec, hosts: Mapping[NodeName, Host]) -> Facts:
    """Find the facts of both nodes; raises as `prepare` does."""
    binaries = {node: await inspect(find_qemu(spec, node), hosts[node]) for node in NODES}
    require_equal(spec, binaries)
    accels = {
        node: await accelerator(hosts[node], binaries[node].path, spec.guest.accel)
        for node in NODES
    }
    accel = effective(accels)
    nodes: dict[NodeName, NodeFacts] = {}
    for node in NODES:
        refuse(spec, binaries[node], accel)
        nodes[node] = NodeFacts(
            binaries[node],
            accels[node],
            image.tool(binaries[node].path),
            await _devices(spec, hosts[node], node),
        )
    return Facts(nodes, accel)


def effective(accels: Mapping[NodeName, str]) -> str:
    """Return the accelerator of both QEMUs: the one that both machines have, else TCG."""
    first, second = (accels[node] for node in NODES)
    return first if first == second else "tcg"


async def _devices(spec: PairSpec, host: Host, node: NodeName) -> frozenset[Path]:
    """Find the images of ``node`` that are block devices, also through a symbolic link.

    One that cannot be inspected counts as what its path says; QEMU reports what is wrong with it.
    """
    found = set()
    for disk in spec.disks:
        with contextlib.suppress(PreconditionFailed):
            if (await host.identify(disk.image[node])).device:
                found.add(disk.image[node])
    return frozenset(found)


def require_equal(spec: PairSpec, binaries: Mapping[NodeName, Binary]) -> None:
    """Require that both nodes' QEMUs can be one pair; raises `UnsupportedQEMU`, naming both.

    COLO holds between equal versions only (docs/qemu.md); the patches of a distribution may differ.
    An alias such as ``pc`` has to be the same machine type for both: the state of the guest's
    devices is written by one QEMU and read by the other.
    """
    a, b = (binaries[node] for node in NODES)
    if a.release != b.release:
        raise UnsupportedQEMU(
            f"Node {_where(spec, 'b', b)} has QEMU {b.version} and node {_where(spec, 'a', a)} has "
            f"{a.version}: both need the same version.",
            hint="install one version on both, or name it by node.a.qemu and node.b.qemu",
        )
    wanted = spec.guest.machine
    types = {node: binaries[node].machines.get(wanted, wanted) for node in NODES}
    if types["a"] != types["b"]:
        raise UnsupportedQEMU(
            f"The machine type {wanted} is {types['b']} for node {_where(spec, 'b', b)} and "
            f"{types['a']} for node {_where(spec, 'a', a)}.",
            hint=f'set guest.machine = "{min(types.values())}" if both know it',
        )


def _where(spec: PairSpec, node: NodeName, binary: Binary) -> str:
    """Name a node by what makes it another than its peer: its machine, or the path of its QEMU."""
    if spec.shares_machine():
        return f"{node} ({binary.path})"
    return f"{node} on {_machine(spec, node)}"


def _machine(spec: PairSpec, node: NodeName) -> str:
    return spec.nodes[node].machine or "this machine"


async def require_same_binary(spec: PairSpec, ground: Ground) -> None:
    """Require that each binary on disk is the version in which the guest runs.

    A package that was renewed meanwhile would make a secondary of another version, and COLO holds
    between equal versions only (docs/qemu.md). Raises `UnsupportedQEMU`.
    """
    for node in NODES:
        began = ground.node(node).binary
        now = await inspect(began.path, ground.hosts[node])
        if now.version != began.version:
            there = "" if spec.shares_machine() else f" on {_machine(spec, node)}"
            raise UnsupportedQEMU(
                f"{now.path}{there} is {now.version} now, and the guest runs in {began.version}: "
                "both nodes need the same version.",
                hint="stop and start the pair for the new version, or bring the old one back",
            )


async def accelerator(host: Host, binary: Path, wanted: str) -> str:
    """Return ``wanted``, or for ``auto`` what was measured since the machine of ``host`` booted.

    Raises `PreconditionFailed` where the program that measures it does not answer.
    """
    if wanted != "auto":
        return wanted
    key = probe_cache.key(binary, "auto", "accel")
    if known := (probe_cache.recall(key) or {}).get("accel"):
        return str(known)
    accel = (await kvm_trial(host, binary)).accel
    probe_cache.remember(key, {"accel": accel})
    return accel


async def kvm_trial(host: Host, binary: Path) -> KvmTrial:
    """Measure by a program on ``host`` what KVM is worth there; raises `PreconditionFailed`."""
    return await _measured(KvmTrial, host, binary, "auto")


async def tcg_measurement(host: Host, binary: Path) -> Measurement:
    """Measure TCG alone by a program on ``host``; raises `PreconditionFailed`."""
    return await _measured(Measurement, host, binary, "tcg")


async def _measured(kind: type[T], host: Host, binary: Path, wanted: str) -> T:
    """Run the program of `machine.accel`, and read the value that it prints.

    Where this is cancelled or late the program is killed, and its QEMU with it.
    """
    argv = [*PROGRAM, "coloctl.machine.accel", str(binary), wanted]
    done = await host.run(argv, deadline_s=PROVE_DEADLINE_S)
    try:
        return revive(kind, json.loads(done.stdout))
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it printed no answer"])[-1]
        raise PreconditionFailed(
            f"No accelerator could be measured with {binary} on {host.name}: {last}.",
            hint='guest.accel = "tcg" or "kvm" needs no measurement',
        ) from None


def find_qemu(spec: PairSpec, node: NodeName) -> Path:
    """Return the QEMU that the pair file names for ``node``, or the one on PATH.

    Raises `UnsupportedQEMU`.
    """
    if (named := spec.guest_on(node).qemu) is not None:
        return named
    if found := shutil.which("qemu-system-x86_64"):
        return Path(found)
    raise UnsupportedQEMU(
        "There is no qemu-system-x86_64 on PATH.",
        hint="install qemu-system-x86, or `coloctl lab qemu` and set guest.qemu",
    )
