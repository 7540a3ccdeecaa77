"""Switch the machine of a node off or freeze it, and make it run again.

Registered in `chaos.faults`; switches a machine of `chaos.run.site` by `lab.machine`.

Invariant: the machine runs after `heal`, also where another program switched it. The QEMU of its
node is gone after a crash.
"""

from __future__ import annotations

import time

from coloctl.chaos.faults.fault import NODES, Fault, Injected, NothingToHit, fault
from coloctl.chaos.run.site import MachineSite
from coloctl.chaos.scenario.tables import Params
from coloctl.lab.machine import LabMachine, MachineState


class _MachineFault(Fault[Params]):
    targets = NODES
    lasting = True
    sites = ("machines",)
    _machine: LabMachine | None = None

    def change(self, machine: LabMachine) -> None:
        """Change the machine as this kind does."""
        raise NotImplementedError

    def begin(self) -> Injected:
        """Change the machine of the target; raises `NothingToHit` outside of a lab of machines."""
        site = self.pair.site
        if not isinstance(site, MachineSite):
            raise NothingToHit("no node had a machine of its own")
        node = self.pair.node(self.target)
        self._machine = machine = site.machine(node.name)
        at_s = time.monotonic()
        self.change(machine)
        return Injected(at_s, (node.name,), node.role, f"machine {machine.name}")


@fault("machine-crash")
class MachineCrash(_MachineFault):
    """A machine that loses its power, until it is healed.

    Nothing of it reaches its peers any more, no FIN and no reset. Healing boots it.
    """

    def change(self, machine: LabMachine) -> None:
        """Switch the machine off."""
        machine.crash()

    def heal(self) -> None:
        """Switch the machine on where it is off."""
        if self._machine is not None and self._machine.state() is MachineState.OFF:
            self._machine.boot()


@fault("machine-shutdown")
class MachineShutdown(MachineCrash):
    """A machine that is shut down in order and off, until it is healed.

    Its programs get SIGTERM and some seconds. Healing boots it.
    """

    def change(self, machine: LabMachine) -> None:
        """Shut the machine down."""
        machine.shutdown()


@fault("machine-freeze")
class MachineFreeze(_MachineFault):
    """A machine whose processes all stand still, until it is healed.

    Its kernel still acknowledges what it receives.
    """

    def change(self, machine: LabMachine) -> None:
        """Stop every process of the machine."""
        machine.freeze()

    def heal(self) -> None:
        """Resume the processes where the machine is frozen."""
        if self._machine is not None and self._machine.state() is MachineState.FROZEN:
            self._machine.thaw()
