"""Kill the script in front of a QEMU: a site's script that starts it without `exec`.

Registered in `chaos.faults`; finds the script by `host.process`. The pair's QEMU is such a script
here, made by `wrapping`. A fence of the node has to end the QEMU behind the script.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from coloctl import procfs
from coloctl.chaos.faults.fault import NODES, Injected, NothingToHit, Setup
from coloctl.chaos.faults.processes import Signalled, hold
from coloctl.chaos.faults.wrapping import wrapped
from coloctl.chaos.scenario.tables import Params
from coloctl.host.process import command_line

#: In a session of its own, as a script does that logs or limits what it starts.
SCRIPT = 'setsid --wait {program} "$@"; exit $?'


@contextlib.contextmanager
def prepare(setup: Setup) -> Iterator[None]:
    """Wrap the pair's QEMU in a script that waits for the QEMU that it has started."""
    with wrapped(setup, "site", SCRIPT, 'exec {program} "$@"'):
        yield


def _ancestors(pid: int) -> Iterator[int]:
    """Return the ancestors of a process, nearest first."""
    while (stat := procfs.read_stat(pid)) is not None and stat.parent > 0:
        pid = stat.parent
        yield pid


class ScriptKilled(Signalled[Params]):
    """The script that has started a QEMU is killed; the QEMU lives."""

    kind = "script-killed"
    targets = NODES
    prepare = prepare
    number = signal.SIGKILL

    def begin(self) -> Injected:
        """Kill every process between the supervisor and the QEMU of the target, not the QEMU."""
        node = self.pair.node(self.target)
        script = str(self.pair.home / "wrapped-site")
        in_front = _ancestors(node.pid)
        held = hold(pid for pid in in_front if any(script in word for word in command_line(pid)))
        if not held:
            raise NothingToHit(f"nothing stands in front of the QEMU of node {node.name}")
        return Injected(self.send(held), (node.name,), node.role)

    def lived_on(self) -> bool | None:
        """Return None: the QEMU was spared on purpose."""
        return None


FAULTS = (ScriptKilled,)
