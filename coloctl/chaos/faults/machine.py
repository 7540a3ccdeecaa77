"""Make the machine run short of processors or of memory.

Registered in `chaos.faults`; calls `chaos.faults.burners` to keep processors busy.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from coloctl.chaos.faults.burners import burners
from coloctl.chaos.faults.child import ActedByChild
from coloctl.chaos.faults.fault import NODES, Fault, Injected, NothingToHit, fault
from coloctl.chaos.faults.processes import HeldProcess
from coloctl.chaos.scenario.tables import Params

MIB = 1 << 20
#: Memory pressure leaves this to all other processes, for all parameters.
SPARE_MIB = 1024

#: Holds memory and touches every page of it again and again; ends with the process that started it.
_HOLD = """
import os, sys, time
parent = os.getppid()
open("/proc/self/oom_score_adj", "w").write("1000")
held = bytearray(int(sys.argv[1]) << 20)
pages = range(0, len(held), 4096)
for page in pages:
    held[page] = 1
print("ready", flush=True)
while os.getppid() == parent:
    for page in pages:
        held[page] ^= 1
    time.sleep(0.2)
"""


class CpuStarvationParams(Params):
    """The number of other processes that compute, and the niceness of the target."""

    burners: int = Field(default=4, ge=0, le=64)
    nice: int = Field(default=10, ge=0, le=19)


class MemoryPressureParams(Params):
    """The memory to hold; less where the machine has not so much to spare."""

    mib: int = Field(default=1024, ge=1)


@contextlib.contextmanager
def _less_urgent(pid: int, nice: int) -> Iterator[None]:
    """Make all threads of the process that nice inside the block, and as before after it.

    Only root may make them less nice again; other users should not ask for any niceness.
    """
    if not nice:
        yield
        return
    process = HeldProcess(pid)
    before = os.getpriority(os.PRIO_PROCESS, pid)
    group = _group_niceness(pid)
    try:
        _renice(pid, nice, nice)
        yield
    finally:
        if process.alive():  # otherwise its number may be another process's
            _renice(pid, before, group)
        process.close()


def _renice(pid: int, nice: int, group: int) -> None:
    """Set the niceness of each thread; a new thread has that of the thread that made it."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)
    # Where the kernel groups processes by session, niceness counts inside the group only.
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(group))


def _group_niceness(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])
    return 0


def spare_mib() -> int:
    """Return how much may be held without a kill: of the machine, and of this process's cgroup."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = [int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        limit, used = (
            Path(f"/sys/fs/cgroup/memory.{one}").read_text() for one in ("max", "current")
        )
        free.append((int(limit) - int(used)) // MIB)
    return max(0, min(free, default=0) - SPARE_MIB)


@fault("cpu-starvation")
class CpuStarvation(Fault[CpuStarvationParams]):
    """Other processes that want the processors before the target, until it is healed."""

    targets = (*NODES, "both", "machine")
    params = CpuStarvationParams
    lasting = True
    _work: contextlib.ExitStack | None = None

    def begin(self) -> Injected:
        """Start the other processes, and make the threads of the target's QEMU nice."""
        nodes = [] if self.target == "machine" else self.pair.some(self.target)
        self._work = work = contextlib.ExitStack()
        at_s = time.monotonic()
        work.enter_context(burners(self.given.burners))
        for node in nodes:
            work.enter_context(_less_urgent(node.pid, self.given.nice))
        role = nodes[0].role if nodes else ""
        return Injected(at_s, tuple(node.name for node in nodes), role)

    def heal(self) -> None:
        """End the other processes, and give the threads their niceness back."""
        if self._work is not None:
            self._work.close()


@fault("memory-pressure")
class MemoryPressure(ActedByChild[MemoryPressureParams]):
    """A process that holds and uses memory others would like, until it is healed.

    It is the first that would be killed for memory.
    """

    targets = ("machine",)
    params = MemoryPressureParams
    missing = "the memory could not be held"
    wait_s = 0.0

    def begin(self) -> Injected:
        """Start the process, and wait until it holds the memory: a machine may have to swap.

        Raises `NothingToHit` when the machine has no memory to spare.
        """
        mib = min(self.given.mib, spare_mib())
        if not mib:
            raise NothingToHit("the machine has no memory to spare")
        at_s = time.monotonic()
        argv = [sys.executable, "-I", "-S", "-c", _HOLD, str(mib)]
        self.start(subprocess.Popen, argv)
        return Injected(at_s, note=f"{mib} MiB")
