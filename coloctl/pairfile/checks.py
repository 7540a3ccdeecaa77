"""Check one table of a pair file against another, and the whole file against the machine.

Called by `pairfile` after each table has been checked alone; asks `paths` how long a socket path
may be. Invariant: `contradictions` needs none of the files that ``spec`` names to exist.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from coloctl import paths
from coloctl.errors import PreconditionFailed, SpecError
from coloctl.model.pair import NODES, FencingMethod, PairSpec
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


def _shared_sockets(spec: PairSpec) -> Iterator[SpecError]:
    """Find socket files that the QEMUs of both nodes would open: today both are on this machine."""
    for path in listening_sockets(spec.guest.extra_args):
        yield SpecError(
            "guest.extra_args",
            f"The QEMUs of both nodes would listen at {path}; the second takes it from the first.",
            hint="leave it out: the guest's console is in the pair's folder, and `coloctl qmp` "
            "talks to each QEMU",
        )


def _guest(spec: PairSpec) -> Iterator[SpecError]:
    guest = spec.guest
    if guest.kernel is None:
        for key, value in (("initrd", guest.initrd), ("append", guest.append)):
            if value:
                yield SpecError(
                    f"guest.{key}", "This needs a kernel to go with.", hint="set guest.kernel"
                )
        if not spec.disks:
            yield SpecError(
                "guest.kernel",
                "The guest has neither a kernel nor a disk to boot from.",
                hint="set guest.kernel, or add a [[disk]]",
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
    """Find an image that is used twice: both kinds of host, local and netns, see the same files."""
    seen: dict[str, str] = {}
    for index, disk in enumerate(spec.disks):
        for node in NODES:
            key, image = f"disk[{index}].image.{node}", os.path.realpath(disk.image[node])
            if image in seen:
                yield SpecError(
                    key,
                    f"{disk.image[node]} is already used as {seen[image]}.",
                    hint="both nodes share this machine's files, so every image needs its own copy",
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
        if nic.tap is None:
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


def missing_files(spec: PairSpec) -> Iterator[SpecError]:
    """Find every named file that cannot be used, and a state folder too deep for sockets."""
    guest = spec.guest
    for key, path in (("guest.kernel", guest.kernel), ("guest.initrd", guest.initrd)):
        if path is not None:
            yield from _usable(key, path, os.R_OK)
    if guest.qemu is not None and guest.qemu.is_absolute():
        yield from _usable("guest.qemu", guest.qemu, os.X_OK)
    for index, disk in enumerate(spec.disks):
        for node in NODES:
            key = f"disk[{index}].image.{node}"
            yield from _usable(key, disk.image[node], os.R_OK | os.W_OK)
        yield from _hard_links(index, disk.image["a"], disk.image["b"])
    yield from _agent(spec)
    if spec.replication.overlay_dir is not None:
        yield from _writable_folder("replication.overlay_dir", spec.replication.overlay_dir)
    if spec.arbiter.path is not None:
        yield from _writable_folder("arbiter.path", spec.arbiter.path.parent)
    longest = paths.pair_dir(spec.name) / "a" / "compare_out-n9.sock"
    try:
        paths.check_socket_path(longest)
    except PreconditionFailed as error:
        yield SpecError("name", error.message, hint=error.hint)


def _agent(spec: PairSpec) -> Iterator[SpecError]:
    """Find a fence agent that cannot be run, before it is needed."""
    if not spec.fencing.command:
        return
    agent = spec.fencing.command[0]
    if "/" in agent:
        yield from _usable("fencing.command", Path(agent), os.X_OK)
    elif shutil.which(agent) is None:
        yield SpecError(
            "fencing.command",
            f"There is no program {agent} on PATH.",
            hint="install the package that has it (Debian: fence-agents), or give its path",
        )


def _writable_folder(key: str, folder: Path) -> Iterator[SpecError]:
    if not folder.is_dir():
        yield SpecError(key, f"There is no folder {folder}.", hint="make it, or name another")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield SpecError(key, f"{folder} cannot be written by you.", hint="change its permissions")


def _usable(key: str, path: Path, mode: int) -> Iterator[SpecError]:
    wanted = {os.R_OK: "read", os.X_OK: "executed", os.R_OK | os.W_OK: "read and written"}[mode]
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        relative = "relative paths begin at the pair file's folder"
        yield SpecError(key, f"There is no file {path}.", hint=relative)
        return
    except OSError as error:
        yield SpecError(key, f"{path} cannot be used: {error.strerror}.", hint="check the path")
        return
    if is_folder:
        yield SpecError(key, f"{path} is a folder.", hint="name a file")
    elif not os.access(path, mode):
        yield SpecError(key, f"{path} cannot be {wanted} by you.", hint="change its permissions")


def _hard_links(index: int, a: Path, b: Path) -> Iterator[SpecError]:
    try:
        same = a.samefile(b) and os.path.realpath(a) != os.path.realpath(b)
    except OSError:
        return  # each of the two has its own complaint already
    if same:
        yield SpecError(
            f"disk[{index}].image.b",
            f"{b} and {a} are two names of one file.",
            hint="every image needs its own copy",
        )
