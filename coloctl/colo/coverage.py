"""Ask a running guest's QEMU whether replication would cover all of it; the rules are pure.

Called by `supervisor.acts.protect` before a secondary is made and by `check.command`; asks with
`qmp.command`. The pair file may add ``guest.extra_args``, and no list of options could decide about
those, so QEMU is asked what its guest really has.

Invariant: a guest that is protected has no writable disk outside ``[[disk]]``, and nothing that
QEMU cannot send to the other node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coloctl.errors import ReplicationError
from coloctl.model.pair import PairSpec
from coloctl.qmp import command as qmp
from coloctl.tasks import side_by_side
from coloctl.vm import VM

#: Every look is a query that QEMU answers from its main loop, seconds.
ASK_DEADLINE_S = 5.0

#: Where QEMU keeps the devices of the guest: those with an id, and those without.
_DEVICES = ("/machine/peripheral", "/machine/peripheral-anon")

#: Devices whose content another process holds: the guest's writes to them never pass QEMU.
_OUTSIDE = ("vhost-user-", "vhost-vdpa-", "vhost-scsi")


async def require_covered(spec: PairSpec, primary: VM) -> None:
    """Raise `ReplicationError` naming the first part of the guest that would not be replicated.

    Raises `MonitorError` when QEMU does not answer.
    """
    blocks, migration, *listed = await side_by_side(
        primary.execute(qmp.query_block(), ASK_DEADLINE_S),
        primary.execute(qmp.query_migrate(), ASK_DEADLINE_S),
        *(primary.execute(qmp.qom_list(path), ASK_DEADLINE_S) for path in _DEVICES),
    )
    devices = [one for found in listed for one in found]
    for uncovered in (
        *unreplicated_disks(spec, blocks),
        *outside_devices(devices),
        *immovable(migration),
    ):
        raise ReplicationError(
            f"This guest cannot be protected: {uncovered}.",
            stage="protect",
            hint="take it out of guest.extra_args; a disk belongs into [[disk]], "
            "and `coloctl start SPEC --no-protect` runs the guest as it is",
        )


def unreplicated_disks(spec: PairSpec, blocks: Iterable[Mapping[str, Any]]) -> list[str]:
    """Name the writable disks in the answer of ``query-block`` that no ``[[disk]]`` stands for.

    A medium that the guest can only read may stay: both nodes open the same content.
    """
    ours = {f"colo-disk{i}" for i, _ in enumerate(spec.disks)}
    found = []
    for block in blocks:
        medium = block.get("inserted") or {}
        if not block.get("qdev") or not medium or medium.get("ro") is True:
            continue
        if medium.get("node-name") not in ours:
            name = str(block["qdev"]).removesuffix("/virtio-backend").rpartition("/")[2]
            found.append(
                f"the writable disk {name} ({medium.get('file') or 'without a file'}) is not in "
                "[[disk]], so no write to it would reach the other node"
            )
    return found


def outside_devices(devices: Iterable[Mapping[str, Any]]) -> list[str]:
    """Name the devices in answers of ``qom-list`` that another process implements."""
    kinds = [str(one.get("type", "")).removeprefix("child<").rstrip(">") for one in devices]
    return [
        f"another process implements its device {kind}, and QEMU cannot replicate that"
        for kind in kinds
        if kind.startswith(_OUTSIDE)
    ]


def immovable(migration: Mapping[str, Any]) -> list[str]:
    """Name what keeps QEMU from sending the guest anywhere, by the answer of ``query-migrate``."""
    reasons = migration.get("blocked-reasons") or ()
    return [f"QEMU cannot send it to the other node ({str(one).rstrip('.')})" for one in reasons]
