"""Place the guest's devices at fixed PCI addresses, the same in every later secondary.

Called by `machine.cmdline` for the command line of each QEMU, and by `colo.known_bugs` for its
machine. Slots: disks from 0x04, one SCSI controller at 0x0f, NICs from 0x10 to 0x1c, the guest
agent's port at 0x1d, the panic device at 0x1e. The machines' own devices are at 0x00 and 0x01
(``pc``) or 0x00 and 0x1f (``q35``); 0x02 and 0x03 are free for ``extra_args``. On ``q35`` the same
slots of ``pcie.0`` make integrated endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coloctl.errors import SpecError
from coloctl.model.pair import DiskSpec, GuestSpec, NicSpec, PairSpec

Device = Mapping[str, Any]

FIRST_DISK_SLOT = 0x04
SCSI_SLOT = 0x0F
FIRST_NIC_SLOT = 0x10
LAST_NIC_SLOT = 0x1C
AGENT_SLOT = 0x1D
PANIC_SLOT = 0x1E

#: The chardev of the guest agent's port, and the name by which the agent finds the port.
AGENT_CHARDEV = "agent0"
AGENT_PORT = "org.qemu.guest_agent.0"

#: Drives that the machine's own IDE or AHCI controller takes.
PC_IDE_DRIVES = 4
Q35_SATA_DRIVES = 6


def is_q35(guest: GuestSpec) -> bool:
    """Return whether the machine type is q35, by alias or by a version such as ``pc-q35-7.2``."""
    return guest.machine.split(",")[0].startswith(("q35", "pc-q35"))


def pci(guest: GuestSpec, slot: int) -> dict[str, str]:
    """Return ``bus`` and ``addr`` of a device in that slot of the machine's root bus."""
    return {"bus": "pcie.0" if is_q35(guest) else "pci.0", "addr": f"0x{slot:x}"}


def devices(spec: PairSpec, *, pvpanic: bool = True) -> tuple[Device, ...]:
    """List every ``-device`` of the guest, in creation order.

    ``pvpanic`` means that this QEMU has that device. Raises `SpecError` when there are more disks
    or NICs than places for them.
    """
    scsi = any(disk.model.startswith("scsi-") for disk in spec.disks)
    controller = {"driver": "virtio-scsi-pci", "id": "scsi0", **pci(spec.guest, SCSI_SLOT)}
    return (
        *((controller,) if scsi else ()),
        *(disk_device(spec.guest, disk, i) for i, disk in enumerate(spec.disks)),
        *(nic_device(spec.guest, nic, i) for i, nic in enumerate(spec.nics)),
        *(_agent_devices(spec.guest) if spec.guest.agent else ()),
        *((_panic_device(spec.guest),) if pvpanic else ()),
    )


def _agent_devices(guest: GuestSpec) -> tuple[Device, Device]:
    return (
        {"driver": "virtio-serial-pci", "id": "serial0", **pci(guest, AGENT_SLOT)},
        {
            "driver": "virtserialport",
            "id": "agent",
            "bus": "serial0.0",
            "nr": 1,  # 0 is for a console
            "chardev": AGENT_CHARDEV,
            "name": AGENT_PORT,
        },
    )


def _panic_device(guest: GuestSpec) -> Device:
    """Build the device by which the guest reports a panic to QEMU.

    The consequence is not decided by QEMU (``-action``).
    """
    return {"driver": "pvpanic-pci", "id": "panic0", **pci(guest, PANIC_SLOT)}


def disk_device(guest: GuestSpec, disk: DiskSpec, index: int) -> Device:
    """Build ``vdN`` on ``colo-diskN``; boot order is disk order, after the pair file's kernel.

    Raises `SpecError` when the controller or the PCI bus has no place left for it.
    """
    return {
        "driver": disk.model,
        "id": f"vd{index}",
        "drive": f"colo-disk{index}",
        **_disk_place(guest, disk, index),
        # QEMU gives 0 to its own loader of ``-kernel``.
        "bootindex": index + 1,
    }


def _disk_place(guest: GuestSpec, disk: DiskSpec, index: int) -> dict[str, Any]:
    if disk.model.startswith("ide-"):
        drives = Q35_SATA_DRIVES if is_q35(guest) else PC_IDE_DRIVES
        if index >= drives:
            raise SpecError(
                f"disk[{index}].model",
                f"The controller of machine type {guest.machine} has {drives} places,"
                f" none of them for {disk.id}.",
                hint="virtio-blk-pci has more places, and is faster",
            )
        if is_q35(guest):
            return {"bus": f"ide.{index}"}
        return {"bus": f"ide.{index // 2}", "unit": index % 2}
    if disk.model.startswith("scsi-"):
        return {"bus": "scsi0.0", "scsi-id": index}
    slot = FIRST_DISK_SLOT + index
    if slot >= SCSI_SLOT:
        raise SpecError(
            f"disk[{index}]",
            f"There are PCI slots for {SCSI_SLOT - FIRST_DISK_SLOT} disks, none for {disk.id}.",
            hint="model scsi-hd puts up to 256 disks behind one slot",
        )
    return pci(guest, slot)


def nic_device(guest: GuestSpec, nic: NicSpec, index: int) -> Device:
    """Build ``eN`` on the pair file's netdev, without an option ROM.

    A virtio-net guest computes its own checksums: filter-rewriter writes whole ones after a
    failover, and a frame that still asks for one to be added would leave with a wrong one. Raises
    `SpecError` when no PCI slot is left for it.
    """
    slot = FIRST_NIC_SLOT + index
    if slot > LAST_NIC_SLOT:
        places = LAST_NIC_SLOT - FIRST_NIC_SLOT + 1
        raise SpecError(
            f"nic[{index}]", f"There are PCI slots for {places} NICs, none for {nic.id}."
        )
    checksums = {"csum": False} if nic.model.startswith("virtio-net") else {}
    return {
        "driver": nic.model,
        "id": f"e{index}",
        "netdev": nic.id,
        "mac": nic.mac,
        **checksums,
        "romfile": "",
        **pci(guest, slot),
    }
