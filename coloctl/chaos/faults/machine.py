"""Make the machine run short of processors or of memory."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field

from coloctl.chaos.faults.burners import burners
from coloctl.chaos.faults.fault import NODES, Ask, Blow, FaultKind, Ground, Params
from coloctl.chaos.faults.processes import victims
from coloctl.chaos.scenario.values import Planned
from coloctl.errors import LabError

MIB = 1 << 20
#: What memory pressure leaves to everybody else, whatever it was told.
SPARE_MIB = 1024
#: How long a machine that swaps may take to give the memory.
HOLD_S = 60.0

#: Holds memory and touches every page of it again and again; ends with whoever started it.
_HOLD = """
import os, sys, time
parent = os.getppid()
open("/proc/self/oom_score_adj", "w").write("1000")
held = bytearray(int(sys.argv[1]) << 20)
pages = range(0, len(held), 4096)
for page in pages:
    held[page] = 1
print("held", flush=True)
while os.getppid() == parent:
    for page in pages:
        held[page] ^= 1
    time.sleep(0.2)
"""


class CpuStarvation(Params):
    """Who else computes, and how little the victim counts beside them."""

    burners: int = Field(4, ge=0, le=64)
    nice: int = Field(10, ge=0, le=19)


class MemoryPressure(Params):
    """How much is held; less where the machine has not so much to spare."""

    mib: int = Field(1024, ge=1)


def starve(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """Other processes compute, and the threads of the victim's QEMU come after them."""
    whole = fault.target == "machine"
    found = [] if whole else victims(fault.target, ground.view())
    if not found and not whole:
        return Blow(time.monotonic(), missed=f"there was no {fault.target} to hit")
    work = contextlib.ExitStack()
    at_s = time.monotonic()
    with contextlib.ExitStack() as undo:
        undo.callback(work.close)
        work.enter_context(burners(fault.params["burners"]))
        for node in found:
            work.enter_context(_less_urgent(node["pid"], fault.params["nice"]))
        undo.pop_all()
    role = found[0]["role"] if found else ""
    return Blow(at_s, work.close, tuple(node["name"] for node in found), role)


@contextlib.contextmanager
def _less_urgent(pid: int, nice: int) -> Iterator[None]:
    """All threads of the process are that nice inside the block, and as before behind it.

    Only root may make them less nice again; others should not ask for any niceness.
    """
    if not nice:
        yield
        return
    handle = os.pidfd_open(pid)
    before = os.getpriority(os.PRIO_PROCESS, pid)
    group = _group_niceness(pid)
    try:
        _renice(pid, handle, nice, nice)
        yield
    finally:
        _renice(pid, handle, before, group)
        os.close(handle)


def _renice(pid: int, handle: int, nice: int, group: int) -> None:
    """Threads that come while this goes on have the niceness of the one that made them."""
    if select.select([handle], [], [], 0)[0]:
        return  # it has ended, and its number may be somebody else's
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
    """What may be held without anybody being killed for it: of the machine, and of our cgroup."""
    free = [_available_mib()]
    for limit, used in (("memory.max", "memory.current"),):
        with contextlib.suppress(OSError, ValueError):
            folder = Path("/sys/fs/cgroup")
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            free.append(left // MIB)
    return max(0, min(free) - SPARE_MIB)


def _available_mib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0


def press(_ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """A process holds memory and uses it; it is the first that would be killed for memory."""
    mib = min(fault.params["mib"], spare_mib())
    if not mib:
        return Blow(time.monotonic(), missed="the machine has no memory to spare")
    at_s = time.monotonic()
    holder = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _HOLD, str(mib)], stdout=subprocess.PIPE
    )

    def heal() -> None:
        holder.kill()
        holder.wait()
        if holder.stdout:
            holder.stdout.close()

    assert holder.stdout is not None
    try:
        os.set_blocking(holder.stdout.fileno(), False)
        _until_held(holder, at_s + HOLD_S)
    except BaseException:
        heal()
        raise
    return Blow(at_s, heal, note=f"{mib} MiB")


def _until_held(holder: subprocess.Popen[bytes], give_up: float) -> None:
    assert holder.stdout is not None
    while not holder.stdout.read():
        if holder.poll() is not None or time.monotonic() > give_up:
            raise LabError("The memory could not be held.")
        time.sleep(0.02)


FAULTS: Mapping[str, FaultKind] = {
    "cpu-starvation": FaultKind(
        "Other processes want the processors, and the victim comes last, until it is healed.",
        starve,
        (*NODES, "both", "machine"),
        CpuStarvation,
        lasting=True,
    ),
    "memory-pressure": FaultKind(
        "A process holds and uses memory that others would like, until it is healed.",
        press,
        ("machine",),
        MemoryPressure,
        lasting=True,
    ),
}
