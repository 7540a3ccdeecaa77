"""Read how long single threads of a process ran and waited to run, from the kernel's scheduler.

The supervisor asks it of the threads that are a guest's processors (`supervisor.contrast`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence


def worked(pid: int, threads: Sequence[int]) -> tuple[tuple[float, float], ...] | None:
    """Return for each thread the seconds that it ran and that it waited for a processor.

    None where the kernel does not tell (CONFIG_SCHED_INFO), or one of them is gone.
    """
    found = []
    for thread in threads:
        try:
            file = os.open(f"/proc/{pid}/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            try:
                ran, waited, _ = os.read(file, 128).split()
            finally:
                os.close(file)
        except (OSError, ValueError):
            return None
        found.append((int(ran) / 1e9, int(waited) / 1e9))
    return tuple(found)
