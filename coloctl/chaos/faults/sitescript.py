"""Kill the script in front of a QEMU: a site's script that starts it without `exec`.

Registered in `chaos.faults`; finds the script by `host.process`. The pair's QEMU is such a script
here, made by `wrapping`. A fence of the node has to end the QEMU behind the script.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager

from coloctl import procfs
from coloctl.chaos.faults.fault import Setup, TargetNode, fault
from coloctl.chaos.faults.processes import SignalledBeside
from coloctl.chaos.faults.wrapping import wrapped
from coloctl.chaos.scenario.tables import Params
from coloctl.host.process import command_line

#: In a session of its own, as a script does that logs or limits what it starts.
SCRIPT = 'setsid --wait {program} "$@"; exit $?'


def prepare(setup: Setup) -> AbstractContextManager[None]:
    """Wrap the pair's QEMU in a script that waits for the QEMU that it has started."""
    return wrapped(setup, "site", SCRIPT)


def _ancestors(pid: int) -> Iterator[int]:
    """Return the ancestors of a process, nearest first."""
    while (stat := procfs.read_stat(pid)) is not None and stat.parent > 0:
        pid = stat.parent
        yield pid


@fault("script-killed")
class ScriptKilled(SignalledBeside[Params]):
    """A killed script that had started a QEMU; the QEMU lives."""

    prepare = prepare
    number = signal.SIGKILL
    missing = "nothing stands in front of the QEMU of node {}"

    def pids(self, node: TargetNode) -> Iterator[int]:
        """Find every process between the supervisor and the QEMU, by the script that it runs."""
        script = str(self.pair.home / "wrapped-site")
        for pid in _ancestors(node.pid):
            if any(script in word for word in command_line(pid)):
                yield pid
