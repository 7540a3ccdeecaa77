"""Make system calls that Python 3.11 does not offer, through the C library.

Called by `lab.netns`, `lab.pump`, `lab.userns` and `lab.machine_root`, and by `chaos.faults.room`.
"""

from __future__ import annotations

import ctypes
import os

# Numbers from linux/sched.h, linux/nsfs.h and linux/mount.h.
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703
PR_SET_NAME = 15  # linux/prctl.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: int | bytes | None) -> None:
    """Call the C library's ``function``; raises `OSError` with its errno where it fails."""
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
