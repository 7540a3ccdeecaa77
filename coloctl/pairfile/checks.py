"""Check one table of a pair file against another.

Called by `pairfile` after each table has been checked alone.

Invariant: none of the files that the pair names needs to exist; `pairfile.files` looks for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from coloctl.errors import SpecError
from coloctl.model.pair import NODES, FencingMethod, NodeName, PairSpec, other
from coloctl.model.units import OVERHEAD_MIB
from coloctl.pairfile.qemuargs import listening_sockets

#: Ports base_port + 10 * nic + {3, 4} must stay below base_port + 98 (migration).
_NICS_MAX = 10


def contradictions(spec: PairSpec) -> Iterator[SpecError]:
    """Find every pair of keys that cannot both hold; looks at nothing but ``spec``."""
    yield from _guest(spec)
    yield from _twice("disk", "id", [disk.id for disk in spec.disks])
    yield from _images(spec)
    yield from _twice("nic", "id", [nic.id for nic in spec.nics])
    yield from _twice("nic", "mac", [nic.mac for nic in spec.nics])
    yield from _taps(spec)
    yield from _nodes(spec)
    yield from _timing(spec)
    yield from _fencing(spec)
    yield from _shared_sockets(spec)
    yield from _tls(spec)
    yield from _memory(spec)


def _shared_sockets(spec: PairSpec) -> Iterator[SpecError]:
    """Find socket files that the QEMUs of both nodes would open on one machine."""
    if not spec.shares_machine():
        return
    for path in listening_sockets(spec.guest.extra_args):
        yield SpecError(
            "guest.extra_args",
            f"The QEMUs of both nodes would listen at {path}; the second takes it from the first.",
            hint="leave it out: the guest's console is in the pair's folder, and `coloctl qmp` "
            "talks to each QEMU",
        )


def _guest(spec: PairSpec) -> Iterator[SpecError]:
    guest = spec.guest
    if spec.guest_on("a").kernel is None and spec.guest_on("b").kernel is None:
        own = [(f"node.{node}.initrd", spec.nodes[node].initrd) for node in NODES]
        for key, value in (("guest.initrd", guest.initrd), ("guest.append", guest.append), *own):
            if value:
                yield SpecError(key, "This needs a kernel to go with.", hint="set guest.kernel")
        if not spec.disks:
            yield SpecError(
                "guest.kernel",
                "The guest has neither a kernel nor a disk to boot from.",
                hint="set guest.kernel, or add a [[disk]]",
            )
    for node in NODES:
        yield from _boots_alike(spec, node)


def _boots_alike(spec: PairSpec, node: NodeName) -> Iterator[SpecError]:
    """Find a kernel or initial ramdisk that only ``node`` would boot: both are one guest."""
    there = spec.guest_on(other(node))
    for name, needed in (("kernel", there.kernel), ("initrd", there.initrd)):
        if getattr(spec.nodes[node], name) and needed is None:
            yield SpecError(
                f"node.{node}.{name}",
                f"Node {other(node)} has no {name}, and both nodes boot the same guest.",
                hint=f"set guest.{name}, or node.{other(node)}.{name} too",
            )


def _twice(table: str, key: str, values: list[str]) -> Iterator[SpecError]:
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        if value in seen:
            yield SpecError(
                f"{table}[{index}].{key}",
                f'"{value}" is already the {key} of {table}[{seen[value]}].',
                hint=f"give every [[{table}]] its own {key}",
            )
        seen.setdefault(value, index)


def _images(spec: PairSpec) -> Iterator[SpecError]:
    """Find an image that is used twice on one machine."""
    seen: dict[tuple[str, str], str] = {}
    for index, disk in enumerate(spec.disks):
        for node in NODES:
            key, machine = f"disk[{index}].image.{node}", spec.nodes[node].machine
            image = (
                machine,
                str(disk.image[node]) if machine else os.path.realpath(disk.image[node]),
            )
            if image in seen:
                yield SpecError(
                    key,
                    f"{disk.image[node]} is already used as {seen[image]}.",
                    hint="both nodes share one machine's files, so every image needs its own copy",
                )
            seen.setdefault(image, key)


def _taps(spec: PairSpec) -> Iterator[SpecError]:
    if len(spec.nics) > _NICS_MAX:
        yield SpecError(
            "nic",
            f"{len(spec.nics)} network cards are more than the {_NICS_MAX} a pair has ports for.",
            hint="remove some",
        )
    seen: dict[tuple[str, str], str] = {}
    for index, nic in enumerate(spec.nics):
        if nic.tap is None or nic.tap.made:
            continue
        for node in NODES:
            name, key = nic.tap.ifname[node], f"nic[{index}].tap.{node}"
            place = (spec.nodes[node].host, name)
            if place in seen:
                yield SpecError(
                    key,
                    f'Tap "{name}" on host {place[0]} is already used as {seen[place]}.',
                    hint="one tap serves one QEMU",
                )
            seen.setdefault(place, key)


def _nodes(spec: PairSpec) -> Iterator[SpecError]:
    a, b = (spec.nodes[node] for node in NODES)
    first, second = ip_address(a.address), ip_address(b.address)
    if first == second:
        yield SpecError(
            "node.b.address",
            f"Node a has the address {a.address} too.",
            hint="each node needs an address of its own, also on one host",
        )
    if first.version != second.version:
        yield SpecError(
            "node.b.address",
            f"{b.address} and node a's {a.address} are of different IP versions.",
            hint="use two IPv4 or two IPv6 addresses",
        )
    if not spec.shares_host():
        for node in NODES:
            if ip_address(spec.nodes[node].address).is_loopback:
                yield SpecError(
                    f"node.{node}.address",
                    f"{spec.nodes[node].address} cannot be reached from the other host.",
                    hint="name the address of the replication link",
                )


def _timing(spec: PairSpec) -> Iterator[SpecError]:
    detection = spec.detection
    if detection.suspect_after_ms < 2 * detection.heartbeat_ms:
        yield SpecError(
            "detection.suspect_after_ms",
            f"{detection.suspect_after_ms} ms are less than two heartbeats of "
            f"{detection.heartbeat_ms} ms, so one late heartbeat would look like a loss.",
            hint=f"use {6 * detection.heartbeat_ms} or more",
        )
    checkpoint = spec.checkpoint
    if checkpoint.min_delay_ms > checkpoint.max_delay_ms:
        yield SpecError(
            "checkpoint.min_delay_ms",
            f"{checkpoint.min_delay_ms} ms are more than the {checkpoint.max_delay_ms} ms of "
            "checkpoint.max_delay_ms.",
            hint="adaptive mode chooses a delay between the two",
        )


def _fencing(spec: PairSpec) -> Iterator[SpecError]:
    needs = spec.fencing.method is FencingMethod.COMMAND
    if needs and not spec.fencing.command:
        yield SpecError(
            "fencing.command",
            "The method is command, and no command is given.",
            hint='write it like command = ["fence_ipmilan", "--ip", "..."]',
        )
    if spec.fencing.command and not needs:
        yield SpecError(
            "fencing.command",
            f"This command would never run, because the method is {spec.fencing.method.value}.",
            hint='set method = "command", or remove it',
        )
    if any(spec.fencing.options.values()) and not needs:
        yield SpecError(
            "fencing",
            "Options for a fence agent are given, and no agent would ever run, because the method "
            f"is {spec.fencing.method.value}.",
            hint='set method = "command" and a command, or remove them',
        )


def _memory(spec: PairSpec) -> Iterator[SpecError]:
    """Require of a limit that a secondary fits into it: its memory, and that of a checkpoint."""
    guest = spec.guest
    least = 2 * guest.memory_mib + OVERHEAD_MIB
    if guest.memory_max_mib is not None and guest.memory_max_mib < least:
        yield SpecError(
            "guest.memory_max",
            f"A QEMU of this pair may need {least} MiB, and would be ended at "
            f"{guest.memory_max_mib}.",
            hint=f'set it to "{least}MiB" or more, or leave it out',
        )


def _tls(spec: PairSpec) -> Iterator[SpecError]:
    """Find what keeps a wire of an encrypted pair from being encrypted."""
    tls = spec.tls
    for one, needed in (("cert", "key"), ("key", "cert")):
        if getattr(tls, one) and not getattr(tls, needed):
            yield SpecError(
                f"tls.{one}",
                f"It needs the {needed} that belongs to it.",
                hint=f"set tls.{needed}, or tls.folder instead of both",
            )
    if not spec.encrypted():
        return
    if spec.shares_host():
        yield SpecError(
            "tls.mode",
            "Both nodes are on one host: their QEMUs meet at unix sockets, and nothing that one "
            "sends to the other crosses a network.",
            hint='leave it out, or set mode = "off"',
        )
    if spec.replication.multifd_channels:
        yield SpecError(
            "replication.multifd_channels",
            "Further channels for the guest's memory have not been tried over TLS.",
            hint='set multifd_channels = 0, or [tls] mode = "off"',
        )


def relative_paths(document: Mapping[str, Any], spec: PairSpec) -> Iterator[SpecError]:
    """Find relative paths of a node on another machine: they begin at no folder of that machine.

    ``document`` is the file as it was read, because the paths of ``spec`` are all absolute.
    """
    for node in NODES:
        if not (machine := spec.nodes[node].machine):
            continue
        for key, written in _paths_of(document, node):
            if not Path(written).is_absolute():
                yield SpecError(
                    key,
                    f'Node {node} is on {machine}, where "{written}" begins at no known folder.',
                    hint="write the path as it is on that machine, beginning with /",
                )


def _paths_of(document: Mapping[str, Any], node: NodeName) -> Iterator[tuple[str, str]]:
    """Return key and text of each path that holds for ``node``."""
    own, guest = document["node"][node], document["guest"]
    for name in ("kernel", "initrd", "qemu"):
        table, key = (own, f"node.{node}") if own.get(name) else (guest, "guest")
        # A QEMU without a slash is a name that is looked up on PATH.
        if (written := table.get(name)) and (name != "qemu" or "/" in written):
            yield f"{key}.{name}", written
    for index, disk in enumerate(document.get("disk", ())):
        yield f"disk[{index}].image.{node}", disk["image"][node]
    if folder := document.get("replication", {}).get("overlay_dir"):
        yield "replication.overlay_dir", folder
    tls = document.get("tls", {})
    for name in ("folder", "ca", "cert", "key"):
        if written := tls.get(name):
            yield f"tls.{name}", written
    if folder := tls.get("folders", {}).get(node):
        yield f"tls.folders.{node}", folder
