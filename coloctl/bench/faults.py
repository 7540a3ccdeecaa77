"""Inject the fault of a bench: a process killed or stopped, or the wire between the hosts cut.

Called by `bench.failover`, and by `bench.circles` and `bench.demo` for their targets; cuts wires of
`lab.network`.

Invariant: a process is held by a pidfd from before the fault, so no other process is ever hit.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from enum import StrEnum
from operator import not_

from coloctl.chaos.faults.processes import HeldProcess
from coloctl.clock import Deadline
from coloctl.errors import NotProtected
from coloctl.lab.network import Lab
from coloctl.model.view import PairView


class Cause(StrEnum):
    """A fault by name."""

    KILL = "kill"  #: SIGKILL to the primary's QEMU
    FREEZE = "freeze"  #: SIGSTOP to the primary's QEMU; woken again after the failover
    LINK = "link"  #: the replication wire swallows every frame; no carrier is lost
    SECONDARY_KILL = "secondary-kill"
    SECONDARY_FREEZE = "secondary-freeze"

    @property
    def loser(self) -> str:
        """The role whose node should be fenced."""
        return "primary" if self in (Cause.KILL, Cause.FREEZE) else "secondary"


class Target(HeldProcess):
    """The QEMU that a fault takes out of the pair."""

    def __init__(self, node: str, pid: int) -> None:
        """Hold the process from now on, even if its number goes to another process later.

        Raises `NotProtected` when it has ended already.
        """
        self.node = node
        try:
            super().__init__(pid)
        except ProcessLookupError:
            raise NotProtected(f"The QEMU of node {node} is gone before the fault.") from None


@contextlib.contextmanager
def target_of(cause: Cause, view: PairView) -> Iterator[Target]:
    """Hold the QEMU that the fault will cost the pair, for the length of the block.

    It runs again after the block if it still can. Raises `NotProtected` when no node has that role.
    """
    nodes = view.nodes.values()
    found = [(node.name, node.pid) for node in nodes if node.role == cause.loser and node.pid]
    if not found:
        raise NotProtected(f"The pair has no {cause.loser} to attack: {view.reason}")
    held = Target(*found[0])
    try:
        yield held
    finally:
        held.signal(signal.SIGCONT)
        held.close()


def inject(cause: Cause, lab: Lab, target: Target) -> float:
    """Inject the fault and return the monotonic second at which it began."""
    at_s = time.monotonic()
    if cause is Cause.LINK:
        lab.link("replication").cut()
    else:
        frozen = cause in (Cause.FREEZE, Cause.SECONDARY_FREEZE)
        target.signal(signal.SIGSTOP if frozen else signal.SIGKILL)
    return at_s


def lingers(target: Target, within_s: float) -> bool:
    """Return whether the target, woken up, still lives after that time.

    If it does, the failover did not make sure that it is dead.
    """
    target.signal(signal.SIGCONT)
    return Deadline(within_s).poll_blocking(target.alive, 0.02, done=not_)
