"""Start a small real pair to try COLO on: firmware guests, this machine, a temporary folder.

Called by `check.trial_run`; launches through `colo.launch`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from coloctl.clock import Deadline
from coloctl.colo.ground import Ground
from coloctl.colo.launch import launch_primary, launch_secondary
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.machine import image
from coloctl.machine.option import keyval
from coloctl.model.pair import (
    NODES,
    CheckpointSpec,
    DiskSpec,
    GuestSpec,
    NicSpec,
    NodeName,
    NodeSpec,
    PairSpec,
    ReplicationSpec,
)
from coloctl.vm import VM

#: Enough for the firmware, and little to migrate.
MEMORY_MIB = 64
DISK_BYTES = 16 << 20

#: Checkpoint period, milliseconds: a trial takes many, so that a deadlock of chance shows itself.
DELAY_MS = 40

ADDRESSES: dict[NodeName, str] = {"a": "127.0.0.1", "b": "127.0.0.2"}

#: SeaBIOS's final output when no disk can be booted. It needs 0.2 s under TCG, and 3 s where KVM
#: emulates; a guest that is slower still is tried as far as it came.
FIRMWARE_DONE = b"No bootable device"
FIRMWARE_WAIT_S = 5.0

#: Below what Linux gives to clients (net.ipv4.ip_local_port_range begins at 32768).
PORTS = range(21000, 32000, 100)


async def free_base_port(host: Host) -> int:
    """Find a base port with all of the hundred ports from it free.

    Raises `PreconditionFailed` when there is none.
    """
    taken = {port for address in ADDRESSES.values() for port in await host.ports_in_use(address)}
    free = [base for base in PORTS if taken.isdisjoint(range(base, base + 100))]
    if not free:
        raise PreconditionFailed(
            f"No hundred ports in a row are free between {PORTS.start} and {PORTS.stop}."
        )
    # Two trials at a time rarely choose the same.
    return random.choice(free)


def small_pair(folder: Path, machine: str, accel: str, base_port: int) -> PairSpec:
    """Describe the pair; its disks lie in ``folder``."""
    return PairSpec(
        name="probe",
        guest=GuestSpec(
            memory_mib=MEMORY_MIB,
            machine=machine,
            accel=accel,
            extra_args=_firmware_console(folder),
        ),
        disks=(DiskSpec("disk0", {node: folder / f"{node}.qcow2" for node in NODES}),),
        nics=(NicSpec("hn0", "52:54:00:c0:10:01", tap=None),),
        nodes={node: NodeSpec(node, "local", ADDRESSES[node]) for node in NODES},
        replication=ReplicationSpec(base_port=base_port),
        checkpoint=CheckpointSpec(delay_ms=DELAY_MS),
    )


async def start(
    spec: PairSpec, ground: Ground, vms: list[VM], *, paused: bool, enter: Callable[[str], None]
) -> tuple[VM, VM]:
    """Start primary and secondary; each is put into ``vms`` as soon as it runs.

    ``paused``: the guest waits for COLO. Otherwise its firmware came to its end, or had its time.
    ``enter`` is called with each stage.
    """
    enter("launch")
    for disk in spec.disks:
        for node in NODES:
            run, img = ground.hosts[node].run, ground.node(node).qemu_img
            await image.create_overlay(disk.image[node], DISK_BYTES, run, qemu_img=img)
    primary = await launch_primary(spec, ground, "a", paused=paused, record=None)
    vms.append(primary)
    if not paused:
        enter("firmware")
        await _until_firmware_done(firmware_log(ground.folder))
    enter("launch secondary")
    secondary = await launch_secondary(spec, ground, "b", record=None)
    vms.append(secondary)
    return primary, secondary


def firmware_log(folder: Path) -> Path:
    """Return the file to which the firmware of the guest writes."""
    return folder / "firmware.log"


def _firmware_console(folder: Path) -> tuple[str, ...]:
    """Build the port to which SeaBIOS writes what it does; only the side that runs it ever does."""
    log = keyval("file", id="firmware0", path=str(firmware_log(folder)), append=True)
    return ("-chardev", log, "-device", "isa-debugcon,iobase=0x402,chardev=firmware0")


async def _until_firmware_done(log: Path) -> None:
    """Wait until the firmware found nothing to boot, or for long enough.

    By then it has set up the machine, which the crash on q35 needs.
    """

    async def done() -> bool:
        return log.exists() and FIRMWARE_DONE in log.read_bytes()

    await Deadline(FIRMWARE_WAIT_S).poll(done, 0.05)
