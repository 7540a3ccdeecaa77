"""Hang the monitors of a QEMU that runs on: commands are taken and never answered.

Registered in `chaos.faults`. The pair's QEMU is wrapped by `wrapping`, so that its monitors are
served by proxies (`monitor_proxy`). The fault stops these proxies.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from coloctl import procfs
from coloctl.chaos.faults import monitor_proxy
from coloctl.chaos.faults.fault import NODES, Injected, NothingToHit, Setup
from coloctl.chaos.faults.processes import Signalled, hold
from coloctl.chaos.faults.wrapping import wrapped
from coloctl.chaos.scenario.tables import Params

#: The monitors that each value of ``which`` stands for.
WHICH = {"commands": ("qmp",), "rescue": ("rescue",), "both": ("qmp", "rescue")}


class MonitorHangParams(Params):
    """The monitor of commands, the one of the rescue, or both."""

    which: Literal["commands", "rescue", "both"] = "commands"


@contextlib.contextmanager
def prepare(setup: Setup) -> Iterator[None]:
    """Wrap the pair's QEMU so that its monitors are served by proxies."""
    proxied = shlex.join([sys.executable, "-I", "-S", monitor_proxy.__file__, "qemu"])
    with wrapped(setup, "monitors", f'exec {proxied} {{program}} "$@"', 'exec {program} "$@"'):
        yield


def proxies(pid: int, which: str) -> list[int]:
    """Return the pids of the proxies of that QEMU's monitors; empty where there are none."""
    found = []
    for child in procfs.children(pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if monitor_proxy.SERVE in words:
                name = words[words.index(monitor_proxy.SERVE) + 1]
                if name in WHICH[which]:
                    found.append(child)
    return found


class MonitorHang(Signalled[MonitorHangParams]):
    """The monitors of a QEMU do not answer, until it is healed."""

    kind = "monitor-hang"
    targets = NODES
    params = MonitorHangParams
    lasting = True
    prepare = prepare

    def begin(self) -> Injected:
        """Stop the proxies of one node's monitors."""
        node = self.pair.node(self.target)
        if not (held := hold(proxies(node.pid, self.given.which))):
            raise NothingToHit(f"node {node.name} has no proxies at its monitors")
        return Injected(self.send(held), (node.name,), node.role)

    def lived_on(self) -> bool | None:
        """Return None: the QEMU itself was not hit."""
        return None


FAULTS = (MonitorHang,)
