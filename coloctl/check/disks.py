"""Examine the disks of a pair: there, equal in size, free, and equal in content already or not.

Called by `check.doctor`; asks `colo.generation` on whose disks a start would begin, and reads with
`machine.image`.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from coloctl.check.finding import Precondition, Severity, guarded
from coloctl.check.machine import COMMAND_DEADLINE_S
from coloctl.colo import first_copy, generation
from coloctl.colo.ground import one_machine
from coloctl.errors import DeadlineMissed, PreconditionFailed
from coloctl.host.base import Host
from coloctl.machine import image
from coloctl.model.pair import NODES, DiskSpec, NodeName, PairSpec, other
from coloctl.model.units import MIB

#: Bigger disks are not read to their end here; the start of the pair does it anyway.
COMPARE_DEADLINE_S = 20.0

Hosts = Mapping[NodeName, Host]
#: The ``qemu-img`` of each node.
Tools = Mapping[NodeName, Path]


async def examine_disks(spec: PairSpec, hosts: Hosts, tools: Tools) -> list[Precondition]:
    """Find all that is to report about the pair's disks."""
    findings = []
    for disk in spec.disks:
        findings += await guarded(f"disk {disk.id}", _disk(spec, disk, hosts, tools))
    if not spec.disks:
        findings.append(Precondition("disks", Severity.INFO, "The guest has no disk."))
    findings += await guarded("generation", _generation(spec, hosts))
    return findings


async def _generation(spec: PairSpec, hosts: Hosts) -> list[Precondition]:
    """Find whose disks a start would take; `PreconditionFailed` where it would be refused."""
    name = "generation"
    hint = "give the device a serial, or use LVM; `coloctl start SPEC --from NODE` after a boot"
    findings = [
        Precondition(name, Severity.WARNING, sentence, hint)
        for sentence in await generation.unstable(spec, hosts)
    ]
    known = await generation.read(spec, hosts)
    newest = generation.source(known)
    if any(one.written for one in known.values()):
        said = " ".join(one.sentence() for one in known.values() if one.written or one.doubt)
        sentence = f"{said} A start begins on node {newest}."
        findings.append(Precondition(name, Severity.OK, sentence))
    return findings


async def _disk(spec: PairSpec, disk: DiskSpec, hosts: Hosts, tools: Tools) -> list[Precondition]:
    name = f"disk {disk.id}"
    together = one_machine(hosts["a"].machine, hosts["b"].machine)
    if disk.image["a"] == disk.image["b"] and together:
        sentence = f"Both nodes would use the same file {disk.image['a']}."
        return [Precondition(name, Severity.ERROR, sentence, "give each node an image of its own")]
    absent = [node for node in NODES if await _to_be_made(spec, disk, hosts, node)]
    if len(absent) == 1:
        return [await _absent(disk, absent[0], hosts, tools)]
    found = {}
    for node in NODES:
        info = await image.info(
            disk.image[node], hosts[node].run, image_format=disk.format, qemu_img=tools[node]
        )
        found[node] = replace(info, machine="" if together else hosts[node].machine.name)
    image.require_equal_sizes(found["a"], found["b"])
    size = f"{found['a'].virtual_size / MIB:.0f} MiB on both nodes"
    findings = [Precondition(name, Severity.OK, f"{disk.format}, {size}.")]
    findings += [Precondition(name, Severity.ERROR, *why) for why in await _unwritable(disk, hosts)]
    for node in NODES:
        if await _open_to_all(hosts[node], disk.image[node]):
            sentence = f"Every user of {hosts[node].machine.name} can read {disk.image[node]}."
            hint = f"`chmod 600 {disk.image[node]}` there: it holds all that the guest has"
            # Under a name of its own: the disk can be used, and no empty one stands in for it.
            findings.append(Precondition(f"mode {disk.id}", Severity.WARNING, sentence, hint))
    busy = [node for node in NODES if await _in_use(disk, node, hosts, tools)]
    for node in busy:
        sentence = f"{disk.image[node]} on node {node} is in use by another program."
        hint = "a pair that runs already holds it; otherwise `fuser` on that file names the program"
        findings.append(Precondition(name, Severity.WARNING, sentence, hint))
    if not busy:
        findings.append(await _seeded(spec, disk, hosts, tools))
    return findings


