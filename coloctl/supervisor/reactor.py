"""Turn each observation of a pair into a finding, a decision and an act; the only place for that.

Called by `supervisor.loop` at every beat and every death; calls `ha.analysis` for the finding,
`ha.decision` for the decision, and `supervisor.acts` to carry it out.

Invariants: one reaction at a time. Nothing is done while an act that decides by itself is under way
(`ha.decision.DECIDING_ACTS`). If another act must end before a node is fenced, the pair is observed
again first, and the decision must still be the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable

from coloctl.errors import ColoctlError, PairBusy
from coloctl.ha.analysis import diagnose
from coloctl.ha.decision import DECIDING_ACTS, Action, Decision, decide
from coloctl.ha.failover import Steps
from coloctl.ha.fencing import KILL_DEADLINE_S
from coloctl.host.base import Death
from coloctl.model.event import Kind
from coloctl.model.observation import Diagnosis, Finding, Life, Observation
from coloctl.model.pair import FencingMethod, NodeName, Role, other
from coloctl.model.pairevent import DiagnosisChanged
from coloctl.model.protection import Fact, Protection
from coloctl.ratelimit import RateLimit
from coloctl.supervisor import acts
from coloctl.supervisor.acts.powerdown import WRITE_BACK_WAIT_S
from coloctl.supervisor.acts.unprotect import UNDO_WAIT_S
from coloctl.supervisor.exit_grace import ExitGrace
from coloctl.supervisor.state import PairState

log = logging.getLogger(__name__)

#: A refused reaction is tried again so often, seconds.
RETRY_S = 1.0
#: An act that has lost its secondary ends within milliseconds. Seconds.
ACT_WAIT_S = 1.0
#: Findings that may be reported at once, and how many per second after that.
REPORT_BURST, REPORT_RATE = 10.0, 1.0

#: Conditions that may end by themselves: while no node may be given up for one, the pair holds.
_TRANSIENT = frozenset(
    {
        Diagnosis.PRIMARY_FROZEN,
        Diagnosis.SECONDARY_FROZEN,
        Diagnosis.HOST_UNREACHABLE,
        Diagnosis.LINK_BROKEN,
        Diagnosis.CHECKPOINT_STALLED,
        Diagnosis.GUEST_RESET,
    }
)
#: Acts that end when they have lost their secondary; taking a pair over is not disturbed.
_ABANDONED_ACTS = frozenset({"checkpoint", "set", "start", "protect", "switchover"})
_DEATHS = frozenset({Diagnosis.PRIMARY_DEAD, Diagnosis.SECONDARY_DEAD})


class Reactor:
    """Reacts to the observations of one pair.

    ``look`` returns a fresh observation of it, ``spawn`` makes tasks.
    """

    def __init__(
        self,
        state: PairState,
        look: Callable[[], Observation],
        spawn: Callable[..., asyncio.Task[None]],
    ) -> None:
        self.state = state
        self.deaths: dict[NodeName, Death] = {}  #: of the QEMUs that are in the seats now
        self._look, self._spawn = look, spawn
        self._task: asyncio.Task[None] | None = None
        self._doing = Action.NONE
        self._not_before = -math.inf
        #: Why a node is given up, and when that happened; until it is fenced or need not be.
        self._causes: dict[NodeName, tuple[Diagnosis, float | None]] = {}
        self._paused = state.paused
        self._reported: tuple[Diagnosis, NodeName | None] = (Diagnosis.HEALTHY, None)
        self._changes = RateLimit(REPORT_BURST, REPORT_RATE)
        self._held: tuple[object, ...] = ()
        self._logged = ""
        self._exit_grace = ExitGrace(state.clock, self._is_dying)

    def hear(self, seen: Observation) -> None:
        """Diagnose ``seen``, journal and show the finding, and begin what follows from it.

        Not while the last output of a dead QEMU is still read: its guest may have powered off.
        """
        state = self.state
        if any(
            seen.nodes[node].life is Life.DEAD for node in seen.nodes if node not in self.deaths
        ):
            return
        state.observation, state.finding = seen, diagnose(seen)
        try:
            self._report()
            self._decide(seen)
        except ColoctlError as error:  # the journal has no room: the next beat tries again
            self._complain(f"The finding cannot be handled yet: {error.message}")

    def end(self) -> None:
        """Cancel the reaction under way."""
        if self._task is not None:
            self._task.cancel()

    def _complain(self, sentence: str) -> None:
        if sentence != self._logged:
            log.error("%s", sentence)
        self._logged = sentence

    def _is_dying(self, node: NodeName) -> bool:
        vm = self.state.seats[node].vm
        return vm is not None and vm.process.dying()

    # -- report

    def _report(self) -> None:
        """Journal a finding that differs from the last one, and send it to clients."""
        state, finding = self.state, self.state.finding
        key = (finding.diagnosis, finding.node)
        if key == self._reported or state.act in DECIDING_ACTS or not self._may_report():
            return
        evidence = finding.sentence()
        if finding.diagnosis is not Diagnosis.HEALTHY and state.observation is not None:
            data = {"finding": finding.diagnosis, "observation": state.observation.to_json()}
            state.record(Kind.OBSERVATION, node=finding.node or "", data=data)
        diagnosis, node = finding.diagnosis, finding.node
        state.emit(DiagnosisChanged(diagnosis=diagnosis, evidence=evidence, node=node))
        self._reported = key
        self._changes.take(state.clock.now())

    def _may_report(self) -> bool:
        return self._changes.ready(self.state.clock.now())

    # -- decide

    def _decide(self, seen: Observation) -> None:
        state = self.state
        if state.paused is not self._paused:
            self._paused, self._not_before = state.paused, -math.inf
        decision = self._decision(seen)
        if self._task is not None and not self._task.done():
            if decision.action is not Action.END or self._doing is Action.END:
                return
            self._task.cancel()  # the guest of that reaction is gone
        elif state.protection is not Protection.FAILOVER:
            self._causes.clear()
        if decision.action in (Action.NONE, Action.REPORT):
            state.waiting, self._held = "", ()
        elif decision.action is Action.WAIT:
            self._hold(decision)
        elif state.clock.now() >= self._not_before and not self._exit_grace.near(
            seen, state.finding
        ):
            self._doing = decision.action
            self._task = self._spawn(self._do(decision, state.finding, seen))

    def _decision(self, seen: Observation) -> Decision:
        state = self.state
        return decide(
            state.finding,
            seen,
            state.spec.policy,
            paused=state.paused,
            acting="stop" if state.ending and not state.act else state.act,
            pair=state.spec.name,
        )

    def _hold(self, decision: Decision) -> None:
        """Show why the decision cannot be carried out; move the pair to `failover` if it must.

        A condition that may end by itself (a frozen process, a silent link) leaves it in COLO.
        """
        state, finding = self.state, self.state.finding
        if state.act in DECIDING_ACTS:
            return
        held = (finding.diagnosis, finding.node, state.paused, state.protection)
        doubted = not state.paused and state.spec.policy.auto_failover
        if state.protection is Protection.COLO:
            if not doubted or finding.diagnosis not in _TRANSIENT:
                state.note(Fact.NODE_LOST, decision.reason)
        elif held != self._held and (
            state.protection is not Protection.FAILED or finding.diagnosis in _DEATHS
        ):
            state.explain(decision.reason)
        if held != self._held:
            state.waiting = decision.reason
        self._held = held

    # -- act

    async def _do(self, decision: Decision, finding: Finding, seen: Observation) -> None:
        reactions = {
            Action.FAIL_OVER: self._fail_over,
            Action.ABANDON: self._abandon,
            Action.END: self._end,
            Action.RESTART: self._restart,
        }
        try:
            await reactions[decision.action](decision, finding, seen)
        except PairBusy as busy:  # another act is under way: the next observation decides
            log.info("%s", busy.message)
        except ColoctlError as error:
            self._refused(decision, error)
        except Exception:
            log.exception("The reaction to %s failed", finding.diagnosis)
            self._not_before = self.state.clock.now() + RETRY_S
        else:
            self._logged = ""

    async def _fail_over(self, decision: Decision, finding: Finding, seen: Observation) -> None:
        state, lost, found_at_s = self.state, decision.lost, self.state.clock.now()
        assert lost is not None
        if state.act:
            if state.act not in _ABANDONED_ACTS:
                self._not_before = state.clock.now() + RETRY_S
                return
            state.give_up(f"{finding.diagnosis}: {decision.reason}")
            if not await state.idle(ACT_WAIT_S):
                await state.interrupt(decision.reason)
            seen = self._look()
            state.observation, state.finding = seen, diagnose(seen)
            if (now := self._decision(seen)).action is not Action.FAIL_OVER or now.lost != lost:
                return
        log.warning("%s: %s", finding.diagnosis, decision.reason)
        await self._kill_healthy_node(finding, lost)
        # A pair whose lost node has been fenced looks healthy when the rest is tried again.
        cause = self._exit_grace.cause(seen, finding, lost)
        now_known = cause, self._fault_at(finding, seen)
        cause, fault_at_s = self._causes.setdefault(lost, now_known)
        why = finding.sentence() if cause is Diagnosis.CHECKPOINT_STALLED else ""
        steps = Steps(state.clock, found_at_s, cause=cause, fault_at_s=fault_at_s, why=why)
        again = state.protection is Protection.FAILED
        await acts.failover(state, other(lost), force=again, steps=steps, vouched=state.vouched)

    async def _kill_healthy_node(self, finding: Finding, lost: NodeName) -> None:
        """Kill a healthy node that is given up for the guest's sake.

        No host is powered off for it.
        """
        vm, method = self.state.seats[lost].vm, self.state.spec.fencing.method
        spared = finding.diagnosis in (Diagnosis.GUEST_RESET, Diagnosis.SECONDARY_DIVERGED)
        well = spared and method is not FencingMethod.KILL
        if well and vm is not None:
            await vm.process.kill(KILL_DEADLINE_S)

    def _fault_at(self, finding: Finding, seen: Observation) -> float | None:
        """Return the time of the fault: the death or the last sign of life; None if unknown."""
        node = finding.node
        match finding.diagnosis:
            case Diagnosis.PRIMARY_DEAD | Diagnosis.SECONDARY_DEAD:
                death = self.deaths.get(node) if node else None
                return None if death is None else death.at_s
            case Diagnosis.LINK_BROKEN:
                silent_ms = max(seen.link_silent_ms or 0.0, seen.unacked_ms or 0.0)
                return seen.at_s - silent_ms / 1000
            case (
                Diagnosis.PRIMARY_FROZEN | Diagnosis.SECONDARY_FROZEN | Diagnosis.HOST_UNREACHABLE
            ) if node:
                return seen.at_s - seen.nodes[node].rescue_silent_ms / 1000
        return None

    def _refused(self, decision: Decision, error: ColoctlError) -> None:
        """Try again soon, unless the pair has failed; the state shows why it is not done yet."""
        state = self.state
        self._not_before = state.clock.now() + RETRY_S
        self._complain(f"{error.message} This was after: {decision.reason}")
        if state.protection not in (Protection.COLO, Protection.FAILOVER):
            return
        why = f"{decision.reason} Not yet: {error.message} It is tried again each second."
        with contextlib.suppress(ColoctlError):
            if state.protection is Protection.COLO:
                state.note(Fact.NODE_LOST, why)
            else:
                state.explain(why)
        state.waiting = why

    async def _abandon(self, decision: Decision, finding: Finding, _: Observation) -> None:
        """Make the act that protects end and undo itself, for that finding."""
        state = self.state
        log.warning("%s: %s", finding.diagnosis, decision.reason)
        state.give_up(f"{finding.diagnosis}: {decision.reason}")
        await state.idle(UNDO_WAIT_S)
        self._not_before = state.clock.now() + RETRY_S

    async def _restart(self, decision: Decision, finding: Finding, _: Observation) -> None:
        """Reset the guest; one that resets itself meanwhile has done that already."""
        log.warning("%s: %s", finding.diagnosis, decision.reason)
        await acts.reset_guest(self.state, finding.diagnosis)

    async def _end(self, decision: Decision, finding: Finding, _: Observation) -> None:
        """End all that runs of the pair and mark it down; retry until the journal takes it."""
        state, reason = self.state, self._end_reason(finding)
        if finding.diagnosis is Diagnosis.GUEST_SHUTDOWN:
            await self._power_off()
        await state.interrupt(reason)
        with contextlib.suppress(ColoctlError):
            await acts.end_all(state)
        while True:
            try:
                state.note(Fact.GUEST_GONE, reason)
            except ColoctlError as error:
                self._complain(f"The end of the pair waits: {error.message}")
                await asyncio.sleep(RETRY_S)
            else:
                break
        if state.protection is Protection.DOWN:  # an act that was cut short gave its own reason
            state.explain(reason)
        state.waiting = ""

    async def _power_off(self) -> None:
        """Wait until the primary's QEMU has ended by itself, or its time after its merge is over.

        It may wait for its secondary in a checkpoint, so the secondary ends first. An act that
        makes a secondary sees to that itself, and comes to its end when the primary has.
        """
        state = self.state
        secondary, primary = state.seat_of(Role.SECONDARY), state.seat_of(Role.PRIMARY)
        if primary is not None:
            primary.retired = True
        if secondary is not None and not state.act:
            await acts.end(state, secondary.name, secondary.view.presence)
        if primary is not None and primary.vm is not None:
            vm = primary.vm
            await acts.merge.wait(state, primary)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_BACK_WAIT_S):
                    await vm.process.wait()

    def _end_reason(self, finding: Finding) -> str:
        if finding.diagnosis is Diagnosis.GUEST_SHUTDOWN:
            return "The guest shut itself down."
        if finding.diagnosis in (Diagnosis.GUEST_PANIC, Diagnosis.GUEST_RESET):
            return "The guest's kernel panicked."  # a reset alone does not end a pair
        node = finding.node
        if node is None or node not in self.deaths:
            return finding.sentence()
        role = self.state.seats[node].view.role
        return f"The {role} on node {node} died ({self.deaths[node]})."
