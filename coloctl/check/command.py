"""Start a pair's own command lines once, ask the QEMUs what they hold, and end them.

Called by `check.doctor`; builds the commands with `machine.cmdline` and asks through `asked`. What
QEMU refuses, a start would meet: a device model or a CPU model that it does not know, an image that
is not what the pair file says, a device that cannot be replicated. No list of words can know that.

Each QEMU runs as the user that a start would take, with its sandbox.

Invariant: the guest executes no instruction (``-S``, ``-incoming defer``), the images are only
read, and every process, socket and file is gone afterwards. An image that was lent to that user is
given back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from coloctl.asked import LAUNCH_DEADLINE_S
from coloctl.check.finding import Precondition, Severity
from coloctl.colo import plugin, taps, tls
from coloctl.colo.coverage import require_covered
from coloctl.colo.ground import Ground
from coloctl.colo.refuse import REFUSED
from coloctl.errors import ColoctlError, LaunchError
from coloctl.machine import blockdev, cmdline, image
from coloctl.model.launch import Launch
from coloctl.model.pair import NODES, NodeName, PairSpec, Role, other
from coloctl.model.units import MIB
from coloctl.vm import VM

NAME = "command line"


@dataclass(frozen=True)
class StartedAs:
    """The pair, with the hosts, the QEMUs and the accelerator that a start would use."""

    spec: PairSpec
    ground: Ground
    blank: frozenset[str] = frozenset()  #: ids of disks that cannot be used: an empty one stands in


#: Findings after which no command line is worth a try: it would fail for the same reason.
_IN_THE_WAY = frozenset(
    {
        "binary",
        "versions",
        "user",
        "state",
        "ports",
        "replication link",
        "encryption",
        "processor",
        *REFUSED,
    }
)


def startable(
    spec: PairSpec, findings: Sequence[Precondition]
) -> tuple[PairSpec, frozenset[str]] | None:
    """Reduce the pair to what can be started although ``findings`` were made; pure.

    Returns the pair without the files and taps that cannot be used, and the ids of the disks that
    an empty one must stand in for; None where nothing can be started.
    """
    bad = {one.name for one in findings if one.severity in (Severity.WARNING, Severity.ERROR)} - {
        "memory",
        "room",
    }
    errors = {one.name for one in findings if one.severity is Severity.ERROR}
    if errors & _IN_THE_WAY:
        return None
    pair = spec
    if errors & _keys_of("kernel"):
        pair = _without_file(_without_file(pair, "kernel"), "initrd")
        pair = replace(pair, guest=replace(pair.guest, append=""))
    elif errors & _keys_of("initrd"):
        pair = _without_file(pair, "initrd")
    nics = tuple(replace(nic, tap=None) if f"nic {nic.id}" in errors else nic for nic in spec.nics)
    blank = {
        disk.id
        for i, disk in enumerate(spec.disks)
        if f"disk {disk.id}" in bad or any(name.startswith(f"disk[{i}].") for name in bad)
    }
    return replace(pair, nics=nics), frozenset(blank)


def _keys_of(name: str) -> set[str]:
    """Return the keys by which a pair file names the guest's file ``name``."""
    return {f"guest.{name}", *(f"node.{node}.{name}" for node in NODES)}


def _without_file(spec: PairSpec, name: str) -> PairSpec:
    """Return the pair whose guest has no kernel, or no initial ramdisk, on either node."""
    none: dict[str, Any] = {name: None}
    nodes = {node: replace(spec.nodes[node], **none) for node in NODES}
    return replace(spec, guest=replace(spec.guest, **none), nodes=nodes)


async def examine_command_lines(what: StartedAs) -> list[Precondition]:
    """Find what each node's QEMU reports about the pair's own command line, in either role.

    A node whose primary does not start is not tried as a secondary: it would report the same.
    """
    findings = []
    for node in NODES:
        findings += await _try_both(what, node)
    if not findings:
        sentence = "Both nodes start their QEMU as primary and as secondary, all of it replicable."
        return [Precondition(NAME, Severity.OK, sentence)]
    return _without_echo(findings)


async def _try_both(what: StartedAs, primary: NodeName) -> list[Precondition]:
    """Start the primary on that node and beside it the secondary on the other, as a pair stands.

    So a socket that both of them would open on one machine is found as well.
    """
    findings = []
    async with contextlib.AsyncExitStack() as running:
        for node, role in ((primary, Role.PRIMARY), (other(primary), Role.SECONDARY)):
            try:
                await running.enter_async_context(_started(what, node, role))
            except _Wrong as wrong:
                findings.append(wrong.finding)
                break
    return findings


class _Wrong(Exception):
    """A QEMU was not started, or holds what cannot be replicated."""

    def __init__(self, finding: Precondition) -> None:
        super().__init__(finding.sentence)
        self.finding = finding


