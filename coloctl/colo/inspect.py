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

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TypeVar

from coloctl import hostlist, paths, probe_cache
from coloctl.colo import accounts, cpu_models, plugin
from coloctl.colo.ground import Facts, Ground, NodeFacts, close, is_here, one_machine, open_hosts
from coloctl.colo.refuse import refuse
from coloctl.errors import PreconditionFailed, SpecError, UnsupportedQEMU
from coloctl.host.base import Host
from coloctl.host.records import Machine
from coloctl.machine.accel import KVM_DEVICE, PROVE_DEADLINE_S, KvmTrial, Measurement
from coloctl.machine.image import QEMU_IMG
from coloctl.model.dialect import Dialect
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.model.revive import revive
from coloctl.vm import Binary, cache_key, inspect

T = TypeVar("T")

#: Another machine's agent answers within a second, and ssh gives a silent machine up after 10. With
#: a round trip of 2 s, ssh and the agent took 24 s together (OpenSSH 9.2); with one of 1.5 s it was
#: 40 s where the agent's program was sent first.
READY_DEADLINE_S = 90.0

Hosts = Mapping[NodeName, Host]


async def prepare(
    spec: PairSpec, facts: Facts | None = None, *, stays: bool = False, hosts: Hosts | None = None
) -> Ground:
    """Open the hosts, inspect each node's QEMU, and turn ``auto`` into an accelerator.

    With ``facts`` that was done before: the hosts are only opened, and none is waited for. With
    ``stays``, for a supervisor, an agent outlives its connection and replaces the one before.
    ``hosts`` are open already; they are closed where this raises.
    Raises `UnsupportedQEMU` for a combination that is known to break (`colo.refuse`), and for two
    QEMUs that cannot be one pair. Raises `HostOutOfReach`, and `SpecError` for a file that another
    machine does not have.
    """
    hosts = hosts or open_hosts(spec, pair=spec.name if stays else "")
    try:
        if facts is None:
            waits = (host.ready(READY_DEADLINE_S) for host in dict.fromkeys(hosts.values()))
            for error in await asyncio.gather(*waits, return_exceptions=True):
                if error is not None:
                    raise error
            facts = await look(spec, hosts)
    except BaseException:
        await close(hosts)
        raise
    return Ground(hosts, facts, paths.pair_dir(spec.name))


async def look(spec: PairSpec, hosts: Hosts) -> Facts:
    """Find the facts of both nodes; raises as `prepare` does."""
    machines = {node: hosts[node].machine for node in NODES}
    require_two_identities(machines)
    require_one_name(spec, machines)
    for node in NODES:
        await require_files(spec, hosts[node], node)
    paths_of = {node: await find_qemu(spec, hosts[node], node) for node in NODES}
    alike = one_machine(machines["a"], machines["b"]) and paths_of["a"] == paths_of["b"]
    binaries: dict[NodeName, Binary] = {"a": await inspect(paths_of["a"], hosts["a"])}
    binaries["b"] = binaries["a"] if alike else await inspect(paths_of["b"], hosts["b"])
    require_equal(spec, binaries, machines)
    wanted = spec.guest.accel
    accels: dict[NodeName, str] = {"a": await accelerator(hosts["a"], paths_of["a"], wanted)}
    accels["b"] = accels["a"] if alike else await accelerator(hosts["b"], paths_of["b"], wanted)
    accel = effective(accels)
    await cpu_models.require_model(spec, hosts, paths_of, accel)
    nodes: dict[NodeName, NodeFacts] = {}
    for node in NODES:
        refuse(spec, binaries[node], accel)
        nodes[node] = NodeFacts(
            binaries[node],
            accels[node],
            await qemu_img(hosts[node], binaries[node].path),
            await _devices(spec, hosts[node], node),
            machines[node],
            await _plugin(hosts[node], binaries[node].path) if accel == "tcg" else None,
            await accounts.find(spec, hosts[node]),
        )
    return Facts(nodes, accel)


async def _plugin(host: Host, binary: Path) -> Path | None:
    """Find the plugin on another machine; on this one it is looked for at each launch."""
    return None if is_here(host.machine) else await plugin.find(host, binary)


