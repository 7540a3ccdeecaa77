"""Kill processes of a pair, or stop them for a while: QEMUs and the supervisor.

Registered in `chaos.faults`; `chaos.faults.monitors` and `chaos.faults.sitescript` derive from
`SignalledBeside`, `chaos.faults.machine` uses `HeldProcess`, `bench.failover` uses `hold`.

Invariant: signals go by a pidfd that is opened when the fault begins. A number that goes to another
process after that is never hit.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable
from typing import ClassVar

from coloctl.chaos.faults.fault import NODES, Fault, Injected, NothingToHit, P, TargetNode, fault
from coloctl.chaos.scenario.tables import Params


class HeldProcess:
    """A process known by a pidfd; making one raises ProcessLookupError where it has ended."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def alive(self) -> bool:
        """Return whether the process still runs: a pidfd is readable when it has ended."""
        return not select.select([self._fd], [], [], 0)[0]

    def close(self) -> None:
        """Release the process."""
        os.close(self._fd)


def hold(pids: Iterable[int]) -> list[HeldProcess]:
    """Return the processes of ``pids`` that have not ended."""
    held = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            held.append(HeldProcess(pid))
    return held


class Signalled(Fault[P]):
    """A signal to processes of the pair; the base of several kinds."""

    number: signal.Signals = signal.SIGSTOP
    _held: tuple[HeldProcess, ...] = ()

    def send(self, held: list[HeldProcess]) -> float:
        """Send the signal to processes that are held from now on; return when that was."""
        self._held = tuple(held)
        at_s = time.monotonic()
        for one in self._held:
            one.signal(self.number)
        return at_s

    def heal(self) -> None:
        """Resume the processes that were stopped."""
        if self.number is signal.SIGSTOP:
            for one in self._held:
                one.signal(signal.SIGCONT)

    def lived_on(self) -> bool | None:
        """Return whether a process that was signalled still lives."""
        return any(one.alive() for one in self._held)

    def close(self) -> None:
        """Close the pidfds."""
        held, self._held = self._held, ()
        for one in held:
            one.close()


class SignalledBeside(Signalled[P]):
    """A signal to processes around the QEMU of one node, which itself is spared."""

    targets = NODES
    missing: ClassVar[str]  #: a sentence part about a node without such processes

    def pids(self, node: TargetNode) -> Iterable[int]:
        """Find the processes around the QEMU of that node."""
        raise NotImplementedError

    def begin(self) -> Injected:
        """Signal the processes around the QEMU; raises `NothingToHit` without any."""
        node = self.pair.node(self.target)
        if not (held := hold(self.pids(node))):
            raise NothingToHit(self.missing.format(node.name))
        return Injected(self.send(held), (node.name,), node.role)

    def lived_on(self) -> bool | None:
        """Return None: the QEMU itself was not hit."""
        return None


class _NodeSignalled(Signalled[Params]):
    targets = (*NODES, "both", "supervisor")

    def begin(self) -> Injected:
        if self.target == "supervisor":
            return Injected(self.send(hold(filter(None, [self.pair.view().supervisor_pid]))))
        nodes = self.pair.some(self.target)
        at_s = self.send(hold(node.pid for node in nodes))
        role = nodes[0].role if len(nodes) == 1 else ""
        return Injected(at_s, tuple(node.name for node in nodes), role)


@fault("kill")
class Kill(_NodeSignalled):
    """A process that is killed.

    By SIGKILL, as a machine that loses its power.
    """

    number = signal.SIGKILL


@fault("freeze")
class Freeze(_NodeSignalled):
    """A process that stands still, until it is healed.

    By SIGSTOP until a SIGCONT, as a machine that hangs and comes back.
    """

    lasting = True
