"""A supervisor that tells of a failover before it: the survivor is announced, then promoted.

The folder on the PYTHONPATH of a supervisor's process makes one of it; every other process that
finds this module stays as it is. Fence, proof and claim are as they should be.
"""

from __future__ import annotations

import sys

if "--control-fd" in sys.orig_argv and "coloctl.control.daemon.watcher" not in sys.orig_argv:
    import importlib
    from dataclasses import replace
    from typing import Any

    from coloctl.model.pairevent import FailedOver, PairEvent
    from coloctl.model.protection import Fact, Protection
    from coloctl.supervisor.state import PairState

    act = importlib.import_module("coloctl.supervisor.acts.failover")  # its package hides it

    _claim, _note = act.FailoverBook.claim, PairState.note

    async def _announced(self: Any) -> None:
        """Claimed; every client is told that the guest runs, and nothing is promoted yet."""
        await _claim(self)
        state, survivor = self.state, self.survivor
        state.note(Fact.SURVIVOR_RUNS, f"The guest runs on node {survivor.name} alone.")
        early = replace(self.timeline(), cause="hasty")
        tell = state.emit
        tell(FailedOver(timeline=early))

        def tell_no_second(event: PairEvent) -> None:
            if isinstance(event, FailedOver):
                state.emit = tell
            else:
                tell(event)

        state.emit = tell_no_second

    def _once(self: PairState, fact: Fact, reason: str) -> None:
        """What was announced already is not announced again."""
        if (self.protection, fact) != (Protection.UNPROTECTED, Fact.SURVIVOR_RUNS):
            _note(self, fact, reason)

    act.FailoverBook.claim = _announced
    PairState.note = _once
