"""Count what each QEMU of a pair holds, each time that the pair has come into COLO.

Called by `chaos.run.runner` for scenarios whose checks need it, and by `bench.circles`; asks QEMU
through `control.acts`. What grows from one protection to the next is never freed.
"""

from __future__ import annotations

import contextlib
import time

from coloctl import paths
from coloctl.chaos.evidence.background import Background
from coloctl.chaos.evidence.listener import ANSWER_WAIT_S, EventListener
from coloctl.chaos.evidence.records import Inventory
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient
from coloctl.errors import ColoctlError

#: What is counted, and the command that lists it.
LISTS = {
    "objects": ("qom-list", {"path": "/objects"}),
    "chardevs": ("query-chardev", None),
    "block-nodes": ("query-named-block-nodes", {"flat": True}),
    "exports": ("query-block-exports", None),
    "jobs": ("query-jobs", None),
}
#: How often the events are looked at, seconds.
LOOK_S = 0.05


def counts(acts: Acts) -> dict[str, dict[str, int]]:
    """Count the objects, devices, block nodes, exports and jobs of each QEMU, by its role."""
    return {
        str(node.role): {
            what: len(acts.qmp(node.name, command, given))
            for what, (command, given) in LISTS.items()
        }
        for node in acts.view().nodes.values()
    }


class InventoryTaker(Background):
    """Takes an inventory after each change to COLO, from `begin` to the end of the block."""

    def __init__(self, pair: str, listener: EventListener) -> None:
        """Begin to watch the events that the listener has received."""
        super().__init__("inventory")
        self.taken: list[Inventory] = []
        self._pair, self._listener = pair, listener
        self.begin()

    def work(self) -> None:
        """Take one inventory per change to COLO that is followed by no other change."""
        place = 0
        while not self.ended:
            time.sleep(LOOK_S)
            heard = self._listener.heard
            changes = [one for one in heard[place:] if one.name == "STATE_CHANGED"]
            place = len(heard)
            if changes and changes[-1].data["after"] == "colo":
                with contextlib.suppress(ColoctlError, OSError):
                    self._take()

    def _take(self) -> None:
        """Wait for the act that protected the pair to end, and count; skip a pair that is lost."""
        with ControlClient.connect(paths.control_socket(self._pair), ANSWER_WAIT_S) as client:
            acts = Acts(client)
            while (view := acts.view()).progress is not None and not self.ended:
                time.sleep(LOOK_S)
            if view.protected:
                self.taken.append(Inventory(time.monotonic(), counts(acts)))
