"""What replication does not cover, told from QEMU's own answers."""

from __future__ import annotations

from typing import Any

import pytest
from support.fakes import make_spec

from coloctl.colo.coverage import immovable, outside_devices, unreplicated_disks

pytestmark = pytest.mark.unit

SPEC = make_spec()
OURS = {"qdev": "/machine/peripheral/vd0/virtio-backend", "inserted": {"node-name": "colo-disk0"}}


def disk(qdev: str, node: str, **inserted: Any) -> dict[str, Any]:
    return {"qdev": qdev, "inserted": {"node-name": node, "file": f"/x/{node}.raw", **inserted}}


def test_the_pairs_own_disks_are_covered() -> None:
    assert unreplicated_disks(SPEC, [OURS | {"device": ""}]) == []


def test_a_writable_disk_elsewhere_is_named_with_its_file() -> None:
    extra = disk("/machine/peripheral/scratch/virtio-backend", "n1", ro=False)
    (found,) = unreplicated_disks(SPEC, [OURS, extra])
    assert "scratch" in found and "/x/n1.raw" in found and "[[disk]]" in found


@pytest.mark.parametrize(
    "harmless",
    [
        disk("/machine/peripheral/cd", "n1", ro=True),
        {"qdev": "/machine/peripheral/cd", "removable": True},  # an empty drive
        {"device": "ide0", "inserted": {"node-name": "n1", "ro": False}},  # no device uses it
    ],
)
def test_what_the_guest_cannot_write_to_may_stay(harmless: dict[str, Any]) -> None:
    assert unreplicated_disks(SPEC, [OURS, harmless]) == []


def test_a_disk_without_a_device_id_is_named_too() -> None:
    (found,) = unreplicated_disks(
        SPEC, [disk("/machine/peripheral-anon/device[0]/virtio-backend", "n1", ro=False)]
    )
    assert "device[0]" in found


def test_devices_of_another_process_are_named() -> None:
    listed = [{"name": "x", "type": f"child<{kind}>"} for kind in ("vhost-user-blk-pci", "nvme")]
    (found,) = outside_devices(listed)
    assert "vhost-user-blk-pci" in found


def test_what_blocks_a_migration_is_quoted() -> None:
    assert immovable({}) == []
    (found,) = immovable({"blocked-reasons": ["0000:00:04.0/vfio is not migratable"]})
    assert "0000:00:04.0/vfio is not migratable" in found
