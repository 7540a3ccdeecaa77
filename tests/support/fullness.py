"""Filesystems that a test may fill or take away, and a guest that floods its console."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coloctl.lab import qemu
from coloctl.lab.kernel import MNT_DETACH, call

#: A boot sector that writes the alphabet to COM1 for ever, as fast as it may.
FLOOD = bytes.fromhex("ba f803 b0 61 ee fe c0 3c 7b 72 f9 eb f5").ljust(510, b"\0") + b"\x55\xaa"

#: A boot sector that writes 32 KiB to every 64 KiB of its disk from 1 MiB to 15 MiB, over and over,
#: through the firmware. It says 'w' for each write that was done and 'E' for one that failed.
WRITER = (
    bytes.fromhex(
        "31c0 8ed8 8ec0 8ed0 bc0070 8816447c be457c 8a16447c b80043 cd13 b045 7202 b077 baf803 ee"
        "6681064d7c80000000 66813e4d7c00780000 72d6 66c7064d7c00080000 ebcb 80 1000 4000 0080 0000"
        "0008000000000000"
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)


#: The same, but it waits for a key first, and then for a second more.
TOLD_WRITER = (
    bytes.fromhex(
        "31c0 8ed8 8ec0 8ed0 bc0070 8816557c fb b400 cd16 a16c04 83c014 39066c04 72fa"
        "be567c 8a16557c b80043 cd13 b045 7202 b077"
        "baf803 ee 6681065e7c80000000 66813e5e7c00780000 72d6 66c7065e7c00080000 ebcb"
        "80 1000 4000 0080 0000 0008000000000000"
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)


@contextlib.contextmanager
def small_filesystem(folder: Path, mib: int) -> Iterator[Path]:
    """A tmpfs of ``mib`` MiB lies at ``folder`` inside the block."""
    folder.mkdir(parents=True, exist_ok=True)
    call("mount", b"coloctl", os.fsencode(folder), b"tmpfs", 0, f"size={mib}m,mode=0700".encode())
    try:
        yield folder
    finally:
        call("umount2", os.fsencode(folder), MNT_DETACH)


@dataclass(frozen=True)
class Ext4:
    """An ext4 in a file, mounted at ``folder``."""

    folder: Path
    file: Path

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.file), str(self.folder)], check=True)

    def abort(self) -> None:
        """Make it read-only while it is in use, as an error of its disk does."""
        subprocess.run(["sync", "-f", str(self.folder)], check=True)
        subprocess.run(["mount", "-o", "remount,abort", str(self.folder)], check=True)

    def mend(self) -> None:
        """Check and mount it anew, as an operator does; nothing may use it."""
        subprocess.run(["umount", str(self.folder)], check=True)
        done = subprocess.run(["e2fsck", "-fy", str(self.file)], capture_output=True, check=False)
        assert done.returncode < 4, done.stdout
        self.mount()


@contextlib.contextmanager
def ext4_filesystem(folder: Path, mib: int) -> Iterator[Ext4]:
    """An ext4 of ``mib`` MiB lies at ``folder`` inside the block."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Ext4(folder, folder.with_suffix(".ext4"))
    with made.file.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(made.file)], check=True)
    made.mount()
    try:
        folder.chmod(0o700)
        yield made
    finally:
        call("umount2", os.fsencode(folder), MNT_DETACH)
        made.file.unlink()


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """The filesystem of ``folder`` has no free block inside the block."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb") as file:
            for step in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        size = os.fstat(file.fileno()).st_size
                        os.posix_fallocate(file.fileno(), size, step)
        yield
    finally:
        ballast.unlink(missing_ok=True)


def taken(path: Path) -> int:
    """How many bytes ``path`` takes on its filesystem."""
    return path.stat().st_blocks * 512


def is_full(folder: Path) -> bool:
    """A block cannot be had where ``folder`` lies."""
    probe = folder / "probe"
    try:
        probe.write_bytes(b"x" * 4096)
    except OSError as error:
        return error.errno == errno.ENOSPC
    finally:
        probe.unlink(missing_ok=True)
    return False


def bootable(path: Path, build: qemu.Build, sector: bytes) -> None:
    """``path`` is a qcow2 image of 16 MiB that boots ``sector``."""
    with tempfile.NamedTemporaryFile() as raw:
        raw.write(sector.ljust(4096, b"\0"))
        raw.truncate(16 << 20)
        words = [build.img, "convert", "-f", "raw", "-O", "qcow2", raw.name, str(path)]
        subprocess.run(words, check=True)
