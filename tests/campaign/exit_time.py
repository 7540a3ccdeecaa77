"""Measure how long the kernel takes to report a killed process gone, by the memory that it held.

By hand, as root, from the repository's root (half a minute):

    .venv/bin/python tests/campaign/exit_time.py
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import time

from coloctl.urgency import hasten_end

PAGE = 4096


def took_ms(size: int, *, hastened: bool) -> float:
    """Kill a process that holds ``size`` bytes; from SIGKILL to the pidfd's report."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        memory = mmap.mmap(-1, size)
        for at in range(0, size, PAGE):
            memory[at] = 1
        os.write(writer, b".")
        signal.pause()
    os.read(reader, 1)
    pidfd = os.pidfd_open(pid)
    began_s = time.monotonic()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    if hastened:
        hasten_end(pid)
    select.select([pidfd], [], [])
    ended_s = time.monotonic()
    os.waitpid(pid, 0)
    for one in (reader, writer, pidfd):
        os.close(one)
    return (ended_s - began_s) * 1000


def main() -> None:
    for mib in (16, 128, 512):
        for hastened in (False, True):
            times = sorted(took_ms(mib << 20, hastened=hastened) for _ in range(5))
            how = "real-time priority" if hastened else "normal priority"
            print(f"{mib:4} MiB, {how:18}: {times[0]:6.1f} to {times[-1]:6.1f} ms")


if __name__ == "__main__":
    main()