async def _to_be_made(spec: PairSpec, disk: DiskSpec, hosts: Hosts, node: NodeName) -> bool:
    """Return whether the image is on another machine and not there; a device is never made."""
    path = disk.image[node]
    if not spec.nodes[node].machine or path.is_relative_to("/dev"):
        return False
    return not (await hosts[node].identify(path)).present


async def _absent(disk: DiskSpec, node: NodeName, hosts: Hosts, tools: Tools) -> Precondition:
    """Find whether the image that is not there can be made; raises `PreconditionFailed`."""
    path, guest = disk.image[node], other(node)
    info = await image.info(
        disk.image[guest], hosts[guest].run, image_format=disk.format, qemu_img=tools[guest]
    )
    await first_copy.require_new(hosts[node], path, disk.id, info.actual_size)
    sentence = (
        f"{path} is not there yet on {hosts[node].machine.name}: it is made when the pair is "
        f"started, and the disk of node {guest} is copied."
    )
    return Precondition(f"disk {disk.id}", Severity.INFO, sentence)


async def _unwritable(disk: DiskSpec, hosts: Hosts) -> list[tuple[str, str]]:
    """Return sentence and hint for each image that this user may not write."""
    wrong = []
    for node in NODES:
        path = disk.image[node]
        done = await hosts[node].run(["test", "-w", str(path)], deadline_s=COMMAND_DEADLINE_S)
        if done.code != 0:
            hint = "give the user that runs coloctl read and write permission"
            wrong.append((f"{path} on node {node} cannot be written.", hint))
    return wrong


async def _open_to_all(host: Host, path: Path) -> bool:
    """Return whether users without any right of their own can read the file or device."""
    argv = ["stat", "-L", "-c", "%a", "--", str(path), *map(str, path.parents)]
    done = await host.run(argv, deadline_s=COMMAND_DEADLINE_S)
    modes = [int(line, 8) for line in done.stdout.split() if line.isdecimal()]
    if done.code != 0 or not modes:
        return False
    return bool(modes[0] & stat.S_IROTH) and all(mode & stat.S_IXOTH for mode in modes[1:])


async def _in_use(disk: DiskSpec, node: NodeName, hosts: Hosts, tools: Tools) -> bool:
    """Return whether another QEMU holds the image's lock: without ``-U``, qemu-img respects it."""
    argv = [str(tools[node]), "info", "-f", disk.format, str(disk.image[node])]
    done = await hosts[node].run(argv, deadline_s=COMMAND_DEADLINE_S)
    return done.code != 0 and "lock" in done.stderr


async def _seeded(spec: PairSpec, disk: DiskSpec, hosts: Hosts, tools: Tools) -> Precondition:
    name = f"disk {disk.id}"
    if not one_machine(hosts["a"].machine, hosts["b"].machine):
        sentence = "Whether both machines hold the same is found out when the pair is protected."
        return Precondition(name, Severity.INFO, sentence)
    try:
        equal = await image.same_content(
            disk.image["a"],
            disk.image["b"],
            disk.format,
            hosts["a"].run,
            qemu_img=tools["a"],
            deadline_s=COMPARE_DEADLINE_S,
        )
    except DeadlineMissed:
        sentence = (
            f"Comparing the contents takes longer than {COMPARE_DEADLINE_S:.0f} s and was left out."
        )
        return Precondition(name, Severity.INFO, sentence)
    except PreconditionFailed as error:
        return Precondition(name, Severity.WARNING, error.message, error.hint or "")
    if equal:
        return Precondition(name, Severity.OK, "Both nodes hold the same: no copy is needed.")
    try:
        newest = generation.source(await generation.read(spec, hosts))
    except PreconditionFailed:  # reported as a finding of its own
        return Precondition(name, Severity.INFO, "The contents of both nodes differ.")
    sentence = (
        f"The contents differ: node {newest}'s are copied to node {other(newest)} before the pair "
        "is protected."
    )
    return Precondition(name, Severity.INFO, sentence)
