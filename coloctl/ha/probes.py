"""Probe one node by its monitors, and count how long each path and each checkpoint is silent.

Called by `ha.heartbeat` at every beat, with what `supervisor.heartbeat_driver` gives it; asks
through `qmp.monitor`, and the kernel about the process of a `vm`.

Invariants: a probe changes nothing and waits for no answer. A silence grows only by the time that
the caller gives, in which this process itself ran. What the way to another machine takes, or does
not answer, is no silence of a QEMU there. Example: with a round trip of 2 s an answer that comes
after 2.1 s ends a silence of 0.1 s.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coloctl.clock import Clock
from coloctl.colo.checkpoint import CheckpointStats
from coloctl.errors import MonitorError
from coloctl.ha.link import Timed
from coloctl.host.records import Contact, Reach
from coloctl.model.observation import Contrast, Life, Limits, NodeSeen, Notice
from coloctl.model.pair import NODES, NodeName, Role
from coloctl.model.protection import Protection
from coloctl.qmp import command as qmp
from coloctl.qmp.command import Command
from coloctl.qmp.monitor import Monitor
from coloctl.vm import VM

#: A monitor thread is asked at every so many beats, the nodes in turn: each answer wakes the
#: supervisor, and waking is what costs most (docs/detection.md).
RESCUE_EVERY = 2
#: The main loop is asked at every so many beats: it serves the guest, and its limits are long.
COMMAND_EVERY = 10
#: An agent that has reported nothing for so long is quiet: no question reaches its machine. It
#: reports at every second beat (`host.agent.beat`). Milliseconds.
QUIET_MS = 120.0


@dataclass(frozen=True)
class Context:
    """Facts that only the supervisor knows, for one beat."""

    protection: Protection
    stats: CheckpointStats | None = None  #: of the primary while it is in COLO
    period_ms: float = 0.0  #: between two checkpoints, as QEMU was ordered
    boots_alone: bool = False  #: as `Observation.boots_alone`
    contrast: Contrast = field(default_factory=Contrast)  #: as `Observation.contrast`
    unfenced: NodeName | None = None  #: as `Observation.unfenced`
    vouched: bool = False  #: an operator has confirmed; as in `Observation`


class Probe:
    """One monitor of one QEMU: one question at a time, and how long it has not been answered."""

    def __init__(self, vm: VM, question: Command, clock: Clock) -> None:
        self._vm, self._question, self._clock = vm, question, clock
        self._asked: tuple[Monitor, float] | None = None  # the question that is on its way
        self._unanswered = False
        self._took_s: float | None = None
        self._waited_ms = self._way_ms = 0.0

    @property
    def silent_ms(self) -> float:
        """The time for which QEMU has not answered, beyond what the way to it takes."""
        return self.silent_for_ms(0.0)

    def silent_for_ms(self, since_ms: float) -> float:
        """Compute `silent_ms` as it is ``since_ms`` after the last beat."""
        waited_ms = self._waited_ms + since_ms if self._unanswered else self._waited_ms
        return max(0.0, waited_ms - self._way_ms)

    def due_ms(self, limit_ms: float) -> float | None:
        """Compute how long after the last beat the silence is ``limit_ms``; None: it is, or ends.

        A question that was sent at that beat counts from it.
        """
        left_ms = limit_ms - (self._waited_ms - self._way_ms)
        return left_ms if self._unanswered and left_ms > 0 else None

    def beat(self, awake_ms: float, way_ms: float = 0.0, *, ask: bool) -> float | None:
        """Ask again where it is time, and return how long the last answer took, seconds.

        None where no answer has come since the last beat. ``awake_ms`` is added to a silence;
        ``way_ms`` is what a question to its machine takes now with the answer. The longest that
        it took while an answer was awaited is no silence.
        """
        took_s, self._took_s = self._took_s, None
        if self._unanswered:
            self._waited_ms += awake_ms
            self._way_ms = max(self._way_ms, way_ms)
        if self._asked is not None and self._asked[0] is not self._vm.monitor:
            self._asked = None  # the monitor was opened again, and the question is lost
        if self._asked is None and (ask or self._unanswered):
            self._ask(way_ms)
        return took_s

    def _ask(self, way_ms: float) -> None:
        """Send the question; one that cannot be sent counts as unanswered and is sent again."""
        if not self._unanswered:
            self._unanswered, self._way_ms = True, way_ms
        asked = monitor, _ = self._vm.monitor, self._clock.now()
        try:
            if monitor.probe(self._question, lambda: self._answered(asked)):
                self._asked = asked
        except MonitorError:
            pass  # a monitor that takes no question is as silent as one that answers none

    def _answered(self, asked: tuple[Monitor, float]) -> None:
        if asked is not self._asked:  # of a monitor that was opened again since
            return
        self._took_s = self._clock.now() - asked[1]
        self._asked, self._unanswered = None, False
        self._waited_ms = self._way_ms = 0.0


class AgentReports:
    """The reports of the agent on a node's machine: how long none has come, and how late they are.

    ``silent_ms`` is None where the node is on this machine, which needs no agent.
    """

    def __init__(self) -> None:
        self._heard_s: float | None = None
        self.silent_ms: float | None = None
        self.delay_ms = 0.0

    def beat(self, awake_ms: float, reach: Reach) -> None:
        """Note whether a report has come since the last beat; ``awake_ms`` is added to a silence.

        A host that was not reached yet, or whose agent is another one since, has not reported.
        """
        if reach.contact is Contact.HERE:
            self.silent_ms, self.delay_ms = None, 0.0
            return
        came = reach.heard_s is not None and reach.heard_s != self._heard_s
        self._heard_s, self.delay_ms = reach.heard_s, reach.round_trip_ms
        self.silent_ms = 0.0 if came else (self.silent_ms or 0.0) + awake_ms

    @property
    def quiet(self) -> bool:
        """True while so long nothing has come that nothing is known of that machine."""
        return self.silent_ms is not None and self.silent_ms >= QUIET_MS

    @property
    def way_ms(self) -> float:
        """The time that an answer from there may take now, which is no silence of a QEMU."""
        return max(self.delay_ms, (self.silent_ms or 0.0) if self.quiet else 0.0)


class NodeProbes:
    """One QEMU, by every monitoring path to it: both monitors, the kernel, and its notices."""

    def __init__(self, vm: VM, role: Role, clock: Clock) -> None:
        self.vm, self.role = vm, role
        self.notices: dict[Notice, None] = {}  # in the order in which they came
        self.rescue = Probe(vm, qmp.query_yank(), clock)
        self.command = Probe(vm, qmp.query_status(), clock)
        self.agent = AgentReports()
        self._cpu_s: float | None = None
        self._idle_ms: float | None = None  # since it used CPU time; None: not since it is silent

    def beat(self, number: int, awake_ms: float, timed: Timed) -> None:
        """Ask on every path whose turn it is."""
        node, number = self.vm.node, number + NODES.index(self.vm.node)
        self.agent.beat(awake_ms, self.vm.host.reach)
        way_ms = self.agent.way_ms
        turn = not number % RESCUE_EVERY
        if (took_s := self.rescue.beat(awake_ms, way_ms, ask=turn)) is not None:
            timed(node, "rescue", took_s)
        turn = not number % COMMAND_EVERY
        if (took_s := self.command.beat(awake_ms, way_ms, ask=turn)) is not None:
            timed(node, "command", took_s)
        self._watch_cpu(awake_ms)

    def _watch_cpu(self, awake_ms: float) -> None:
        if not self.rescue.silent_ms:
            self._cpu_s = self._idle_ms = None
            return
        before_s = self._cpu_s
        try:
            self._cpu_s = self.vm.process.cpu_s()
        except ValueError:  # our hold on it was given back
            self._cpu_s = None
        if before_s is not None and self._cpu_s is not None and self._cpu_s > before_s:
            self._idle_ms = 0.0
        elif self._idle_ms is not None:
            self._idle_ms += awake_ms

    def due_ms(self, limits: Limits) -> float | None:
        """Compute how long after the last beat a process that is stopped is silent for its limit.

        None where the kernel does not call it stopped, or it has been silent for so long.
        """
        due_ms = self.rescue.due_ms(limits.suspect_ms)
        return due_ms if due_ms is not None and self._life() is Life.STOPPED else None

    def seen(self, limits: Limits, since_ms: float = 0.0) -> NodeSeen:
        """Return what the monitoring paths show of this node now; silences in milliseconds.

        ``since_ms`` have passed since the last beat as far as this process ran. A process counts as
        busy only if it used CPU time within ``limits.silent_ms``: only recent work proves that a
        silent QEMU is not frozen.
        """
        return NodeSeen(
            role=self.role,
            life=self._life(),
            busy=self._idle_ms is not None and self._idle_ms < limits.silent_ms,
            rescue_silent_ms=self.rescue.silent_for_ms(since_ms),
            command_silent_ms=self.command.silent_for_ms(since_ms),
            agent_silent_ms=self.agent.silent_ms,
            agent_delay_ms=self.agent.delay_ms,
            notices=tuple(self.notices),
        )

    def settle(self) -> None:
        """Drop the notice of a reset, and of the panic that it ended: both are over."""
        if Notice.GUEST_RESET in self.notices:
            names = list(self.notices)
            for name in names[: names.index(Notice.GUEST_RESET) + 1]:
                if name in (Notice.GUEST_PANIC, Notice.GUEST_RESET):
                    del self.notices[name]

    def _life(self) -> Life:
        process = self.vm.process
        try:
            if process.halted():
                return Life.DEAD
        except ValueError:  # our hold on it was given back
            return Life.UNKNOWN
        # An answer is proof enough on this machine; only silence is worth a look into /proc.
        local = self.agent.silent_ms is None
        return Life.ALIVE if local and not self.rescue.silent_ms else process.life()


class CheckpointProgress:
    """The progress of checkpoints, from the primary's statistics: held, or overdue, for so long."""

    def __init__(self) -> None:
        self._mark: object = None
        self._still_ms = 0.0
        self.held_ms = self.overdue_ms = 0.0

    def beat(self, awake_ms: float, context: Context) -> None:
        """Count how long the guest has been held for a checkpoint, or one has been due."""
        stats = context.stats
        # Another period begins a new wait: the last one was not asked for any more.
        mark = stats and (stats, stats.count, stats.stopped_at, context.period_ms)
        self._still_ms = self._still_ms + awake_ms if mark == self._mark else 0.0
        self._mark = mark
        held = stats is not None and stats.stopped_at is not None
        self.held_ms = self._still_ms if held else 0.0
        due = stats is not None and not held
        self.overdue_ms = max(0.0, self._still_ms - context.period_ms) if due else 0.0