def _without_echo(findings: list[Precondition]) -> list[Precondition]:
    """Drop the second node's finding where it differs from the first's in the node alone."""
    first, *more = findings
    return [first, *(one for one in more if _of_node_a(one) != first.sentence)]


def _of_node_a(finding: Precondition) -> str:
    """Replace node b by node a in a finding, as if node a had made it."""
    return finding.sentence.replace("node b", "node a")


@contextlib.asynccontextmanager
async def _started(what: StartedAs, node: NodeName, role: Role) -> AsyncIterator[None]:
    """Start one QEMU, ask it, and end it after the block; raises `_Wrong`."""
    host = what.ground.hosts[node]
    # TMPDIR may be a folder that no other user passes.
    place = "/tmp/" if what.ground.node(node).account else ""
    async with host.workspace(f"{place}coloctl-doctor-") as made, _with_taps(what, node):
        folder = made / node  # as in the pair's own folder: a wire on one host leads there
        await host.make_private(folder)
        try:
            launch = await _command(what, node, role, folder)
            vm = await VM.launch(node, host, launch, folder)
        except LaunchError as error:
            raise _Wrong(Precondition(NAME, Severity.ERROR, error.message, _hint(what))) from error
        except ColoctlError as error:
            raise _wrong(NAME, error) from error
        try:
            if role is Role.PRIMARY:
                try:
                    await require_covered(what.spec, vm)
                except ColoctlError as error:
                    raise _wrong("replicable", error) from error
            yield
        finally:
            with contextlib.suppress(ColoctlError):
                await vm.kill(LAUNCH_DEADLINE_S)
            with contextlib.suppress(ColoctlError):
                await host.sweep(folder)


@contextlib.asynccontextmanager
async def _with_taps(what: StartedAs, node: NodeName) -> AsyncIterator[None]:
    """Make the taps of the node that are coloctl's own, and remove them; raises `_Wrong`."""
    spec, host = what.spec, what.ground.hosts[node]
    try:
        try:
            await taps.make(spec, host, node, what.ground.node(node).account)
        except ColoctlError as error:
            raise _wrong(NAME, error) from error
        yield
    finally:
        await taps.remove_made(spec, host, node)


def _wrong(name: str, error: ColoctlError) -> _Wrong:
    return _Wrong(Precondition(name, Severity.ERROR, error.message, error.hint or ""))


def _hint(what: StartedAs) -> str:
    """Return the next thing to try with a QEMU that did not start."""
    dialogue = f"`coloctl start {what.spec.source or 'SPEC'} --dry-run` prints the command line"
    if not what.spec.guest.extra_args:
        return dialogue
    return f"{dialogue}; an address in guest.extra_args is opened by the QEMUs of both nodes"


async def _command(what: StartedAs, node: NodeName, role: Role, folder: Path) -> Launch:
    """Build the command line of a start, its images below empty overlays beside ``folder``.

    In the folder itself QEMU's user could put others in their place, so none is lent to it there.
    """
    spec, run = what.spec, what.ground.hosts[node].run
    facts = what.ground.node(node)
    binary, tool = facts.binary, facts.qemu_img
    over = blockdev.scratch_overlays(spec, folder.parent)
    scratch = [folder.parent / f"scratch{i}.qcow2" for i, _ in enumerate(spec.disks)]
    for i, disk in enumerate(spec.disks):
        if disk.id in what.blank:
            empty = folder.parent / f"blank{i}.qcow2"
            await image.create_overlay(empty, MIB, run, qemu_img=tool)
            disk = replace(disk, image=dict.fromkeys(NODES, empty), format="qcow2")  # noqa: PLW2901
            spec = replace(spec, disks=(*spec.disks[:i], disk, *spec.disks[i + 1 :]))
        size = await image.virtual_size(
            disk.image[node], run, image_format=disk.format, qemu_img=tool
        )
        files = [scratch[i], over[i].active, over[i].hidden]
        await asyncio.gather(
            *(image.create_overlay(path, size, run, qemu_img=tool) for path in files)
        )
    secured = await tls.placed(spec, what.ground.hosts, node, dict.fromkeys(NODES, folder))
    build = (
        partial(cmdline.primary, paused=True)
        if role is Role.PRIMARY
        else partial(cmdline.secondary, overlays=over)
    )
    launch = build(
        spec,
        node,
        binary.dialect,
        binary=binary.path,
        accel=what.ground.accel,
        rundir=folder,
        plugin=plugin.known(await plugin.renewed(what.ground, node), node),
        scratch=scratch,
        tls=secured.get(node),
        account=facts.account,
    )
    written = [path for path in scratch if facts.account and path not in launch.owned]
    return replace(launch, owned=(*launch.owned, *written), unit=None)
