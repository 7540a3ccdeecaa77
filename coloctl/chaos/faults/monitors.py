"""Hang the monitors of a QEMU that runs on: commands are taken and never answered.

Registered in `chaos.faults`. The pair's QEMU is wrapped by `wrapping`, so that its monitors are
served by proxies (`monitor_proxy`). The fault stops these proxies, which it finds by their command
lines (`host.process`).
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from coloctl import procfs
from coloctl.chaos.faults import monitor_proxy
from coloctl.chaos.faults.fault import Setup, TargetNode, fault
from coloctl.chaos.faults.processes import SignalledBeside
from coloctl.chaos.faults.wrapping import wrapped
from coloctl.chaos.scenario.tables import Params
from coloctl.host.process import command_line

#: The monitors that each value of ``which`` stands for.
WHICH = {"commands": ("qmp",), "rescue": ("rescue",), "both": ("qmp", "rescue")}


class MonitorHangParams(Params):
    """The monitor of commands, the one of the rescue, or both."""

    which: Literal["commands", "rescue", "both"] = "commands"


@contextlib.contextmanager
def prepare(setup: Setup) -> Iterator[None]:
    """Wrap the pair's QEMU so that its monitors are served by proxies.

    The proxy lies in the folder of the run: that is all of coloctl that the nodes' machines have.
    """
    program = Path(shutil.copy(monitor_proxy.__file__, setup.home))
    proxied = shlex.join([setup.site.python, "-I", "-S", str(program), "qemu"])
    try:
        with wrapped(setup, "monitors", f'exec {proxied} {{program}} "$@"'):
            yield
    finally:
        program.unlink(missing_ok=True)


@fault("monitor-hang")
class MonitorHang(SignalledBeside[MonitorHangParams]):
    """Monitors of a QEMU that do not answer, until it is healed."""

    params = MonitorHangParams
    lasting = True
    prepare = prepare
    missing = "node {} has no proxies at its monitors"

    def pids(self, node: TargetNode) -> Iterator[int]:
        """Find the proxies of the chosen monitors: the name of each is on its command line."""
        for child in procfs.children(node.pid):
            match command_line(child):
                case [*_, monitor_proxy.SERVE, name, _, _, _] if name in WHICH[self.given.which]:
                    yield child
