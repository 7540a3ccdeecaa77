"""Merges that take long or fail: filters below a secondary's image, and overlays that are full."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from support.pairs import Stage, between_checkpoints, guest_writes, qemu_io

from coloctl.errors import OutcomeUnknown
from coloctl.lab import qemu
from coloctl.model.pair import PairSpec
from coloctl.model.units import MIB
from coloctl.qmp import command as qmp
from coloctl.qmp.command import Command
from coloctl.qmp.monitor import Monitor
from coloctl.vm import VM

#: Places that hold a byte of their own each, in the overlays of a secondary only.
PLACES = 8
#: Half of the distance between two of them is written, so that some clusters stay the image's.
STRIDE = 2 * MIB


async def ask(vm: VM, execute: str, **arguments: Any) -> Any:
    """What QEMU answers; _ in argument names stands for a dash."""
    given = {name.replace("_", "-"): value for name, value in arguments.items()}
    return await vm.execute(Command(execute, given))


async def power_off(vm: VM) -> None:
    """Let the guest power itself off: SLP_EN in PM1a_CNT, where SeaBIOS has put it.

    QEMU may be gone before its answer has left.
    """
    with contextlib.suppress(OutcomeUnknown):
        await ask(vm, "human-monitor-command", command_line="o/h 0x604 0x2000")


async def _file_of(vm: VM, parent: str) -> str:
    """Find the node that ``parent`` reads and writes."""
    graph = await ask(vm, "x-debug-query-block-graph")
    names = {one["id"]: one["name"] for one in graph["nodes"]}
    (file,) = (
        names[edge["child"]]
        for edge in graph["edges"]
        if names[edge["parent"]] == parent and edge["name"] == "file"
    )
    return str(file)


async def _put_below(vm: VM, spec: PairSpec, node: Mapping[str, Any], disk: int = 0) -> None:
    """The filter is between the image's format node and its file."""
    door = f"door{disk}"
    file = await _file_of(vm, f"parent{disk}")
    await ask(vm, "blockdev-add", driver="raw", node_name=door, file=file)
    image_format = spec.disks[disk].format
    options = {"driver": image_format, "node-name": f"parent{disk}", "file": door}
    await ask(vm, "blockdev-reopen", options=[options])
    below = {key: file if value is None else value for key, value in node.items()}
    await ask(vm, "blockdev-add", **below)
    # A format node that has to write first could not be reopened onto a filter that fails.
    await ask(
        vm,
        "blockdev-reopen",
        options=[{"driver": "raw", "node-name": door, "file": node["node_name"]}],
    )


async def slow(vm: VM, spec: PairSpec, bytes_per_s: int, what: str = "write") -> None:
    """Let the image take, or ``what="read"`` give, that many bytes per second from now on."""
    limits = {f"bps-{what}": bytes_per_s}
    await ask(vm, "object-add", qom_type="throttle-group", id="slow", limits=limits)
    node = {"driver": "throttle", "node_name": "slowed", "throttle_group": "slow", "file": None}
    await _put_below(vm, spec, node)


async def hold(vm: VM, spec: PairSpec, writes: int, size: int) -> None:
    """Let the image take that many writes of ``size`` bytes, and no other before `release`.

    A throttle's bucket holds what passes at once, and takes a write as long as it is not full. At
    one byte per second a piece of a mebibyte more has to wait for twelve days.
    """
    limits = {"bps-write": 1, "bps-write-max": (writes - 1) * size}
    await ask(vm, "object-add", qom_type="throttle-group", id="hold", limits=limits)
    node = {"driver": "throttle", "node_name": "held", "throttle_group": "hold", "file": None}
    await _put_below(vm, spec, node)


async def release(vm: VM, bytes_per_s: int = 0) -> None:
    """Let the image take that many bytes per second from now on; 0: as fast as before `hold`.

    A new limit leaves the timers of waiting writes alone. A reopened node has none: all writes that
    wait pass at once, and those behind them at the new rate.
    """
    limits = {"bps-write": bytes_per_s}
    await ask(vm, "object-add", qom_type="throttle-group", id="flow", limits=limits)
    options = {
        "driver": "throttle",
        "node-name": "held",
        "throttle-group": "flow",
        "file": await _file_of(vm, "held"),
    }
    await ask(vm, "blockdev-reopen", options=[options])


