"""Protect a guest that runs alone and should not, again and without being asked.

Called by `supervisor.loop` about once a second, and by `supervisor.held` for its wait; calls
`supervisor.acts` to make the new secondary.

Invariants: nothing is tried while an act is under way, the pair is paused, or a finding concerns
the guest's node. After each attempt that fails the next one waits longer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from coloctl.errors import ColoctlError, PairBusy
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import Role, other
from coloctl.model.protection import Protection
from coloctl.model.view import Merge
from coloctl.supervisor import acts
from coloctl.supervisor.acts import Entered, Watch, merge
from coloctl.supervisor.beside import LATELY_S
from coloctl.supervisor.state import PairState

log = logging.getLogger(__name__)

#: The wait after the first failed attempt, the second, ...; the last one holds for all that follow.
#: What keeps a node from serving is over in a second (a port, a lock that its dead QEMU had),
#: or takes as long as a person needs; each attempt costs the guest a little. Seconds.
WAITS_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def wait_s(failed: int) -> float:
    """Compute the wait before the attempt that follows ``failed`` failed ones in a row, seconds."""
    return 0.0 if failed <= 0 else WAITS_S[min(failed, len(WAITS_S)) - 1]


class AutoReprotect:
    """Keeps one pair protected; `tick` is called about once a second."""

    def __init__(
        self,
        state: PairState,
        watch: Watch,
        entered: Entered,
        spawn: Callable[..., asyncio.Task[None]],
    ) -> None:
        self.state = state
        self._watch, self._entered, self._spawn = watch, entered, spawn
        self._failed = 0  #: attempts in a row
        self._not_before_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def tick(self) -> None:
        """Begin an attempt, if it is time for one; the state shows what is waited for."""
        state = self.state
        if state.protection is Protection.COLO:
            self._failed, self._not_before_s = 0, 0.0
        if not self.wanted():
            state.exposure = ""
            return
        if self._task is not None and not self._task.done():
            return
        if obstacle := self._obstacle() or self._out_of_reach() or self._diverges():
            state.exposure = obstacle
        elif state.clock.now() >= self._not_before_s and not (state.act or state.ending):
            self._task = self._spawn(self._protect())

    def soon(self) -> None:
        """Try again at the next tick: what was waited for has come."""
        self._failed, self._not_before_s = 0, 0.0

    def end(self) -> None:
        """Cancel the attempt under way."""
        if self._task is not None:
            self._task.cancel()

    def wanted(self) -> bool:
        """Return whether the guest runs alone and is to be protected."""
        state = self.state
        return state.protection is Protection.UNPROTECTED and state.protection_wanted

    def _obstacle(self) -> str:
        """Return why nothing is tried now, apart from the other node's condition; a sentence."""
        state, name = self.state, self.state.spec.name
        primary = state.seat_of(Role.PRIMARY)
        if primary is not None and primary.merge is Merge.REFUSED:
            return merge.refusal(state, primary)
        if primary is not None and primary.merge is Merge.UNDER_WAY:
            return f"{merge.waiting(primary)} It is protected again after that."
        if not state.spec.policy.auto_reprotect:
            return (
                f"policy.auto_reprotect is false: `coloctl reprotect {name}` makes a new secondary."
            )
        if state.paused:
            return f"The pair is paused: `coloctl reprotect {name}` protects it all the same."
        if state.finding.diagnosis is not Diagnosis.HEALTHY:
            return f"It is protected again when this is over: {state.finding.sentence()}"
        return ""

    def _out_of_reach(self) -> str:
        """Return why the machine of the next secondary cannot take it now; a sentence."""
        state, primary = self.state, self.state.seat_of(Role.PRIMARY)
        if state.left:
            nodes = ", ".join(f"node {node}" for node in sorted(state.left))
            return f"It is protected again when the QEMU that was left on {nodes} has ended."
        host = state.ground.hosts[other(primary.name)] if primary is not None else None
        if host is None or not host.reach.out:
            return ""
        return f"It is protected again when {host.name} answers: {host.reach.why}"

    def _diverges(self) -> str:
        """Return why the next secondary waits, where several have diverged lately; a sentence."""
        beside, now_s = self.state.beside, self.state.clock.now()
        times = beside.lately(now_s)
        if times < 2:  # after the first one another is made at once
            return ""
        left_s = beside.diverged_s[-1] + wait_s(times) - now_s
        if left_s <= 0:
            return ""
        return (
            f"{times} secondaries have diverged in {LATELY_S / 60:g} minutes; the next one comes "
            f"in {left_s:.0f} s."
        )

    async def _protect(self) -> None:
        state = self.state
        state.exposure = "A new secondary is being made."
        try:
            await acts.reprotect(state, self._watch, self._entered)
        except PairBusy as busy:  # another act is under way: a later tick decides
            log.info("%s", busy.message)
        except ColoctlError as error:
            self._failed += 1
            pause_s = wait_s(self._failed)
            self._not_before_s = state.clock.now() + pause_s
            state.exposure = (
                f"Attempt {self._failed} to protect it failed: {error.message} "
                f"The next one comes in {pause_s:g} s."
            )
            log.warning("%s", state.exposure)
        except Exception:
            log.exception("The attempt to protect the pair again failed")
            self._not_before_s = state.clock.now() + wait_s(self._failed + 1)
        else:
            state.exposure = ""
