"""Take over a pair from its dead supervisor: finish or undo what was half done.

Called by `control.daemon.serve`, in two phases. `adopt` looks (`supervisor.discovery`), decides
(`supervisor.reconcile`), places every QEMU in its seat and lets `supervisor.moves` carry the plan
out, before any client is answered. `finish` runs the acts that follow, with steps of `ha.failover`.

Invariant: each of these acts is journalled as the act that it is. A supervisor that is killed in
the middle of one is followed by one that finds the pair as this one did.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from coloctl.colo import accounts, generation
from coloctl.colo.generation import Companions
from coloctl.errors import ColoctlError
from coloctl.ha.arbiter import open_arbiter
from coloctl.ha.failover import Steps
from coloctl.model.event import PROTECTION_WANTED, Kind, Record
from coloctl.model.pair import NodeName, Role
from coloctl.model.protection import Protection
from coloctl.model.tuning import with_settings
from coloctl.model.view import Presence
from coloctl.supervisor import acts, given_up
from coloctl.supervisor.acts import Entered, Watch
from coloctl.supervisor.acts.cause import OPERATOR
from coloctl.supervisor.discovery import DiscoveredNode, lives, look, with_strays
from coloctl.supervisor.lost_journal import infer_belief
from coloctl.supervisor.moves import Moves
from coloctl.supervisor.reconcile import Belief, KnownQemu, Move, MovePlan, believe, reconcile
from coloctl.supervisor.state import PairState

log = logging.getLogger(__name__)

Sightings = dict[NodeName, DiscoveredNode]

#: Acts in which a QEMU may have been launched and not yet recorded.
_LAUNCHING = frozenset({"start", "protect", "switchover"})


class Adoption:
    """A pair taken over from its dead supervisor."""

    def __init__(
        self,
        state: PairState,
        history: Iterable[Record],
        *,
        watch: Watch,
        entered: Entered,
        missed: Callable[..., None],
    ) -> None:
        """Prepare to adopt; ``missed`` gets events that QEMU sent while no supervisor listened."""
        self.state = state
        self.belief: Belief = believe(history)
        self.plan = MovePlan(Move.GONE)
        self._watch, self._entered, self._missed = watch, entered, missed

    async def adopt(self) -> None:
        """Place every QEMU that matters in its seat, and give the pair the state that was believed.

        Steps that need no act of their own are done: a half-way protection is undone, a pair
        without a guest is swept. Raises as `discovery.look` and `infer_belief`; nothing was changed
        then.
        """
        state = self.state
        records = {node: recorder.record for node, recorder in state.recorders.items()}
        ground, named = state.ground, self.belief.launches
        launches = await with_strays(ground.folder, ground.hosts, named, self.belief.left)
        sightings = await look(ground, launches, records)
        lost = await self._knows_none_of(launches)
        if lost:
            self.belief = await self._infer(launches, sightings)
        belief = self.belief
        sightings = {node: _as(belief, node, one) for node, one in sightings.items()}
        state.generation = belief.generation
        state.tune(with_settings(state.spec, belief.settings), belief.pace_ms)
        state.paused = belief.paused
        state.beside.verified = belief.verified
        state.protection_wanted = belief.protection_wanted
        self.plan = reconcile(belief, {node: one.found for node, one in sightings.items()})
        log.info("%s", self._sentence(sightings))
        state.restore(
            belief.protection,
            belief.reason or "Nothing was started yet.",
            since_s=belief.since_s,
            exposed_since_s=belief.exposed_since_s,
        )
        state.unfenced = belief.unfenced
        state.left = dict(belief.left)
        state.gone_for_good = given_up.sentence(state.spec.name)
        async with state.acting("adopt", plan=self.plan.move, believed=belief.protection):
            self._seat(sightings)
            if lost:
                self._record_belief()
            moves = Moves(
                state,
                belief,
                self.plan,
                watch=self._watch,
                entered=self._entered,
                missed=self._missed,
            )
            await moves.carry_out()
            await acts.merge.resume(state)
        for act in set(belief.acts) - {self._next_act()}:
            taken = {"outcome": f"cut short; the next supervisor chose {self.plan.move}"}
            state.record(Kind.OUTCOME, act=act, data=taken)

    async def _knows_none_of(self, launches: Mapping[NodeName, KnownQemu]) -> bool:
        """Return whether QEMUs live of which the journal names none, nor an act that launched one.

        It was moved away, or it is one of an earlier life of the pair that was put back.
        """
        named, hosts = self.belief.launches, self.state.ground.hosts
        strays = [node for node, one in launches.items() if one is not named.get(node)]
        if not strays or not _LAUNCHING.isdisjoint(self.belief.acts):
            return False
        return not any([await lives(one, node, hosts[node]) for node, one in named.items()])

    async def _infer(self, launches: Mapping[NodeName, KnownQemu], seen: Sightings) -> Belief:
        """Infer a belief from QEMUs, images and the last claim; raises as `infer_belief`."""
        state = self.state
        claim = await open_arbiter(state.spec, state.ground.folder).current()
        companions: Companions | None = None
        with contextlib.suppress(ColoctlError):  # an image's record that cannot be read is unknown
            companions = await generation.read(state.spec, state.ground.hosts)
        found = {node: one.found for node, one in seen.items()}
        return infer_belief(state.spec.name, launches, found, companions, claim)

    def _record_belief(self) -> None:
        """Record the inferred belief: the next supervisor reads it in the journal."""
        state, belief = self.state, self.belief
        for seat in state.seats.values():
            state.record_seat(seat)
        data = {"reason": belief.reason, "listed": False, "surmised": True}
        before, after = Protection.DOWN, belief.protection
        state.record(Kind.STATE, before=before, fact="", after=after, data=data)
        wanted = {PROTECTION_WANTED: belief.protection_wanted}
        state.record(Kind.OUTCOME, step="want", data=wanted)

    async def finish(self) -> bool:
        """Repeat the act that was cut short, if it may be; return whether the pair ended by it.

        An error is logged, and the pair is as that act left it.
        """
        state, asked = self.state, self.belief.acts.get(self._next_act(), {})
        try:
            if self._next_act() == "failover":
                steps = Steps(state.clock, cause=str(asked.get("cause", OPERATOR)))
                force = bool(asked.get("force", False))
                await acts.failover(state, self.plan.node, force=force, steps=steps)
            elif self._next_act() == "stop":
                timeout_s = float(asked.get("timeout_s", acts.SHUTDOWN_DEADLINE_S))
                await acts.stop(state, force=bool(asked.get("force")), timeout_s=timeout_s)
                return True
            elif self._next_act() == "protect":
                await acts.reprotect(state, self._watch, self._entered)
            elif self._next_act() == "start":
                protect = bool(asked.get("protect", True))
                if protect or not state.running():
                    begin_on = None if state.running() else asked.get("from")
                    await acts.start(
                        state, self._watch, self._entered, protected=protect, begin_on=begin_on
                    )
        except ColoctlError as error:
            log.error("'%s' could not be taken up: %s", self._next_act(), error.message)
            return self._next_act() == "start" and not state.running()
        return False

    def _next_act(self) -> str:
        """Return the name of the act that `finish` does; empty when nothing is left to do."""
        if self.plan.move is Move.FINISH_FAILOVER:
            return "failover"
        if self.plan.again:
            return "start" if "start" in self.belief.acts else "protect"
        return "stop" if self.plan.move is Move.END and "stop" in self.belief.acts else ""

    def _sentence(self, sightings: Sightings) -> str:
        """Return what was believed, found and decided, for the log."""
        found = ", ".join(
            f"node {node} {_life(one)} ({one.found.role})"
            for node, one in sightings.items()
            if one.vm is not None
        )
        acting = f", in the middle of '{', '.join(self.belief.acts)}'" if self.belief.acts else ""
        return (
            f"taking over: the pair was {self.belief.protection}{acting}; "
            f"{found or 'nothing was launched'}. {self.plan.sentence()}"
        )

    def _seat(self, sightings: Sightings) -> None:
        """Place each QEMU in its seat, and give no role twice.

        Beside a guest that runs alone the dead have no seat.
        """
        state, plan_ = self.state, self.plan
        alone = plan_.move in (Move.ADOPT_ALONE, Move.ROLL_BACK_PROTECT, Move.GONE)
        held: set[Role] = set()
        for node, one in sorted(sightings.items(), key=lambda item: -item[1].found.certainty):
            if one.vm is None or (alone and not one.found.alive):
                continue
            if plan_.move is Move.ADOPT_ALONE and not one.found.known:
                state.leave_behind(node, one.found.role, one.vm.process)
                continue
            role = Role.PRIMARY if alone and node == plan_.node else one.found.role
            if role in held:  # of two primaries the dead one was replaced by the other
                role = Role.SECONDARY
            held.add(role)
            seat = state.seats[node]
            facts = state.ground.node(node)
            user = accounts.named(one.vm.process.identity.uid, facts.account)
            known = self.belief.launches.get(node)
            unit = known.unit if known and known.identity == one.vm.process.identity else ""
            seat.take(one.vm, role, facts.binary.version, user, unit)
            seat.in_colo = one.found.in_colo
            state.beside.may_show(one.vm, role)
            if node in self.belief.boots:
                one.vm.boots(self.belief.boots[node])
            if not one.found.alive:
                seat.view = replace(seat.view, presence=Presence.DEAD)
            elif role is Role.SECONDARY and node in self.belief.missed:
                seat.miss_write()
            elif role is Role.SECONDARY and node in self.belief.diverged:
                seat.diverge()
                state.beside.found_before(one.vm)


def _life(one: DiscoveredNode) -> str:
    if not one.found.known:
        return "is out of reach"
    return "lives" if one.found.alive else "is dead"


def _as(belief: Belief, node: NodeName, one: DiscoveredNode) -> DiscoveredNode:
    """Return ``one`` with the role that the belief gives it."""
    if node not in belief.launches or one.found.role is belief.launches[node].role:
        return one
    return replace(one, found=replace(one.found, role=belief.launches[node].role))
