"""Read how long single threads of a process ran and waited to run, from the kernel's scheduler.

Called by `host.program` as `Process.worked`, by `supervisor.cpu_sampling` and
`supervisor.contrast`, for the threads that are a guest's processors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence


def worked(pid: int, threads: Sequence[int]) -> tuple[tuple[float, float], ...] | None:
    """Return for each thread the seconds that it ran and that it waited for a processor.

    Returns None where the kernel does not report them (CONFIG_SCHED_INFO), or where a thread is
    gone.
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
