"""Find out a disk's identity: an image file by its inode, a device by what the kernel knows of it.

Called by `host.local_files` as `Host.identify`; returns a `DiskIdentity` of `model.disk`. Names
come from /sys and udev's database, never from the path of a device, which another device may have
after the next boot. Where a device has no lasting name, its identity shows it and holds for this
boot only.
"""

from __future__ import annotations

import ctypes
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from coloctl.errors import PreconditionFailed
from coloctl.model.disk import DiskIdentity

#: Filesystems that give a file another inode number whenever they are mounted.
UNSTEADY = ("fuse", "vfat", "msdos", "exfat", "ntfs", "cifs", "smb")

#: Filesystems of several machines: each may keep a time of its own until another one asks.
SHARED = ("nfs", "ceph", "9p", "virtiofs", "lustre", "ocfs2", "gfs2", "afs", "gpfs")

#: udev's names for a device that last, best first (udev(7), its database in /run/udev/data).
UDEV_NAMES = ("DM_UUID", "MD_UUID", "ID_WWN_WITH_EXTENSION", "ID_WWN")

#: Attributes in /sys/block/DEVICE that name a whole disk for ever, best first.
SYS_NAMES = ("wwid", "device/wwid", "md/uuid", "serial", "device/serial")

#: Names that udev's rules or an administrator give for good, below /dev (zvol, rbd and DRBD have no
#: other that lasts).
NAMED = ("disk/by-id/", "disk/by-partuuid/", "zvol/", "rbd/", "drbd/by-res/", "mapper/")

#: Partitions on loops on files on partitions: deeper stacks are not followed.
DEPTH_MAX = 4


@dataclass(frozen=True)
class Kernel:
    """The places where the kernel and udev describe devices; a test has its own."""

    sys: Path = Path("/sys")
    udev: Path = Path("/run/udev/data")
    machine_id: Path = Path("/etc/machine-id")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")
    mounts: Path = Path("/proc/self/mountinfo")


KERNEL = Kernel()


def identify(path: Path, kernel: Kernel = KERNEL) -> DiskIdentity:
    """Find out the identity of the disk at ``path``; one that does not exist has its path only.

    Raises `PreconditionFailed` where the system does not let it be looked at, or where it is
    neither a file nor a block device. Blocks for a few system calls.
    """
    machine = _line(kernel.machine_id)
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except FileNotFoundError:
        return _absent(path.resolve(), machine)
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else "its symbolic links form a circle"
        raise PreconditionFailed(
            f"{path} cannot be looked at: {why}.", hint="check the path and its permissions"
        ) from None
    if stat.S_ISBLK(status.st_mode):
        return _device(real, path, status.st_rdev, kernel)
    if not stat.S_ISREG(status.st_mode):
        raise PreconditionFailed(
            f"{path} is neither a file nor a block device.", hint="correct it in the pair file"
        )
    kind = _filesystem(status.st_dev, kernel)
    rest = "" if kind.startswith(SHARED) else f"{status.st_size} {status.st_mtime_ns}"
    return DiskIdentity(f"file:{real}", _mark(real, status, kind), machine, rest=rest)


def _absent(path: Path, machine: str) -> DiskIdentity:
    """Name a missing disk by its place; below /dev it is a device that has gone."""
    device = path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm")
    kind = "path" if device else "file"
    return DiskIdentity(f"{kind}:{path}", "", machine, device, stable=not device, present=False)


def _mark(path: Path, status: os.stat_result, filesystem: str) -> str:
    """Name the file's inode and the moment it was made: a number may be used again, both never."""
    if filesystem.startswith(UNSTEADY):
        return ""
    born = birth_ns(path)
    return f"inode {status.st_ino}" + (f" born {born}" if born else "")