async def refuse_writes(vm: VM, spec: PairSpec, errno: int, disk: int = 0) -> None:
    """The image fails every write from now on."""
    rules = [
        {"event": "none", "iotype": kind, "errno": errno, "once": False}
        for kind in ("write", "write-zeroes", "discard")
    ]
    node = {"driver": "blkdebug", "node_name": "failing", "image": None, "inject_error": rules}
    await _put_below(vm, spec, node, disk)


async def fill(vm: VM) -> None:
    """The guest of a secondary has written to `PLACES` places since its last checkpoint."""
    for place in range(PLACES):
        said = await qemu_io(vm, f"write -P {place + 1} {place * STRIDE} {STRIDE // 2}")
        assert f"wrote {STRIDE // 2}/{STRIDE // 2}" in said


async def lose_primary(stage: Stage, bytes_per_s: int = 0) -> VM:
    """The primary is dead, its secondary has full overlays; answers that one.

    Its image takes that many bytes per second; 0: one of the `PLACES`, the others at `release`.
    """
    survivor, spec = stage.secondary, stage.state.spec
    if bytes_per_s:
        await slow(survivor, spec, bytes_per_s)
    else:
        await hold(survivor, spec, 1, STRIDE // 2)
    async with between_checkpoints(stage.primary):  # the next one empties them
        await fill(survivor)
        stage.primary.process.signal(signal.SIGKILL)
    return survivor


def _places(spec: PairSpec, number: int) -> list[int]:
    """Where a record lies: over what an overlay holds, and in a raw image beside it.

    A qcow2 image that is busy with its own metadata lets nobody read what an overlay lacks, so a
    guest's write beside it is not acknowledged before the merge is nearly over.
    """
    halves = (0, MIB) if spec.disks[0].format == "raw" else (0,)
    return [(number % PLACES) * STRIDE + half + number * 4096 for half in halves]


async def acknowledge(vm: VM, spec: PairSpec, number: int) -> None:
    """The promoted guest has written a record and was told so."""
    for at in _places(spec, number):
        await guest_writes(vm, 0x40 + number, at, 4096)


def missing(build: qemu.Build, spec: PairSpec, image: Path, acknowledged: int) -> list[str]:
    """What the image of a pair that is down does not hold, of all that was acknowledged."""
    lost = []
    for number in range(acknowledged):
        for at in _places(spec, number):
            if not _holds(build, spec, image, (0x40 + number, at)):
                lost.append(f"record {number} at {at}")
    for place in range(PLACES):  # behind the last record of each
        at = place * STRIDE + STRIDE // 4
        if not _holds(build, spec, image, (place + 1, at)):
            lost.append(f"place {place} at {at}")
    return lost


def _holds(build: qemu.Build, spec: PairSpec, image: Path, what: tuple[int, int]) -> bool:
    """4096 bytes are all that byte, from that offset on."""
    (byte, offset), length = what, 4096
    words = f"read -P {byte} {offset} {length}"
    argv = [
        build.img.with_name("qemu-io"),
        "-f",
        spec.disks[0].format,
        "-r",
        "-U",
        "-c",
        words,
        image,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert f"read {length}/{length}" in done.stdout, done.stdout + done.stderr
    return "verification failed" not in done.stdout


def info(build: qemu.Build, path: Path) -> dict[str, Any]:
    """What qemu-img says of an image that may be in use."""
    argv = [build.img, "info", "-U", "--output=json", path]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def until_nodes_gone(monitor: Monitor, nodes: Collection[str], deadline_s: float) -> None:
    """Wait until none of these block nodes is in the graph any more.

    That is how the end of the commit on a promoted secondary shows: it is an internal job that no
    query lists and no event announces.
    """
    async with asyncio.timeout(deadline_s):
        while True:
            listed = await monitor.execute(qmp.query_named_block_nodes(), deadline_s)
            if not set(nodes) & {node.get("node-name") for node in listed}:
                return
            await asyncio.sleep(0.02)