def require_two_identities(machines: Mapping[NodeName, Machine]) -> None:
    """Refuse two machines with one machine-id: a reboot of one would prove deaths on the other.

    Raises `PreconditionFailed`.
    """
    a, b = (machines[node] for node in NODES)
    if a.machine_id and a.machine_id == b.machine_id and a.boot_id != b.boot_id:
        raise PreconditionFailed(
            f"{a.name} and {b.name} have the same /etc/machine-id, as copies of one disk have.",
            # systemd takes D-Bus's again where that is left (seen on Debian 13).
            hint="`rm -f /etc/machine-id /var/lib/dbus/machine-id`, `systemd-machine-id-setup` on "
            "one of them, and boot it",
        )


def require_one_name(spec: PairSpec, machines: Mapping[NodeName, Machine]) -> None:
    """Refuse two names of one machine: two sessions would take its one place of an agent in turn.

    Raises `PreconditionFailed`.
    """
    a, b = (machines[node] for node in NODES)
    same = (a.network, a.state_dir) == (b.network, b.state_dir) and one_machine(a, b)
    first, second = (spec.nodes[node].machine for node in NODES)
    if same and first and second and first != second:
        raise PreconditionFailed(
            f"{first} and {second} are one machine, {a.name}, and the nodes name it in two ways.",
            hint="write one of the two as the host of both nodes, or name another machine",
        )


async def require_files(spec: PairSpec, host: Host, node: NodeName) -> None:
    """Require the files that the pair file names for a node on another machine.

    Those of this machine `pairfile` has looked for. Raises `SpecError` with the key, and
    `PreconditionFailed` where that machine's state folder is too deep for sockets.
    """
    if not spec.nodes[node].machine:
        return
    paths.check_socket_path(host.machine.pair_dir(spec.name) / node / "compare_out-n9.sock")
    async for problem in unusable_files(spec, host, node):
        raise problem


async def unusable_files(spec: PairSpec, host: Host, node: NodeName) -> AsyncIterator[SpecError]:
    """Find each file of ``node`` that cannot be used on its host."""
    read, write = os.R_OK, os.R_OK | os.W_OK
    guest, own = spec.guest_on(node), spec.nodes[node]
    wanted = [
        (f"node.{node}.{name}" if getattr(own, name) else f"guest.{name}", path, read)
        for name, path in (("kernel", guest.kernel), ("initrd", guest.initrd))
    ]
    wanted += [
        (f"disk[{i}].image.{node}", disk.image[node], write) for i, disk in enumerate(spec.disks)
    ]
    for key, path, mode in wanted:
        if path is not None and (why := await host.usable(path, mode)):
            machine = host.machine.name
            if key.startswith("disk[") and why == os.strerror(errno.ENOENT):
                continue  # it is made there, see `colo.first_copy`
            hint = f"write the path as it is on {machine}, or put the file there"
            if why == os.strerror(errno.EROFS):
                hint = f"`mount -o remount,rw` its filesystem on {machine}, or name another place"
            yield SpecError(key, f"{path} on {machine} cannot be used: {why}.", hint=hint)


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


def require_equal(
    spec: PairSpec, binaries: Mapping[NodeName, Binary], machines: Mapping[NodeName, Machine]
) -> None:
    """Require that both nodes' QEMUs can be one pair; raises `UnsupportedQEMU`, naming both.

    COLO holds between equal versions only (docs/qemu.md); the patches of a distribution may differ.
    An alias such as ``pc`` has to be the same machine type for both: the state of the guest's
    devices is written by one QEMU and read by the other. So are the commands and devices that
    each build has: both QEMUs are given the same.
    """
    a, b = (binaries[node] for node in NODES)
    where = partial(_where, binaries, machines)
    if a.release != b.release:
        raise UnsupportedQEMU(
            f"Node {where('b')} has QEMU {b.version} and node {where('a')} has "
            f"{a.version}: both need the same version.",
            hint="install one version on both, or name it by node.a.qemu and node.b.qemu",
        )
    if differ := [
        one.name
        for one in fields(Dialect)
        if one.name != "version" and getattr(a.dialect, one.name) != getattr(b.dialect, one.name)
    ]:
        raise UnsupportedQEMU(
            f"Node {where('b')} and node {where('a')} have builds of QEMU {a.release} that differ "
            f"in {', '.join(differ)}.",
            hint="install the same build on both",
        )
    wanted = spec.guest.machine
    types = {node: binaries[node].machines.get(wanted, wanted) for node in NODES}
    if types["a"] != types["b"]:
        raise UnsupportedQEMU(
            f"The machine type {wanted} is {types['b']} for node {where('b')} and "
            f"{types['a']} for node {where('a')}.",
            hint=f'set guest.machine = "{min(types.values())}" if both know it',
        )


