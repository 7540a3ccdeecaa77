"""Wait for flock(2) on an open file, but not for ever.

Called by `control.listener` for the state folder, by `ha.arbiter` and `host.local_files` for
registers, and by `lab.netns` for the lab's namespaces; calls `clock`. The lock ends with the last
copy of the descriptor.
"""

from __future__ import annotations

import fcntl

from coloctl.clock import Deadline

#: Between two tries, seconds: the locks are held for milliseconds.
AGAIN_S = 0.01


def acquire(fd: int, within_s: float, again_s: float = AGAIN_S) -> bool:
    """Lock the file that is open as ``fd`` for this process alone; False: another held it too long.

    Raises `OSError` where the file cannot be locked at all.
    """

    def locked() -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    return Deadline(within_s).poll_blocking(locked, again_s)
