"""Open files that a less trusted user may have put in place: no link, no pipe, no device.

Called by `host.local_files`, `host.process`, `cli.bundling` and `chaos.run.artifacts` for the logs
and the console in the folder of a QEMU, which may run as another user.

Invariant: what is opened is a regular file under the name that was given.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_regular(path: Path) -> int:
    """Open a regular file to read it; raises `OSError` for any other kind, and for a link."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return fd