def _where(
    binaries: Mapping[NodeName, Binary], machines: Mapping[NodeName, Machine], node: NodeName
) -> str:
    """Name a node by what makes it another than its peer: its machine, or the path of its QEMU."""
    if one_machine(machines["a"], machines["b"]):
        return f"{node} ({binaries[node].path})"
    return f"{node} on {machines[node].name}"


async def require_same_binary(ground: Ground) -> None:
    """Require that each binary on disk is the version in which the guest runs.

    A package that was renewed meanwhile would make a secondary of another version, and COLO holds
    between equal versions only (docs/qemu.md). Raises `UnsupportedQEMU`.
    """
    one = ground.facts.one_machine
    alike = one and ground.node("a").binary.path == ground.node("b").binary.path
    for node in NODES[:1] if alike else NODES:
        began, machine = ground.node(node).binary, ground.node(node).machine
        now = await inspect(began.path, ground.hosts[node])
        if now.version != began.version:
            there = "" if one or machine is None else f" on {machine.name}"
            raise UnsupportedQEMU(
                f"{now.path}{there} is {now.version} now, and the guest runs in {began.version}: "
                "both nodes need the same version.",
                hint="stop and start the pair for the new version, or bring the old one back",
            )


async def accelerator(host: Host, binary: Path, wanted: str) -> str:
    """Return ``wanted``, or for ``auto`` what was measured since the machine of ``host`` booted.

    Raises `UnsupportedQEMU` for KVM where that machine has none, and `PreconditionFailed` where the
    program that measures it does not answer.
    """
    if wanted == "kvm" and (why := await host.usable(KVM_DEVICE, os.R_OK | os.W_OK)):
        raise UnsupportedQEMU(
            f"{KVM_DEVICE} on {host.machine.name} cannot be used, and guest.accel is kvm: {why}.",
            hint='guest.accel = "auto" takes KVM where both machines have it',
        )
    if wanted != "auto":
        return wanted
    key = await cache_key(host, binary, "auto", "accel")
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
    async with host.workspace("coloctl-loop-") as folder:
        argv = [*host.machine.programs, "coloctl.machine.accel", str(binary), wanted, str(folder)]
        done = await host.run(argv, deadline_s=PROVE_DEADLINE_S)
    try:
        return revive(kind, json.loads(done.stdout))
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it printed no answer"])[-1]
        raise PreconditionFailed(
            f"No accelerator could be measured with {binary} on {host.machine.name}: {last}.",
            hint='guest.accel = "tcg" or "kvm" needs no measurement',
        ) from None


async def find_qemu(spec: PairSpec, host: Host, node: NodeName) -> Path:
    """Return the QEMU that the pair file names for ``node``; a bare name is looked for on its PATH.

    Where it names none, the one that the list of machines has for that machine counts.

    Raises `UnsupportedQEMU`.
    """
    named = spec.guest_on(node).qemu
    if named is None and not spec.nodes[node].host.startswith("netns:"):
        named = hostlist.qemu_at(spec.nodes[node].host)
    if named is not None and named.is_absolute():
        return named
    wanted = str(named or "qemu-system-x86_64")
    if found := await host.which(wanted):
        return found
    there = f" of {host.machine.name}" if spec.nodes[node].machine else ""
    raise UnsupportedQEMU(
        f"There is no {wanted} on PATH{there}.",
        hint="install qemu-system-x86, or `coloctl lab qemu` and set guest.qemu",
    )


async def qemu_img(host: Host, binary: Path) -> Path:
    """Find the ``qemu-img`` of the same build as ``binary`` on its host, else the one on PATH."""
    beside = binary.with_name(QEMU_IMG.name)
    return QEMU_IMG if await host.usable(beside, os.F_OK) else beside
