"""Goal: a disk is known again by what lasts, and by nothing that another disk may have tomorrow.

Method: image files for real; devices from a /sys, a udev database and an id that a test makes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from coloctl.errors import PreconditionFailed
from coloctl.host import disk
from coloctl.host.disk import Kernel, identify
from coloctl.model.disk import DiskIdentity, Sameness, compare

pytestmark = pytest.mark.unit


def test_a_renamed_file_is_the_same_and_a_copy_in_its_place_is_not(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    image.write_text("guest")
    known = identify(image)
    moved = image.rename(tmp_path / "b.qcow2")
    assert compare(identify(moved), known) is Sameness.SAME
    assert compare(identify(image), known) is Sameness.GONE
    shutil.copy(moved, image)
    assert compare(identify(image), known) is Sameness.REPLACED
    assert compare(identify(shutil.copy(moved, tmp_path / "c")), known) is Sameness.MOVED


def test_an_inode_that_is_used_again_is_another_file(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    image.touch()
    known, number = identify(image), image.stat().st_ino
    for _ in range(200):
        image.unlink()
        image.touch()
        if image.stat().st_ino == number:
            break
    else:
        pytest.skip("this filesystem does not use a number again soon")
    if "born" not in known.mark:
        pytest.skip("this filesystem does not keep when a file was made")
    assert compare(identify(image), known) is Sameness.REPLACED


def test_a_device_that_has_gone_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/coloctl-none")
    for path in (Path("/dev/coloctl-none"), tmp_path / "link"):
        found = identify(path)
        assert (found.device, found.present, found.stable) == (True, False, False)
    assert not identify(Path("/dev/shm/coloctl-none")).device


def test_a_file_behind_a_link_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    assert identify(tmp_path / "link") == identify(tmp_path / "real")


def test_a_folder_a_circle_and_a_closed_door_are_told(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "loop", tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(PreconditionFailed, match=str(path)):
            identify(path)


def kernel(folder: Path, files: Mapping[str, str]) -> Kernel:
    """A system of which ``files`` (below /sys/block, or udev/NUMBERS) is all that is known."""
    made = Kernel(
        folder / "sys", folder / "udev", folder / "machine", folder / "boot", folder / "mounts"
    )
    for name, text in {**files, "../../boot": "boot-1\n"}.items():
        path = made.udev / name[5:] if name.startswith("udev/") else made.sys / "block" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.resolve().write_text(text)
    (made.sys / "dev" / "block").mkdir(parents=True, exist_ok=True)
    for entry in (made.sys / "block").rglob("dev"):
        (made.sys / "dev" / "block" / entry.read_text().strip()).symlink_to(entry.parent)
    return made


DEVICES: dict[str, tuple[dict[str, str], str]] = {
    "an LVM volume": (
        {"sdx/dev": "8:1", "sdx/dm/uuid": "LVM-abc\n", "sdx/dm/name": "vg-a\n"},
        "dm-uuid:LVM-abc",
    ),
    "a mapping with a name alone": (
        {"sdx/dev": "8:1", "sdx/dm/uuid": "\n", "sdx/dm/name": "a\n"},
        "dm-name:a",
    ),
    "a SCSI disk": ({"sdx/dev": "8:1", "sdx/device/wwid": "naa.5000\n"}, "wwid:naa.5000"),
    "an NVMe disk": ({"sdx/dev": "8:1", "sdx/wwid": "eui.01\n"}, "wwid:eui.01"),
    "a virtio disk with a serial": ({"sdx/dev": "8:1", "sdx/serial": "one\n"}, "serial:one"),
    "a disk that udev knows": (
        {"sdx/dev": "8:1", "udev/b8:1": "S:disk/by-path/x\nE:ID_WWN=0x5000\n"},
        "udev:ID_WWN=0x5000",
    ),
    "a zvol": ({"sdx/dev": "8:1", "udev/b8:1": "S:zvol/tank/a\n"}, "name:/dev/zvol/tank/a"),
    "a partition of a disk with a name": (
        {
            "sdx/dev": "8:0",
            "sdx/wwid": "eui.01\n",
            "sdx/sdx1/dev": "8:1",
            "sdx/sdx1/partition": "1\n",
            "sdx/sdx1/start": "2048\n",
            "sdx/sdx1/uevent": "PARTUUID=77\n",
        },
        "wwid:eui.01 partition 1 at 2048",
    ),
    "a partition of a disk without": (
        {
            "sdx/dev": "8:0",
            "sdx/sdx1/dev": "8:1",
            "sdx/sdx1/partition": "1\n",
            "sdx/sdx1/uevent": "PARTNAME=data\nPARTUUID=77\n",
        },
        "partuuid:77",
    ),
}


@pytest.mark.parametrize(("files", "key"), DEVICES.values(), ids=DEVICES)
def test_a_device_has_the_name_that_lasts(tmp_path: Path, files: dict[str, str], key: str) -> None:
    found = device(tmp_path / "sdx", kernel(tmp_path, files))
    assert (found.key, found.stable, found.device) == (key, True, True)


def device(path: Path, system: Kernel) -> DiskIdentity:
    return disk._device(path, path, os.makedev(8, 1), system)


def test_a_device_without_a_lasting_name_holds_for_this_boot(tmp_path: Path) -> None:
    path = Path("/dev/sdx")
    system = kernel(tmp_path, {"sdx/dev": "8:1", "sdx/diskseq": "5\n"})
    first = device(path, system)
    assert not first.stable
    assert compare(device(path, system), first) is Sameness.SAME
    (tmp_path / "sys/block/sdx/diskseq").write_text("9\n")
    assert compare(device(path, system), first) is Sameness.REPLACED
    (tmp_path / "sys/block/sdx/diskseq").write_text("5\n")
    system.boot_id.write_text("boot-2\n")
    assert compare(device(path, system), first) is Sameness.REPLACED


def test_a_name_that_an_administrator_wrote_is_the_last_resort(tmp_path: Path) -> None:
    system = kernel(tmp_path, {"sdx/dev": "8:1"})
    real, written = Path("/dev/sdx"), Path("/dev/mapper/data")
    found = disk._device(real, written, os.makedev(8, 1), system)
    assert (found.key, found.stable) == ("name:/dev/mapper/data", True)


def test_a_loop_is_the_file_behind_it(tmp_path: Path) -> None:
    backing = tmp_path / "disk.raw"
    backing.touch()
    files = {"sdx/dev": "8:1", "sdx/loop/backing_file": f"{backing}\n", "sdx/loop/offset": "512\n"}
    system = kernel(tmp_path, files)
    known = device(Path("/dev/loop0"), system)
    assert (known.key, known.stable) == (f"loop:{backing} at 512", True)
    backing.unlink()
    assert not device(Path("/dev/loop0"), system).stable
    (tmp_path / "other").touch()
    backing.touch()
    assert compare(device(Path("/dev/loop0"), system), known) is Sameness.REPLACED


def test_a_filesystem_with_other_inodes_after_each_mount_tells_by_path(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    image.touch()
    number = image.stat().st_dev
    mounts = tmp_path / "mounts"
    where = f"{os.major(number)}:{os.minor(number)}"
    mounts.write_text(f"22 1 {where} / / rw shared:1 - fuse.sshfs there rw\n")
    assert identify(image, Kernel(mounts=mounts)).mark == ""
    mounts.write_text(f"22 1 {where} / / rw shared:1 - ext4 /dev/x rw\n")
    assert str(image.stat().st_ino) in identify(image, Kernel(mounts=mounts)).mark
    assert identify(image, Kernel(mounts=mounts)).rest == f"0 {image.stat().st_mtime_ns}"
    mounts.write_text(f"22 1 {where} / / rw shared:1 - nfs4 there:/x rw\n")
    found = identify(image, Kernel(mounts=mounts))
    assert found.mark and not found.rest, "another machine may know a later write"
