"""Processes that are killed, or stopped for a while: QEMUs and the supervisor.

Invariant: what is hurt is known by a pidfd from before the fault, so nothing else is ever hit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from coloctl.chaos.faults.fault import NODES, Ask, Blow, FaultKind, Ground
from coloctl.chaos.scenario.values import Planned

TARGETS = (*NODES, "both", "supervisor")


def victims(target: str, view: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The nodes meant by ``target`` that have a QEMU: name, role and pid of each.

    One that died keeps its pid in the view until its failover is over, and is nobody to hit.
    """
    return [
        node
        for node in view["nodes"]
        if node["pid"]
        and node.get("presence") != "dead"
        and (target == "both" or target in (node["name"], node["role"]))
    ]


def _signal(ground: Ground, fault: Planned, number: signal.Signals) -> Blow:
    view = ground.view()
    if fault.target == "supervisor":
        hit, pids, role = (), [view["supervisor_pid"]], ""
    else:
        nodes = victims(fault.target, view)
        hit, pids = tuple(node["name"] for node in nodes), [node["pid"] for node in nodes]
        role = nodes[0]["role"] if len(nodes) == 1 else ""
    handles: list[int] = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    at_s = time.monotonic()
    for handle in handles:
        _tell(handle, number)

    def heal() -> None:
        while handles:
            handle = handles.pop()
            _tell(handle, signal.SIGCONT)
            os.close(handle)

    if number is signal.SIGKILL:
        heal()
    missed = "" if pids else f"there was no {fault.target} to hit"
    return Blow(at_s, heal, hit, role, missed=missed)


def _tell(handle: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, number)


def kill(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """SIGKILL, as a machine that loses its power."""
    return _signal(ground, fault, signal.SIGKILL)


def freeze(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """SIGSTOP, until it is healed by SIGCONT: a machine that hangs and comes back."""
    return _signal(ground, fault, signal.SIGSTOP)


FAULTS: Mapping[str, FaultKind] = {
    "kill": FaultKind("The process is killed.", kill, TARGETS),
    "freeze": FaultKind(
        "The process stands still, until it is healed.", freeze, TARGETS, lasting=True
    ),
}
