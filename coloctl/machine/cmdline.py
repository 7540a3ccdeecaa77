"""Build the whole command line of one QEMU of a pair; pure.

Called by `colo.launch` for each QEMU that is started, and by `check.command` for one that is only
tried. Both sides describe the same machine. The disk graph and the filters differ, and a secondary
waits for a migration. Order matters in two places: a chardev's server stands before its client, and
``-netdev`` before the filters on it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coloctl import paths
from coloctl.machine import blockdev, chardev, device, freshcode, netfilter
from coloctl.machine import tls as encryption
from coloctl.machine.option import json_option, keyval
from coloctl.model.dialect import Dialect
from coloctl.model.launch import Account, Launch, TapEnd, Unit
from coloctl.model.pair import GuestSpec, NicSpec, NodeName, PairSpec
from coloctl.model.tls import TlsWire

#: The system calls that a QEMU of another user is refused: old ones, and those by which it would
#: become another user, start a program or change its own scheduling. It gets no_new_privs with it.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

#: Names of the two monitors, in `Launch.sockets` and inside ``{fd:NAME}``.
MONITORS = ("qmp", "rescue")


def primary(
    spec: PairSpec,
    node: NodeName,
    dialect: Dialect,
    *,
    binary: Path,
    accel: str,
    rundir: Path,
    paused: bool,
    plugin: Path | None = None,
    devices: Collection[Path] = (),
    scratch: Sequence[Path] = (),
    tls: TlsWire | None = None,
    account: Account | None = None,
) -> Launch:
    """Build the command line of a QEMU that serves alone and can become a primary later.

    Its filters exist and are off. ``paused``: the guest waits for ``cont`` or for COLO. ``plugin``
    is the fresh-code plugin, where it is to be loaded. ``devices`` are the images that were found
    to be block devices. ``scratch``, an empty qcow2 per disk, takes what would be written to the
    images: those are only read then. ``tls`` is that of ``node`` where the pair is encrypted, and
    ``account`` the user as which QEMU runs, where that is not coloctl's own.
    """
    chardevs = [
        one
        for i, _ in enumerate(spec.nics)
        for one in chardev.primary(spec, i, node, rundir, tls=tls)
    ]
    filters = [
        one
        for i, _ in enumerate(spec.nics)
        for one in netfilter.primary_filters(spec, i, status=False)
    ]
    nodes = [
        one
        for i, disk in enumerate(spec.disks)
        for one in (
            blockdev.scratch_primary_nodes(disk, i, disk.image[node], scratch[i])
            if scratch
            else blockdev.primary_nodes(disk, i, disk.image[node], devices)
        )
    ]
    tail = ("-S",) if paused else ()
    return _launch(
        spec,
        node,
        dialect,
        binary=binary,
        accel=accel,
        rundir=rundir,
        chardevs=chardevs,
        filters=filters,
        nodes=nodes,
        tail=tail,
        plugin=plugin,
        tls=tls,
        account=account,
        owned=tuple(disk.image[node] for disk in spec.disks),
    )


def secondary(
    spec: PairSpec,
    node: NodeName,
    dialect: Dialect,
    *,
    binary: Path,
    accel: str,
    rundir: Path,
    overlays: Sequence[blockdev.Overlay],
    plugin: Path | None = None,
    devices: Collection[Path] = (),
    scratch: Sequence[Path] = (),
    close_marker: Path | None = None,
    tls: TlsWire | None = None,
    account: Account | None = None,
) -> Launch:
    """Build the command line of a QEMU that waits until it learns from where its guest comes.

    ``overlays`` has one item per disk, empty and of the disk's size; ``close_marker`` is the file
    that `blockdev.close_marker` names. Incoming is deferred because capabilities must be set before
    the stream is accepted. ``devices``, ``scratch``, ``tls`` and ``account`` as for `primary`.
    """
    chardevs = [
        one
        for i, _ in enumerate(spec.nics)
        for one in chardev.secondary(spec, i, node, rundir, dialect, tls=tls)
    ]
    filters = [one for i, _ in enumerate(spec.nics) for one in netfilter.secondary_filters(spec, i)]
    nodes = [
        one
        for i, (disk, over) in enumerate(zip(spec.disks, overlays, strict=True))
        for one in (
            blockdev.scratch_secondary_nodes(disk, i, disk.image[node], scratch[i], over)
            if scratch
            else blockdev.secondary_nodes(disk, i, disk.image[node], over, devices)
        )
    ]
    if close_marker is not None:
        nodes.append(blockdev.close_marker_node(close_marker))
    tail = ("-incoming", "defer")
    return _launch(
        spec,
        node,
        dialect,
        binary=binary,
        accel=accel,
        rundir=rundir,
        chardevs=chardevs,
        filters=filters,
        nodes=nodes,
        tail=tail,
        plugin=plugin,
        tls=tls,
        account=account,
        owned=_written(spec, node, overlays, close_marker),
    )


def _launch(
    spec: PairSpec,
    node: NodeName,
    dialect: Dialect,
    *,
    binary: Path,
    accel: str,
    rundir: Path,
    chardevs: Iterable[chardev.SocketChardev],
    filters: Iterable[Mapping[str, Any]],
    nodes: Iterable[Mapping[str, Any]],
    tail: tuple[str, ...],
    plugin: Path | None,
    tls: TlsWire | None,
    account: Account | None,
    owned: tuple[Path, ...],
) -> Launch:
    before = (
        str(binary),
        *_identity(spec, node),
        *(("-sandbox", SANDBOX) if account else ()),
        *_board(spec.guest, accel),
        *freshcode.arguments(plugin),
        *_console(rundir),
        *(_agent(rundir) if spec.guest.agent else ()),
    )
    monitors = _monitors()
    taps = _tap_ends(spec, node) if account else {}
    argv = (
        *before,
        *monitors,
        *_each("-object", map(json_option, encryption.objects(tls) if tls else ())),
        *_each("-chardev", (one.option() for one in chardevs)),
        *_each("-netdev", (json_option(netdev(nic, node, opened=bool(taps))) for nic in spec.nics)),
        *_each("-object", map(json_option, filters)),
        *_each("-blockdev", map(json_option, nodes)),
        *_each("-device", map(json_option, device.devices(spec, pvpanic=dialect.pvpanic))),
        *_boot(spec.guest_on(node)),
        *tail,
        # Last, so that their devices take what PCI slots are left and never those of ours.
        *spec.guest.extra_args,
    )
    images = tuple(disk.image[node] for disk in spec.disks)
    numbered = {len(before) + i for i, word in enumerate(monitors) if "{fd:" in word}
    if taps:
        numbered |= {i + 1 for i, word in enumerate(argv) if word == "-netdev"}
    guest = spec.guest_on(node)
    reads = (binary, *(one for one in (guest.kernel, guest.initrd, plugin) if one is not None))
    return Launch(
        argv,
        monitor_sockets(rundir),
        images,
        frozenset(numbered),
        account=account,
        owned=owned if account else (),
        reads=reads if account else (),
        taps=taps,
        unit=Unit.of_node(spec.name, node, spec.guest.memory_max_mib),
    )


def _written(
    spec: PairSpec, node: NodeName, overlays: Sequence[blockdev.Overlay], marker: Path | None
) -> tuple[Path, ...]:
    """Return every file that the QEMU of a secondary writes to."""
    found = [disk.image[node] for disk in spec.disks]
    found += [path for over in overlays for path in (over.active, over.hidden)]
    return (*found, *([marker, blockdev.merge_log(marker)] if marker else []))


def _tap_ends(spec: PairSpec, node: NodeName) -> dict[str, TapEnd]:
    """Return the taps of ``node`` by the names that stand for their descriptors."""
    return {
        f"tap-{nic.id}": TapEnd(nic.tap.ifname[node], netfilter.has_vnet_header(nic))
        for nic in spec.nics
        if nic.tap is not None
    }


def monitor_sockets(rundir: Path) -> dict[str, Path]:
    """Return the paths of the monitors of the QEMU of ``rundir``, by name."""
    return {name: paths.check_socket_path(rundir / f"{name}.sock") for name in MONITORS}


def _identity(spec: PairSpec, node: NodeName) -> tuple[str, ...]:
    return (
        "-name",
        keyval(guest=spec.name, process=f"{spec.name}-{node}"),
        # Trace output and warnings have no time of their own otherwise.
        "-msg",
        keyval(timestamp=True),
    )


def _board(guest: GuestSpec, accel: str) -> tuple[str, ...]:
    return (
        # Nothing that this file does not name: both sides must be the same machine.
        "-no-user-config",
        "-nodefaults",
        "-machine",
        guest.machine,
        "-accel",
        accel,
        "-cpu",
        guest.cpu or default_cpu(accel),
        "-m",
        f"{guest.memory_mib}M",
        "-smp",
        str(guest.cpus),
        "-display",
        "none",
        "-vga",
        "none",
        # What follows is for coloctl to decide: QEMU would end both sides, or stop them, and a
        # secondary that is stopped for a panic ends at the next checkpoint (docs/qemu.md).
        "-action",
        keyval(panic="none"),
    )


def default_cpu(accel: str) -> str:
    """Return the model of QEMU's COLO document: the same on hosts whose CPUs differ."""
    return "qemu64,kvmclock=on" if accel == "kvm" else "qemu64"