def _filesystem(device: int, kernel: Kernel) -> str:
    """Return the type of the filesystem on ``device``, "" where none is mounted from it."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _text(kernel.mounts).splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 2 and fields[2] == wanted:
            return after.split(" ")[0]
    return ""


def birth_ns(path: Path) -> int:
    """Return when the file was made, in nanoseconds since 1970; 0 where its filesystem does not
    keep it.

    Only statx(2) shows it; ``stx_btime`` lies at byte 80 of its answer.
    """
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    at_fdcwd, mask = -100, 0x800
    if libc.statx(at_fdcwd, os.fsencode(path), 0, mask, buffer) != 0:
        return 0
    if not int.from_bytes(buffer.raw[0:4], "little") & mask:
        return 0
    seconds = int.from_bytes(buffer.raw[80:88], "little", signed=True)
    return seconds * 10**9 + int.from_bytes(buffer.raw[88:92], "little")


def _device(
    real: Path, written: Path, number: int, kernel: Kernel, *, depth: int = DEPTH_MAX
) -> DiskIdentity:
    """Identify a device by its lasting name; one without any by its path, in this boot."""
    machine = _line(kernel.machine_id)
    node = kernel.sys / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
    key, mark = _lasting(node, number, kernel, depth)
    if not key and str(written).startswith(tuple(f"/dev/{name}" for name in NAMED)):
        key = f"name:{written}"
    if key:
        return DiskIdentity(key, mark, machine, device=True)
    seq = _line(node / "diskseq") or _line(node.resolve().parent / "diskseq")
    mark = f"boot {_line(kernel.boot_id)} {os.major(number)}:{os.minor(number)} sequence {seq}"
    return DiskIdentity(f"path:{real}", mark, machine, device=True, stable=False)


def _lasting(node: Path, number: int, kernel: Kernel, depth: int) -> tuple[str, str]:
    """Find key and mark of a device whose name outlives the boot; two empty texts without one."""
    for name in ("dm/uuid", "dm/name"):
        if told := _line(node / name):
            return f"{name.replace('/', '-')}:{told}", ""
    if backing := _text(node / "loop" / "backing_file").rstrip("\n"):
        return _loop(node, Path(backing), kernel, depth)
    if part := _line(node / "partition"):
        return _partition(node, number, part, kernel, depth)
    return _named(node, _udev(number, kernel)), ""


def _named(node: Path, udev: dict[str, str]) -> str:
    """Name a whole disk by what its maker, udev or an administrator calls it; else ""."""
    for name in UDEV_NAMES:
        if udev.get(name):
            return f"udev:{name}={udev[name]}"
    for name in SYS_NAMES:
        if told := _line(node / name):
            return f"{name.rpartition('/')[2]}:{told}"
    if udev.get("ID_SERIAL"):
        return f"udev:ID_SERIAL={udev['ID_SERIAL']}"
    links = sorted(name for name in udev if name.startswith(NAMED))
    return f"name:/dev/{links[0]}" if links else ""


def _partition(node: Path, number: int, part: str, kernel: Kernel, depth: int) -> tuple[str, str]:
    """Name a partition by its disk and its place there, else by its uuid, which copies share."""
    disk = node.resolve().parent
    whole = _line(disk / "dev").split(":")
    if depth and len(whole) == 2 and all(field.isdigit() for field in whole):
        over = os.makedev(int(whole[0]), int(whole[1]))
        key, mark = _lasting(disk, over, kernel, depth - 1)
        if key:
            return f"{key} partition {part} at {_line(node / 'start')}", mark
    told = dict(line.split("=", 1) for line in _text(node / "uevent").splitlines() if "=" in line)
    uuid = _udev(number, kernel).get("ID_PART_ENTRY_UUID") or told.get("PARTUUID", "")
    return (f"partuuid:{uuid}", "") if uuid else ("", "")


def _loop(node: Path, backing: Path, kernel: Kernel, depth: int) -> tuple[str, str]:
    """Identify a loop device by its backing file: its number is another one after every boot."""
    try:
        status = backing.stat()
    except OSError:
        return "", ""  # removed while it is in use, or of another mount namespace
    offset = _line(node / "loop" / "offset") or "0"
    if stat.S_ISBLK(status.st_mode):
        if not depth:
            return "", ""
        below = _device(backing, backing, status.st_rdev, kernel, depth=depth - 1)
        return (f"loop:{below.key} at {offset}", below.mark) if below.stable else ("", "")
    mark = _mark(backing, status, _filesystem(status.st_dev, kernel))
    return f"loop:{backing} at {offset}", mark


def _udev(number: int, kernel: Kernel) -> dict[str, str]:
    """Return what udev found out about the device, and its links below /dev; empty without udev."""
    lines = _text(kernel.udev / f"b{os.major(number)}:{os.minor(number)}").splitlines()
    found = (line[2:].partition("=") for line in lines if line.startswith(("E:", "S:")))
    return {name: value for name, _, value in found}


def _text(path: Path) -> str:
    """Return the content of the file, "" where it cannot be read."""
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:  # also an attribute that its driver cannot read just now
        return ""


def _line(path: Path) -> str:
    return _text(path).strip()
