"""Carry out the plan for a pair whose supervisor died, once its QEMUs are in their seats.

Called by `supervisor.adopt` with a plan of `supervisor.reconcile`; a secondary is given up by
`ha.failover`, and QEMUs are ended by `supervisor.acts`.

Invariant: a move may be cut short after each of its steps; the next supervisor finds a pair of
which it makes the same plan, or one that is nearer to that plan's end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from coloctl.clock import Deadline
from coloctl.colo import plan as colo_plan
from coloctl.colo import retune, taps
from coloctl.errors import ColoctlError, MonitorError
from coloctl.ha.failover import abandon_secondary
from coloctl.model.pair import NODES, Role, other
from coloctl.model.protection import Fact, Protection
from coloctl.model.view import Presence
from coloctl.qmp.sequence import run
from coloctl.supervisor import acts
from coloctl.supervisor.acts import Entered, Watch
from coloctl.supervisor.acts.tune import SET_DEADLINE_S
from coloctl.supervisor.reconcile import Belief, Move, MovePlan
from coloctl.supervisor.state import PairState
from coloctl.vm import VM


class Moves:
    """The steps of each `Move`, for one pair and one plan."""

    def __init__(
        self,
        state: PairState,
        belief: Belief,
        plan: MovePlan,
        *,
        watch: Watch,
        entered: Entered,
        missed: Callable[..., None],
    ) -> None:
        self.state, self.belief, self.plan = state, belief, plan
        self._watch, self._entered, self._missed = watch, entered, missed

    async def carry_out(self) -> None:
        """Do the steps of the plan that need no act of their own; raises what they raise."""
        steps = {
            Move.ADOPT_COLO: self._adopt_colo,
            Move.ADOPT_ALONE: self._adopt_alone,
            Move.FINISH_FAILOVER: self._adopt_both,
            Move.ROLL_BACK_PROTECT: self._roll_back,
            Move.HAND_OVER: self._hand_over,
            Move.END: self._undo_start,
            Move.GONE: self._gone,
        }
        await steps[self.plan.move]()

    def _watch_all(self) -> None:
        for seat in self.state.seats.values():
            if seat.vm is not None:
                self._watch(seat)

    async def _adopt_colo(self) -> None:
        """Watch the pair as before, with the period and the limits that were asked for."""
        state = self.state
        self._watch_all()
        primary = state.vm_of(Role.PRIMARY)
        if not self.belief.covered:
            self._entered(primary)
        # Set again: the supervisor may have died while it was being changed.
        with contextlib.suppress(MonitorError):
            period = colo_plan.set_checkpoint_delay(state.period_ms())
            await run(period, primary.monitor, deadline=Deadline(SET_DEADLINE_S))
        await self._limit(primary)

    async def _limit(self, primary: VM) -> None:
        """Set the limits that were asked for on the comparison that a later protection finds."""
        with contextlib.suppress(MonitorError):
            limits = retune.limit_comparison(self.state.spec)
            await run(limits, primary.monitor, deadline=Deadline(SET_DEADLINE_S))

    async def _adopt_alone(self) -> None:
        state = self.state
        await self._guest_runs()
        if state.protection is not Protection.UNPROTECTED:
            state.record_seat(state.seats[state.vm_of(Role.PRIMARY).node])
            state.note(Fact.PROTECTION_ABANDONED, "Only this QEMU of the pair lives, and serves.")
        await self._limit(self.state.vm_of(Role.PRIMARY))
        self._watch_all()

    async def _adopt_both(self) -> None:
        """Watch the living; a death is no news for the failover that follows."""
        for seat in self.state.seats.values():
            if seat.vm is not None and seat.vm.process.alive():
                self._watch(seat)
            else:
                seat.retired = True

    async def _roll_back(self) -> None:
        """End the secondary, and let the guest run on alone."""
        state, node = self.state, self.plan.node
        assert node is not None
        primary = state.vm_of(Role.PRIMARY)
        await self._guest_runs()
        self._watch(state.seats[node])
        await acts.end(state, other(node), Presence.ABSENT)
        try:
            await abandon_secondary(state.spec, primary, was_running=True)
        except ColoctlError as error:
            reason = f"A protection was cut short, and the way back failed: {error.message}"
            state.note(Fact.FAILOVER_FAILED, reason)
            return
        reason = "Protection was under way when the supervisor was lost; it was undone."
        if state.protection is Protection.UNPROTECTED:
            state.explain(reason)
        else:
            state.note(Fact.PROTECTION_ABANDONED, reason)

    async def _guest_runs(self) -> None:
        """Note that a guest runs, where the state has none, and set its taps up."""
        state = self.state
        primary = state.vm_of(Role.PRIMARY)
        if state.protection is Protection.DOWN:
            state.record_seat(state.seats[primary.node])
            state.note(Fact.GUEST_STARTED, f"The guest runs on node {primary.node}, alone.")
            await taps.set_all(state.spec, primary.host, primary.node, up=True)

    async def _hand_over(self) -> None:
        """Leave the decision to the loop, but end a second guest: it does not run meanwhile."""
        state, lost = self.state, self.plan.lost
        if lost is not None:
            await acts.end(state, lost, Presence.DEAD)
        whole = all(
            seat.vm is not None and seat.vm.process.alive() and not seat.vm.monitor.gone
            for seat in state.seats.values()
        )
        self._watch_all()
        if whole and state.protection is Protection.COLO:
            primary = state.seat_of(Role.PRIMARY)
            self._missed(primary, "COLO_EXIT", mode="primary", reason="error")

    async def _undo_start(self) -> None:
        """Undo a start to its beginning; leave a stop to `finish`."""
        state = self.state
        if "stop" in self.belief.acts:
            return
        await acts.end_all(state)
        if state.protection is not Protection.DOWN:
            state.note(Fact.OPERATOR_STOPPED, "The guest had not run yet; it is started again.")

    async def _gone(self) -> None:
        """End and remove all that is left of the pair."""
        state = self.state
        await acts.end_all(state)
        for node in NODES:
            await acts.merge.sweep(state, node)
        if state.protection is not Protection.DOWN:
            state.note(Fact.GUEST_GONE, "The guest ended while no supervisor watched.")
