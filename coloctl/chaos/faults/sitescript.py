"""Kill the program that stands in front of a QEMU: a site's script that starts it without `exec`.

The pair's QEMU is such a script here. Whoever fences a node has to end the QEMU behind it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping

from coloctl import procfs
from coloctl.chaos.faults.fault import NODES, Ask, Blow, FaultKind, Ground, Staging
from coloctl.chaos.faults.processes import victims
from coloctl.chaos.faults.wrapping import wrapped
from coloctl.chaos.scenario.values import Planned
from coloctl.host.process import command_line

#: In a session of its own, as a script does that logs or limits what it starts.
SCRIPT = 'setsid --wait {program} "$@"; exit $?'


@contextlib.contextmanager
def prepare(staging: Staging) -> Iterator[None]:
    """Let the pair's QEMU be a script that waits for the QEMU that it has started."""
    with wrapped(staging, "site", SCRIPT, 'exec {program} "$@"'):
        yield


def kill(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """Kill every process between the supervisor and the QEMU of the target, and not the QEMU."""
    view = ground.view()
    found = victims(fault.target, view)
    if not found:
        return Blow(time.monotonic(), missed=f"there was no {fault.target} to hit")
    node = found[0]
    script = str(ground.home / "wrapped-site")
    handles = [os.pidfd_open(pid) for pid in _in_front(node["pid"]) if _runs(pid, script)]
    at_s = time.monotonic()
    for handle in handles:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
    missed = "" if handles else f"nothing stands in front of the QEMU of node {node['name']}"
    return Blow(at_s, nodes=(node["name"],), role=node["role"], missed=missed)


def _in_front(pid: int) -> Iterator[int]:
    """The ancestors of a process, nearest first."""
    while (stat := procfs.read_stat(pid)) is not None and stat.parent > 0:
        pid = stat.parent
        yield pid


def _runs(pid: int, script: str) -> bool:
    return any(script in word for word in command_line(pid))


FAULTS: Mapping[str, FaultKind] = {
    "script-killed": FaultKind(
        "The script that has started a QEMU is killed; the QEMU lives.",
        kill,
        NODES,
        prepare=prepare,
    ),
}
