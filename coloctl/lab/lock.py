"""Lock a part of the cache for one provider; a second one waits and then finds the work done.

Called by `lab.qemu`, `lab.guest`, `lab.apt` and `lab.compiler`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coloctl.errors import ProvisionError
from coloctl.lab.progress import Progress, Report


@contextmanager
def exclusive(path: Path, what: str, report: Report) -> Iterator[int]:
    """Hold ``path`` alone inside the block; it is free again when all its holders are gone.

    Yields the file descriptor: a child that inherits it holds the lock too, so that work which
    outlives a killed coloctl is waited for. Raises `ProvisionError` where the file cannot be
    written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A user who can open it can hold it, so it is for this user alone; older ones were not.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(handle).st_uid == os.geteuid():
            os.fchmod(handle, 0o600)
    except OSError as error:
        raise ProvisionError(
            f"{path.parent} cannot be written: {error.strerror}.",
            hint="set COLOCTL_CACHE_DIR to a folder of your own",
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(Progress(f"{what}: waiting for another coloctl that is at it"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)
