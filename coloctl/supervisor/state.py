"""Hold the state of one pair: every change is decided, journalled, then sent to clients.

Called by `control.daemon.serve`, which makes it, by `supervisor.loop` and all acts; appends to
`journal` through `supervisor.pending_records`, and to `supervisor.history`.

Invariant: everything that changes the protection goes through `PairState.note`. It asks
`model.protection.advance`, writes the journal durably, and only then sends the event.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from coloctl.clock import CLOCK, Clock
from coloctl.colo.ground import Ground
from coloctl.colo.pace import Budget, Pace
from coloctl.colo.protect import CAUTIOUS_DELAY_MS
from coloctl.errors import ColoctlError, NotProtected, PreconditionFailed
from coloctl.ha.agent import AgentAnswer
from coloctl.ha.fencing import Confirmation
from coloctl.host.base import DeathProof, Identity, Process
from coloctl.journal import Journal
from coloctl.machine import freshcode
from coloctl.model import encryption, event
from coloctl.model.event import EXPOSED_SINCE, PAUSED, Kind, Record
from coloctl.model.observation import Diagnosis, Finding, Observation
from coloctl.model.pair import NODES, CheckpointMode, NodeName, PairSpec, Role
from coloctl.model.pairevent import PairEvent, StateChanged
from coloctl.model.protection import Fact, Protection, advance
from coloctl.model.timeline import Timeline
from coloctl.model.view import CheckpointView, NodeView, PairView, settings_view
from coloctl.supervisor.acting import ActUnderWay
from coloctl.supervisor.beside import Beside
from coloctl.supervisor.history import FILE, History
from coloctl.supervisor.pending_records import PendingRecords
from coloctl.supervisor.reconcile import KnownQemu
from coloctl.supervisor.recorder import FlightRecorder
from coloctl.supervisor.seat import Seat
from coloctl.vm import VM

log = logging.getLogger(__name__)

Emit = Callable[[PairEvent], None]


class PairState(ActUnderWay):
    """The knowledge and the belief about one pair. ``emit`` sends an event to every client."""

    def __init__(
        self, spec: PairSpec, ground: Ground, journal: Journal, emit: Emit, clock: Clock = CLOCK
    ) -> None:
        super().__init__()
        self.pair_file = spec  #: as it was asked for
        self.spec = spec  #: the same with the settings that were changed since
        #: What adaptive mode wants; of no meaning in fixed mode.
        self.pace = Pace.begin(Budget.of(spec.checkpoint), spec.checkpoint.delay_ms)
        self.ground = ground
        self.emit = emit
        self.clock = clock
        self.cautious = False  #: checkpoints come at least every `CAUTIOUS_DELAY_MS` for now
        self.generation = 0
        #: Fences under way, by node, each of which an operator may confirm.
        self.confirmations: dict[NodeName, Confirmation] = {}
        self.unfenced: NodeName | None = None  #: the pair failed because it is not proven down
        self.vouched = False  #: a person has confirmed since that it is off
        self.agents: dict[NodeName, AgentAnswer] = {}  #: the fence agent's answer of each node
        self.seats: dict[NodeName, Seat] = {
            node: Seat(NodeView(node, spec.nodes[node].host)) for node in NODES
        }
        #: QEMUs that were given up while their machine was out of reach, and are not proven gone.
        self.left: dict[NodeName, KnownQemu] = {}
        self.recorders = {node: FlightRecorder() for node in NODES}
        self._history = History(ground.folder / FILE)
        #: The journal, and the records that it could not take yet.
        self.pending_records = PendingRecords(journal)
        self._protection = Protection.DOWN
        self._reason = "Nothing was started yet."
        self._since = clock.now()
        self._exposed_since: float | None = None
        self.paused = False  #: nothing is given up without being asked
        self.protection_wanted = False  #: a guest that runs alone is to be protected again
        self.exposure = ""  #: why it is not yet, and what comes next; sentences
        self.copied = ""  #: what was copied for the last secondary; a sentence
        self.gone_for_good = ""  #: QEMUs given up with their machine that may still run; sentences
        self.encryption = encryption.sentence(spec)  #: of the wires between the nodes; sentences
        self.observation: Observation | None = None  #: of the last beat
        self.finding = Finding(Diagnosis.HEALTHY)  #: of that observation
        self.beside = Beside()
        self.waiting = ""  #: what would be done about the finding and is not, and why

    @property
    def protection(self) -> Protection:
        return self._protection

    def pause(self, paused: bool) -> None:
        """Record durably whether the supervisor gives nodes up by itself, and keep to it."""
        self.record(Kind.OUTCOME, act="resume" if not paused else "pause", data={PAUSED: paused})
        self.paused = paused

    def want_protection(self, wanted: bool) -> None:
        """Record durably whether a guest that runs alone is to be protected."""
        if wanted is not self.protection_wanted:
            self.record(Kind.OUTCOME, step="want", data={event.PROTECTION_WANTED: wanted})
        self.protection_wanted = wanted

    @property
    def reason(self) -> str:
        """The reason of the state, as it is shown."""
        return self._reason

    @property
    def adaptive(self) -> bool:
        """True where the pair chooses its checkpoint delay itself."""
        return self.spec.checkpoint.mode is CheckpointMode.ADAPTIVE

    @property
    def delay_ms(self) -> int:
        """The checkpoint delay that holds now, apart from any caution."""
        return self.pace.delay_ms if self.adaptive else self.spec.checkpoint.delay_ms

    def tune(self, spec: PairSpec, pace_ms: int | None = None) -> None:
        """Take ``spec``, with other settings, for everything that is built from here on.

        Adaptive mode begins again where it was off, with ``pace_ms`` or the delay that was set.
        """
        if pace_ms is not None or spec.checkpoint.mode is not self.spec.checkpoint.mode:
            began = self.delay_ms if pace_ms is None else pace_ms
            self.pace = Pace.begin(self.pace.budget, began)
        self.spec = spec

    def note(self, fact: Fact, reason: str) -> None:
        """Record ``fact``, move the state by the table, and send the change to every client."""
        step, now = advance(self._protection, fact), self.clock.now()
        exposed = self._exposed_since
        if step.after in (Protection.DOWN, Protection.COLO):
            exposed = None
        elif exposed is None:
            exposed = now
        data: dict[str, Any] = {"reason": reason, "listed": step.listed, EXPOSED_SINCE: exposed}
        if self.unfenced:
            data[event.UNFENCED] = self.unfenced
        self.record(Kind.STATE, before=step.before, fact=step.fact, after=step.after, data=data)
        if not step.listed:
            return
        self._protection, self._reason, self._since = step.after, reason, now
        self._exposed_since = exposed
        self.emit(StateChanged(before=step.before, fact=fact, after=step.after, reason=reason))

    def explain(self, reason: str) -> None:
        """Replace the reason of the state; the state itself stays."""
        self._reason = reason

    def record(self, kind: Kind, **fields: Any) -> None:
        """Write a record to the journal, with the act under way and the generation.

        If that fails, keep the record, or raise `PreconditionFailed`: see `PendingRecords`.
        """
        known: dict[str, Any] = {"act": self._act_name, "generation": self.generation}
        self.pending_records.append(Record(kind=kind, **{**known, **fields}))

    def remember_failover(self, timeline: Timeline) -> None:
        """Write a timeline to journal and history; an unwritable history stops nothing."""
        document = timeline.to_json()
        self.record(Kind.OUTCOME, step="timeline", data=document)
        try:
            self._history.append(document)
        except PreconditionFailed as error:
            self.record(Kind.NOTE, data={"history-not-kept": error.message})

    def boots(self) -> None:
        """Note that the guest begins again.

        The output of its consoles so far is of an earlier life.
        """
        seated = {node: seat.vm for node, seat in self.seats.items() if seat.vm is not None}
        marks = {node: vm.boots() for node, vm in seated.items()}
        self.record(Kind.NOTE, data={event.BOOTS: marks})

    def booted(self) -> None:
        """Note that the guest has booted; no console is waited for any more."""
        self.record(Kind.NOTE, data={event.BOOTS: {}})

    def record_seat(self, seat: Seat) -> None:
        """Record the process of a seat's QEMU and its role: a later supervisor finds it by that."""
        if seat.vm is None:
            return
        data = {event.LAUNCHED: seat.view.role, **_named(seat.vm.process)}
        if seat.view.unit:
            data[event.NO_UNIT] = seat.view.unit
        self.record(Kind.OUTCOME, step="launch", node=seat.name, data=data)

    def leave_behind(self, node: NodeName, role: Role, process: Process) -> None:
        """Record durably that the QEMU of ``node`` is given up, with its machine out of reach.

        No secondary is launched there before `found_gone`.
        """
        data = {event.LEFT_BEHIND: role, **_named(process)}
        self.record(Kind.OUTCOME, step="left-behind", node=node, data=data)
        self.left[node] = KnownQemu(role, process.identity, process.leader)

    def left_on(self, node: NodeName) -> str:
        """Return a sentence on the QEMU that was left behind on ``node``; "" where none was."""
        if node not in self.left:
            return ""
        host, pid = self.ground.hosts[node], self.left[node].identity.pid
        why = host.reach.why.rstrip(".") or f"{host.name} does not answer"
        place = why if host.reach.out else f"it is ended as soon as {host.name} answers"
        return f"The QEMU that was left on node {node} (process {pid}) may still run: {place}."

    def found_gone(self, node: NodeName, proof: DeathProof) -> None:
        """Record durably that the QEMU that was left behind on ``node`` is proven gone."""
        gone = self.left[node].identity.to_json() if node in self.left else {"pid": proof.pid}
        data = {event.LEFT_BEHIND: "", event.ENDED: proof.how, **gone}
        self.record(Kind.OUTCOME, step="left-behind", node=node, data=data)
        self.left.pop(node, None)

    def record_end(self, node: NodeName, identity: Identity, how: str, **more: str) -> None:
        """Record that this QEMU is proven gone: it is not looked for any more.

        Without that record it is found out again, so a journal without room stops nothing.
        """
        data = {event.ENDED: how, **identity.to_json(), **more}
        try:
            self.record(Kind.OBSERVATION, node=node, data=data)
        except ColoctlError as error:
            log.error("The end of node %s is not in the journal: %s", node, error.message)

    def restore(
        self,
        protection: Protection,
        reason: str,
        *,
        since_s: float | None = None,
        exposed_since_s: float | None = None,
    ) -> None:
        """Set the state with which an earlier supervisor's journal ended; nothing is recorded."""
        self._protection, self._reason = protection, reason
        self._since = self.clock.now() if since_s is None else since_s
        self._exposed_since = exposed_since_s

    def grow_generation(self) -> None:
        """Number the next promotion, durably, before it happens."""
        self.generation += 1
        self.record(Kind.INTENT, step="promote")

    def period_ms(self) -> int:
        """Return the checkpoint period that QEMU was given."""
        return min(self.delay_ms, CAUTIOUS_DELAY_MS) if self.cautious else self.delay_ms

    def seat_of(self, role: Role) -> Seat | None:
        """Return the seat that holds ``role`` now, or None."""
        return next((seat for seat in self.seats.values() if seat.view.role is role), None)

    def running(self) -> bool:
        """Return whether a QEMU of the pair may still run; those left behind do not count."""
        return any(seat.vm is not None for seat in self.seats.values())

    def vm_of(self, role: Role) -> VM:
        """Return the QEMU that holds ``role``; raise `NotProtected` when there is none."""
        seat = self.seat_of(role)
        if seat is None or seat.vm is None:
            raise NotProtected(f"Pair {self.spec.name} has no running {role}.")
        return seat.vm

    def _stale_code(self) -> str:
        """Return a warning where the secondary may run code that its memory does not hold."""
        secondary = self.seat_of(Role.SECONDARY)
        if secondary is None or secondary.view.fresh_code is not False:
            return ""
        return freshcode.warning(self.ground.node(secondary.name).binary.path)

    def view(self) -> PairView:
        """Return the pair as last observed."""
        now = self.clock.now()
        primary = self.seat_of(Role.PRIMARY)
        exposed = None if self._exposed_since is None else round(now - self._exposed_since, 1)
        return PairView(
            name=self.spec.name,
            protection=self._protection,
            generation=self.generation,
            reason=self._reason,
            since_s=round(now - self._since, 1),
            exposed_s=exposed,
            nodes={n: replace(one.view, left=self.left_on(n)) for n, one in self.seats.items()},
            checkpoints=primary.stats.view(self.period_ms()) if primary else CheckpointView(),
            progress=self.progress_now(),
            supervisor_pid=os.getpid(),
            spec_path=str(self.spec.source or ""),
            paused=self.paused,
            diagnosis=self.finding.diagnosis,
            waiting=self.waiting,
            protection_wanted=self.protection_wanted,
            exposure=self.exposure,
            copied=self.copied,
            unwritten=self.pending_records.sentence(),
            verified=self.beside.verified,
            turned_away=self.beside.turned_away(now),
            settings=settings_view(self.spec, self.pair_file),
            pace=self.pace.why if self.adaptive else "",
            stale_code=self._stale_code(),
            given_up=self.gone_for_good,
            encryption=self.encryption,
        )


def _named(process: Process) -> dict[str, Any]:
    """Return which process it is, and which was launched where that is another one."""
    data = process.identity.to_json()
    if process.leader != process.identity:
        data[event.LEADER] = process.leader.to_json()
    return data
