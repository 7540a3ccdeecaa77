"""Find out with which QEMU, tools and accelerator each node of a pair runs, and compare the two.

Called by `cli.verbs.start` before a start, by `control.daemon.serve` and by `check.doctor`; asks
`vm` for a binary, a program beside it for the accelerator (`machine.accel`) and `host` for the
images.

What does not depend on another answer is asked at once, of both machines: over ssh each question
that waits for another's answer costs a round trip.

Invariant: a pair begins only where both nodes' QEMUs can be one pair (`colo.equal_builds`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from coloctl import hostlist, paths, probe_cache
from coloctl.colo import accounts, cpu_models, plugin
from coloctl.colo.equal_builds import require_equal
from coloctl.colo.ground import Facts, Ground, NodeFacts, close, is_here, one_machine, open_hosts
from coloctl.colo.refuse import refuse
from coloctl.errors import PreconditionFailed, SpecError, UnsupportedQEMU
from coloctl.host.base import Host
from coloctl.host.records import Machine
from coloctl.machine.accel import KVM_DEVICE, PROVE_DEADLINE_S, KvmTrial, Measurement
from coloctl.machine.image import QEMU_IMG
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.model.revive import revive
from coloctl.tasks import side_by_side
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
    await _on_each(hosts, partial(require_files, spec))
    paths_of = await _on_each(hosts, partial(find_qemu, spec))
    alike = one_machine(machines["a"], machines["b"]) and paths_of["a"] == paths_of["b"]

    async def inspected(host: Host, node: NodeName) -> Binary:
        return await inspect(paths_of[node], host)

    async def accelerated(host: Host, node: NodeName) -> str:
        return await accelerator(host, paths_of[node], spec.guest.accel)

    binaries = await _on_each(hosts, inspected, alike=alike)
    require_equal(spec, binaries, machines)
    accels = await _on_each(hosts, accelerated, alike=alike)
    accel = effective(accels)
    await cpu_models.require_model(spec, hosts, paths_of, accel)
    for node in NODES:
        refuse(spec, binaries[node], accel)

    async def found(host: Host, node: NodeName) -> NodeFacts:
        binary = binaries[node]
        img, devices, account, freshener = await side_by_side(
            qemu_img(host, binary.path),
            _devices(spec, host, node),
            accounts.find(spec, host),
            _plugin(host, binary.path, accel),
        )
        return NodeFacts(binary, accels[node], img, devices, host.machine, freshener, account)

    return Facts(await _on_each(hosts, found), accel)


async def _on_each(
    hosts: Hosts, ask: Callable[[Host, NodeName], Awaitable[T]], *, alike: bool = False
) -> dict[NodeName, T]:
    """Ask both hosts at once; only that of node a where they are ``alike``."""
    asked = NODES[:1] if alike else NODES
    answers = await side_by_side(*(ask(hosts[node], node) for node in asked))
    return dict(zip(NODES, [*answers, *answers][: len(NODES)], strict=True))


async def _plugin(host: Host, binary: Path, accel: str) -> Path | None:
    """Find the plugin on another machine; on this one it is looked for at each launch."""
    if accel != "tcg" or is_here(host.machine):
        return None
    return await plugin.find(host, binary)


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
    found = [(key, path, mode) for key, path, mode in wanted if path is not None]
    answers = await side_by_side(*(host.usable(path, mode) for _, path, mode in found))
    for (key, path, _), why in zip(found, answers, strict=True):
        if why:
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

    async def device(path: Path) -> bool:
        with contextlib.suppress(PreconditionFailed):
            return (await host.identify(path)).device
        return False

    images = [disk.image[node] for disk in spec.disks]
    are = await side_by_side(*map(device, images))
    return frozenset(path for path, is_device in zip(images, are, strict=True) if is_device)


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
