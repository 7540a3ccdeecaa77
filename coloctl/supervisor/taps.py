"""Set the taps of the node that serves up again, where another program set them down.

Called by `supervisor.loop` once a second; `colo.taps` lists the taps of a node.

Invariant: only taps of a QEMU that runs the guest and that no act is fencing or ending are set up.
A node that is given up stays off the LAN.
"""

from __future__ import annotations

import logging

from coloctl.colo import taps as colo_taps
from coloctl.errors import ColoctlError, HostOutOfReach
from coloctl.model.event import Kind
from coloctl.model.pair import NodeName, Role
from coloctl.model.protection import Protection
from coloctl.supervisor.state import PairState

log = logging.getLogger(__name__)

#: States in which the primary's guest serves, and its taps are up.
_SERVING = frozenset(
    {Protection.UNPROTECTED, Protection.RESYNC, Protection.MIGRATING, Protection.COLO}
)
#: Acts that take taps down on purpose, or give the role to the other node.
_MOVING = frozenset({"failover", "switchover", "stop", "unprotect", "adopt"})


class TapWatch:
    """Looks at the taps of one pair."""

    def __init__(self, state: PairState) -> None:
        self._state = state
        self._said: dict[str, str] = {}  #: by tap: the fault of it that cannot be repaired

    async def look(self) -> None:
        """Set a tap that is down up again, and record it; report once what cannot be repaired."""
        if (node := self._serving()) is None:
            return
        for tap in colo_taps.names(self._state.spec, node):
            try:
                up = await self._state.ground.hosts[node].tap_is_up(tap)
            except HostOutOfReach:  # `supervisor.machines` reports it
                return
            if up or self._serving() != node:  # it was asked for meanwhile
                self._said.pop(tap, None)
                continue
            await self._mend(node, tap, there=up is not None)

    def _serving(self) -> NodeName | None:
        """Return the node whose guest is on the LAN now; None where that is about to change."""
        state = self._state
        if state.protection not in _SERVING or state.act in _MOVING:
            return None
        seat = state.seat_of(Role.PRIMARY)
        if seat is None or seat.vm is None or seat.retired or not seat.vm.process.alive():
            return None
        return seat.name

    async def _mend(self, node: NodeName, tap: str, *, there: bool) -> None:
        state = self._state
        which, mended = f"The tap {tap} of node {node}, where the guest serves,", there
        said = (
            f"{which} was set down from outside; it is up again." if there else f"{which} is gone."
        )
        if there:
            try:
                await state.ground.hosts[node].tap(tap, up=True)
            except ColoctlError as error:
                said, mended = f"{which} is down: {error.message}", False
        if not mended and self._said.get(tap) == said:
            return
        self._said[tap] = "" if mended else said
        log.warning("%s", said)
        state.record(Kind.OBSERVATION, node=node, data={"tap": tap, "tap-down": said})
        state.explain(said)
