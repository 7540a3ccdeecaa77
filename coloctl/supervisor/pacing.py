"""Choose the checkpoint delay of a pair in adaptive mode, by what each checkpoint shows.

Called by `supervisor.loop` at the begin and end of each checkpoint; sets a wanted delay by
`colo.plan` while the next checkpoint is under way. QEMU takes one at once whenever its delay is
set, and that one is then the one under way (docs/qemu.md).

Invariant: nothing waits for any of this, and nothing is set while an act is under way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from coloctl.clock import Deadline
from coloctl.colo import plan
from coloctl.errors import ColoctlError
from coloctl.model import event
from coloctl.model.event import Kind
from coloctl.model.pairevent import PaceChanged
from coloctl.model.protection import Protection
from coloctl.qmp.sequence import run
from coloctl.ratelimit import RateLimit
from coloctl.supervisor.acts.tune import SET_DEADLINE_S
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: Decisions that go into the journal at once, and how many per second after that.
NOTE_BURST, NOTE_RATE = 10.0, 0.1


class Pacing:
    """Keeps the delay of one pair; ``spawn`` makes tasks."""

    def __init__(self, state: PairState, spawn: Callable[..., asyncio.Task[None]]) -> None:
        self.state = state
        self._spawn = spawn
        self._setting: asyncio.Task[None] | None = None
        self._asked = True  #: the checkpoint under way was asked for, or began unwatched
        self._noted = RateLimit(NOTE_BURST, NOTE_RATE)

    def begin(self) -> None:
        """Begin the pace of another COLO session."""
        self.state.pace = self.state.pace.anew()
        self._asked = True

    def stopped(self, primary: Seat) -> None:
        """Set the delay that the last checkpoint called for, because another one has begun."""
        state, pace = self.state, self.state.pace
        self._asked = bool(state.act) or state.beside.asking or self._is_setting()
        if not self._paces() or self._asked or primary.vm is None:
            return
        if pace.wanted_ms != pace.delay_ms:
            self._setting = self._spawn(self._set(primary.vm))

    def resumed(self, primary: Seat, pause_s: float) -> None:
        """Weigh a checkpoint that is complete, unless it was asked for."""
        period_s = primary.stats.last_period_s
        if self._paces() and not self._asked and not self._is_setting() and period_s is not None:
            wait_ms = self.state.spec.checkpoint.compare_timeout_ms
            self.state.pace = self.state.pace.after(pause_s * 1000, period_s * 1000, wait_ms)

    def _paces(self) -> bool:
        state = self.state
        return state.adaptive and not state.cautious and state.protection is Protection.COLO

    def _is_setting(self) -> bool:
        return self._setting is not None and not self._setting.done()

    async def _set(self, primary: VM) -> None:
        """Set the wanted delay in QEMU; where that fails, the next checkpoint tries again."""
        state, pace = self.state, self.state.pace
        steps = plan.set_checkpoint_delay(pace.wanted_ms)
        try:
            await run(steps, primary.monitor, deadline=Deadline(SET_DEADLINE_S))
        except ColoctlError as error:
            log.warning("The checkpoint delay stays %d ms: %s", pace.delay_ms, error.message)
            return
        if not self._paces() or state.pace is not pace:
            return  # an operator has set something else meanwhile
        state.pace = pace.set()
        self._tell(pace.delay_ms)

    def _tell(self, before_ms: int) -> None:
        """Send the new delay to clients, and journal it where that is not too often."""
        state, pace = self.state, self.state.pace
        state.emit(PaceChanged(before_ms=before_ms, after_ms=pace.delay_ms, why=pace.why))
        if not self._noted.take(state.clock.now()):
            return
        try:
            state.record(Kind.NOTE, data={event.PACE: pace.delay_ms, "why": pace.why})
        except ColoctlError as error:
            log.warning("The new delay is not in the journal: %s", error.message)
