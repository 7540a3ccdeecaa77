"""A supervisor that promotes without a fence: nobody kills the other node or proves it dead.

The folder on the PYTHONPATH of a supervisor's process makes one of it; every other process that
finds this module stays as it is. What was believed to be lost is ended with the pair at last.
"""

from __future__ import annotations

import sys

if "--control-fd" in sys.orig_argv and "coloctl.control.daemon.watcher" not in sys.orig_argv:
    import importlib
    import time
    from dataclasses import replace
    from typing import Any

    from coloctl.ha.failover import Failover
    from coloctl.ha.fencing import Fenced
    from coloctl.host.base import DeathProof
    from coloctl.model.pair import NodeName, Role
    from coloctl.model.view import Fencing, Presence
    from coloctl.supervisor.state import PairState

    act = importlib.import_module("coloctl.supervisor.acts.failover")  # its package hides it

    async def _no_fence(self: Any, _means: object = None) -> Fenced:
        """Take the other node for dead: the proof names its process, which lives."""
        lost = self.lost
        identity = lost.process.identity
        now_s = time.monotonic()
        proof = DeathProof(identity.pid, identity.start_time, "believed", now_s, None)
        return Fenced(lost.node, self.spec.fencing.method, proof.how, 0.0, identity.pid, proof)

    def _no_proof(self: Any, _: object) -> None:
        self.lost.view = replace(self.lost.view, fencing=Fencing.FENCED, presence=Presence.DEAD)

    async def _forgotten(state: PairState, node: NodeName, presence: Presence, **_: Any) -> None:
        """Its QEMU is left as it is: frozen, cut off, or at work."""
        seat = state.seats[node]
        seat.retired = True
        seat.view = replace(seat.view, role=Role.NONE, presence=presence)

    Failover.fence = _no_fence
    act.FailoverBook.fenced = _no_proof
    act.end = _forgotten