def _console(rundir: Path) -> tuple[str, ...]:
    return ("-chardev", console_option(rundir), "-serial", "chardev:console0")


def console_option(rundir: Path) -> str:
    """Return the word by which the QEMU of ``rundir`` is recognized among all others."""
    return keyval("file", id="console0", path=str(rundir / "console.log"), append=True)


def agent_socket(rundir: Path) -> Path:
    """Return the path of the guest agent's socket, for use while the guest serves."""
    return paths.check_socket_path(rundir / "agent.sock")


def _agent(rundir: Path) -> tuple[str, ...]:
    """Build the agent's chardev; a secondary has one of its own, to which no client connects."""
    address = str(agent_socket(rundir))
    option = keyval("socket", id=device.AGENT_CHARDEV, path=address, server=True, wait=False)
    return ("-chardev", option)


def _monitors() -> tuple[str, ...]:
    """Build both monitors.

    Commands go over one socket; the other stays free for out-of-band commands when that one hangs.
    """
    return tuple(
        word
        for name in MONITORS
        for word in (
            "-chardev",
            f"socket,id={name}0,fd={{fd:{name}}},server=on,wait=off",
            # Not ``-mon``: QEMU 11 warns of it, and its successor is unknown to older ones.
            "-qmp",
            f"chardev:{name}0",
        )
    )


def netdev(nic: NicSpec, node: NodeName, *, opened: bool = False) -> dict[str, Any]:
    """Build the host's end of a NIC.

    vhost would carry frames past the filters. A NIC without a tap gets an isolated user-mode
    network that never speaks first, which needs no right on the host. ``opened``: QEMU gets a
    descriptor of the tap, which shows by itself whether frames have a header.
    """
    if nic.tap is None:
        return {"type": "user", "id": nic.id, "restrict": True, "ipv6": False}
    if opened:
        return {"type": "tap", "id": nic.id, "fd": f"{{fd:tap-{nic.id}}}", "vhost": False}
    return {
        "type": "tap",
        "id": nic.id,
        "ifname": nic.tap.ifname[node],
        "script": "no",
        "downscript": "no",
        "vhost": False,
        "vnet_hdr": netfilter.has_vnet_header(nic),
    }


def _boot(guest: GuestSpec) -> tuple[str, ...]:
    if guest.kernel is None:
        return ()
    initrd = ("-initrd", str(guest.initrd)) if guest.initrd else ()
    append = ("-append", guest.append) if guest.append else ()
    return ("-kernel", str(guest.kernel), *initrd, *append)


def _each(option: str, values: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for value in values for word in (option, value))
