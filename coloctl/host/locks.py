"""Find out by QEMU's own image locks whether another program uses a disk image.

Called by `host.local_files` before a guest starts, and by `cli.verbs.lab_goods` and
`cli.verbs.lab_machines` before an image is made, overwritten or deleted; `procfs` names the user.
QEMU locks single bytes of an image that it has open (`block/file-posix.c`): 100 and above for what
it does, 200 and above for what it does not bear from others. The kernel is asked for these locks;
none is taken. `qemu-img info` without ``-U`` would not do: it reads a raw image that a running
guest writes, and reports nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path

from coloctl import procfs
from coloctl.errors import PreconditionFailed

#: The first of the bytes for what a QEMU does, and of those for what others may not do.
_DOES, _FORBIDS = 100, 200
#: QEMU's BLK_PERM_WRITE and BLK_PERM_RESIZE, as numbers of bits.
_WRITE, _RESIZE = 1, 3
#: Lock or no lock: F_OFD_GETLK and struct flock of fcntl(2).
_F_OFD_GETLK = 36
_FLOCK = "hhqqi4x"


def user_of(image: Path) -> str | None:
    """Find the program that writes to ``image`` or forbids writes to it; None: there is none.

    A missing image has no user. Raises `PreconditionFailed` where this is unknown: the image cannot
    be opened, or its filesystem has no locks.
    """
    try:
        fd = os.open(image, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unknown(image, error) from None
    try:
        used = any(_locked(fd, byte) for byte in _bytes())
    except OSError as error:
        raise _unknown(image, error) from None
    finally:
        os.close(fd)
    return _holder(image) if used else None


def require_free(image: Path) -> None:
    """Refuse an ``image`` that another program uses; raises `PreconditionFailed` naming both."""
    if user := user_of(image):
        raise PreconditionFailed(
            f"{image} is in use by {user}: it holds the image's lock.",
            hint=f"`fuser -v {image}` names what has it open; stop that first",
        )


def _bytes() -> tuple[int, ...]:
    return tuple(base + bit for base in (_DOES, _FORBIDS) for bit in (_WRITE, _RESIZE))


def _locked(fd: int, byte: int) -> bool:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, _F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def _holder(image: Path) -> str:
    """Name the process that has the image open, as far as this user may know."""
    for pid in sorted(procfs.holding_file([image])):
        with contextlib.suppress(OSError):
            return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return "another program"


def _unknown(image: Path, error: OSError) -> PreconditionFailed:
    hint = "give the user that runs coloctl read and write permission"
    if error.errno not in (errno.EACCES, errno.EPERM):
        hint = "repair that disk, or its filesystem, first"
    return PreconditionFailed(
        f"It is unknown whether {image} is in use: {error.strerror}.", hint=hint
    )
