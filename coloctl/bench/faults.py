"""Hold the QEMU that a bench attacks, and wait for the pair between its steps.

Called by `bench.circles` and other benches that carry out their steps themselves; asks for views of
the pair through `control.acts`.

Invariant: a process is held by a pidfd from before the fault, so no other process is ever hit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from coloctl.chaos.faults.processes import HeldProcess
from coloctl.chaos.run.testbed import STEADY_DEADLINE_S
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient
from coloctl.errors import DeadlineMissed, NotProtected
from coloctl.model.view import PairView


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


def until(
    client: ControlClient,
    enough: Callable[[PairView], bool],
    deadline_s: float = STEADY_DEADLINE_S,
) -> None:
    """Wait until ``enough`` accepts a view of the pair; raises `DeadlineMissed` otherwise."""
    give_up = time.monotonic() + deadline_s
    while not enough(Acts(client).view()):
        if time.monotonic() > give_up:
            raise DeadlineMissed(f"The bench did not go on within {deadline_s:.0f} s.")
        for _ in client.events(0.1):
            pass
