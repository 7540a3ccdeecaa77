"""Monitors that hang while their QEMU runs on: commands are taken and never answered.

The pair's QEMU is wrapped, so that its monitors are served by proxies (`monitor_proxy`); these
are what is stopped.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from coloctl import procfs
from coloctl.chaos.faults import monitor_proxy
from coloctl.chaos.faults.fault import NODES, Ask, Blow, FaultKind, Ground, Params, Staging
from coloctl.chaos.faults.processes import victims
from coloctl.chaos.faults.wrapping import wrapped
from coloctl.chaos.scenario.values import Planned

#: The monitors behind the words of a scenario.
WHICH = {"commands": ("qmp",), "rescue": ("rescue",), "both": ("qmp", "rescue")}


class MonitorHang(Params):
    """The road of commands, the one of the rescue, or both."""

    which: Literal["commands", "rescue", "both"] = "commands"


@contextlib.contextmanager
def prepare(staging: Staging) -> Iterator[None]:
    """The pair's QEMU is one whose monitors are served by proxies."""
    proxied = shlex.join([sys.executable, "-I", "-S", monitor_proxy.__file__, "qemu"])
    with wrapped(staging, "monitors", f'exec {proxied} {{program}} "$@"', 'exec {program} "$@"'):
        yield


def proxies(pid: int, which: str) -> list[int]:
    """The pids of those that serve the monitors of that QEMU; empty where there are none."""
    found = []
    for child in procfs.children(pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if monitor_proxy.SERVE in words:
                name = words[words.index(monitor_proxy.SERVE) + 1]
                if name in WHICH[which]:
                    found.append(child)
    return found


def monitor_hang(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """The monitors of one node take commands and do not answer, until it is healed."""
    found = victims(fault.target, ground.view())
    if not found:
        return Blow(time.monotonic(), missed=f"there was no {fault.target} to hit")
    node = found[0]
    handles: list[int] = []
    for pid in proxies(node["pid"], fault.params["which"]):
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    if not handles:
        return Blow(time.monotonic(), missed=f"node {node['name']} has no proxies at its monitors")
    at_s = time.monotonic()
    for handle in handles:
        _tell(handle, signal.SIGSTOP)

    def heal() -> None:
        while handles:
            handle = handles.pop()
            _tell(handle, signal.SIGCONT)
            os.close(handle)

    return Blow(at_s, heal, (node["name"],), node["role"])


def _tell(handle: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, number)


FAULTS: Mapping[str, FaultKind] = {
    "monitor-hang": FaultKind(
        "The monitors of a QEMU do not answer, until it is healed.",
        monitor_hang,
        NODES,
        MonitorHang,
        lasting=True,
        prepare=prepare,
    ),
}
