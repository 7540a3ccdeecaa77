"""Hold the QEMU that the demo attacks.

Called by `bench.demo`; holds it as `chaos.faults.processes` does.

Invariant: a process is held by a pidfd from before the fault, so no other process is ever hit.
"""

from __future__ import annotations

from coloctl.chaos.faults.processes import HeldProcess
from coloctl.errors import NotProtected


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
