"""Build the root of a lab machine inside the machine's new namespaces, and move into it.

Called by `lab.machine_init` in the machine's first process, with parts that `lab.machine_store`
names; the system calls are those of
`lab.kernel`. What the machine writes goes into a folder of its own, laid over this system's root:
its programs are there, and no file of it is changed. /run, /tmp and /dev are empty and go with the
machine. Folders in which people keep their own are empty too.

Invariant: every mount is private, so the mounts of this system never change.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path

from coloctl.lab.kernel import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    call,
)

#: Character devices: name, major, minor (Documentation/admin-guide/devices.txt), and mode.
_DEVICES = (
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("tty", 5, 0, 0o666),
    ("net/tun", 10, 200, 0o666),
)
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "fd/0",
    "stdout": "fd/1",
    "stderr": "fd/2",
    "ptmx": "pts/ptmx",
}


@dataclass(frozen=True, slots=True)
class Root:
    """The parts of a machine's root, as paths of this system."""

    name: str  #: the machine's host name
    store: Path  #: holds ``upper``, ``work`` and ``root``
    shown: tuple[Path, ...]  #: folders of this system that are there read-only, at the same path
    hidden: tuple[Path, ...]  #: folders that are empty there


def enter(machine: Root) -> None:
    """Build the root in the calling process's own mount namespace and make it this process's root.

    The calling process is the first of a pid namespace. Raises `OSError`.
    """
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    root = machine.store / "root"
    parts = f"lowerdir=/,upperdir={machine.store / 'upper'},workdir={machine.store / 'work'}"
    call("mount", b"machine", _raw(root), b"overlay", 0, parts.encode())
    _filesystem(root / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _filesystem(root / "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    _filesystem(root / "run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    _filesystem(root / "tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    _devices(root / "dev")
    for folder in machine.shown:
        _show(folder, _below(root, folder))
    for folder in machine.hidden:
        _filesystem(_below(root, folder), "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    _run(root)
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    name = machine.name.encode()
    call("sethostname", name, len(name))


def _run(root: Path) -> None:
    """Fill /run, and give this boot an identifier of its own."""
    for folder in ("lock", "sshd"):
        (root / "run" / folder).mkdir(mode=0o755)
    identifier = root / "run" / ".boot_id"
    identifier.write_text(f"{uuid.uuid4()}\n")
    target = root / "proc/sys/kernel/random/boot_id"
    call("mount", _raw(identifier), _raw(target), None, MS_BIND, None)


def _devices(dev: Path) -> None:
    _filesystem(dev, "tmpfs", MS_NOSUID, "mode=755")
    for folder in ("net", "pts", "shm"):
        (dev / folder).mkdir()
    for name, major, minor, mode in _DEVICES:
        _device(dev / name, Path("/dev") / name, stat.S_IFCHR | mode, os.makedev(major, minor))
    with contextlib.suppress(FileNotFoundError):  # this system has no KVM
        kvm = Path("/dev/kvm").stat()
        _device(dev / "kvm", Path("/dev/kvm"), kvm.st_mode, kvm.st_rdev)
        os.chown(dev / "kvm", 0, kvm.st_gid)
    options = "newinstance,ptmxmode=0666,mode=620,gid=5"  # gid 5: tty, by Debian's base-passwd
    _filesystem(dev / "pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    _filesystem(dev / "shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for name, target in _LINKS.items():
        (dev / name).symlink_to(target)


def _device(place: Path, ours: Path, mode: int, device: int) -> None:
    """Make the device, or show this system's where the rights to make one are missing."""
    try:
        os.mknod(place, mode, device)
    except PermissionError:
        place.touch()
        call("mount", _raw(ours), _raw(place), None, MS_BIND, None)
    else:
        place.chmod(stat.S_IMODE(mode))


def _show(folder: Path, place: Path) -> None:
    call("mount", _raw(folder), _raw(place), None, MS_BIND, None)
    # A read-only bind takes a second call (mount(2)).
    call("mount", None, _raw(place), None, MS_BIND | MS_REMOUNT | MS_RDONLY, None)


def _below(root: Path, folder: Path) -> Path:
    """Return the place of ``folder`` in the new root; it is made where it is missing."""
    place = root / folder.relative_to("/")
    place.mkdir(parents=True, exist_ok=True)
    return place


def _filesystem(place: Path, kind: str, flags: int, options: str = "") -> None:
    call("mount", kind.encode(), _raw(place), kind.encode(), flags, options.encode() or None)


def _raw(path: Path) -> bytes:
    return os.fsencode(path)
