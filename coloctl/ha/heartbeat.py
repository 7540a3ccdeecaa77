"""The heart of a supervisor: every road to both nodes is tried at every beat, and what came back is
told as one observation.

Invariants: nothing here waits for an answer, so that a beat is never late because a node is; a
probe changes nothing; a silence grows only by time in which this process itself ran, so that a
supervisor that was starved, or stopped, never takes its own absence for somebody else's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from coloctl.clock import CLOCK, Clock
from coloctl.colo.checkpoint import CheckpointStats
from coloctl.errors import MonitorError
from coloctl.ha.limits import Shown, limits_of
from coloctl.ha.link import LinkWatch, Timed, channels
from coloctl.host.base import Endpoint, Host
from coloctl.host.beacon import new_key, unix_beacons
from coloctl.host.delivery import Deliveries
from coloctl.host.watching import Beacon
from coloctl.model.observation import Contrast, Life, Limits, NodeSeen, Observation
from coloctl.model.pair import NODES, NodeName, PairSpec, Role, other
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
#: Of a pair where every road answers, one beat in so many is told: every 100 ms by default.
TELL_EVERY = 5
#: A beat counts as at most so many intervals: during the rest of it this process did not run.
AWAKE_MAX = 1.5
#: A guest that has reset itself boots and dirties its memory for so long at most, milliseconds,
#: where no sign of the end of its boot is seen (`supervisor.settling`).
RESET_MS = 30_000.0


def ignore(_node: str, _road: str, _seconds: float) -> None:
    """Nobody measures."""


@dataclass(frozen=True)
class Context:
    """What only the supervisor knows."""

    protection: Protection
    stats: CheckpointStats | None = None  #: of the primary while it is in COLO
    period_ms: float = 0.0  #: between two checkpoints, as QEMU was told
    boots_alone: bool = False  #: as `Observation.boots_alone`
    contrast: Contrast = field(default_factory=Contrast)  #: as `Observation.contrast`
    unfenced: NodeName | None = None  #: as `Observation.unfenced`
    vouched: bool = False  #: as `Observation.vouched`


class _Probe:
    """One monitor of one QEMU: one question at a time, and how long its answer has been owed."""

    def __init__(self, monitor: Monitor, question: Command, clock: Clock) -> None:
        self._monitor, self._question, self._clock = monitor, question, clock
        self._asked_s: float | None = None  # of the question that is on its way
        self._owed = False
        self._took_s: float | None = None
        self.silent_ms = 0.0

    def beat(self, awake_ms: float, *, ask: bool) -> float | None:
        """How long the last question took, seconds, if its answer has come since the last beat."""
        took_s, self._took_s = self._took_s, None
        if self._owed:
            self.silent_ms += awake_ms
        if self._asked_s is None and (ask or self._owed):
            self._ask()
        return took_s

    def _ask(self) -> None:
        """The question is on its way, or is owed an answer and asked again at the next beat."""
        self._owed = True
        try:
            if self._monitor.probe(self._question, self._answered):
                self._asked_s = self._clock.now()
        except MonitorError:
            pass  # a monitor that takes no question is as silent as one that answers none

    def _answered(self) -> None:
        assert self._asked_s is not None
        self._took_s = self._clock.now() - self._asked_s
        self._asked_s, self._owed, self.silent_ms = None, False, 0.0


class _NodeProbes:
    """One QEMU, by every road that leads to it."""

    def __init__(self, vm: VM, role: Role, clock: Clock) -> None:
        self.vm, self.role = vm, role
        self.notices: dict[str, None] = {}  # in the order in which they came
        self.rescue = _Probe(vm.monitor, qmp.query_yank(), clock)
        self.command = _Probe(vm.monitor, qmp.query_status(), clock)
        self._cpu_s: float | None = None
        self._idle_ms: float | None = None  # since it used CPU time; None: not since it is silent

    def beat(self, number: int, awake_ms: float, timed: Timed) -> None:
        """Every road is asked whose turn it is."""
        node, number = self.vm.node, number + NODES.index(self.vm.node)
        turn = not number % RESCUE_EVERY
        if (took_s := self.rescue.beat(awake_ms, ask=turn)) is not None:
            timed(node, "rescue", took_s)
        turn = not number % COMMAND_EVERY
        if (took_s := self.command.beat(awake_ms, ask=turn)) is not None:
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

    def seen(self, limits: Limits) -> NodeSeen:
        """What is known of it now. CPU time that it used long ago excuses nothing."""
        return NodeSeen(
            role=self.role,
            life=self._life(),
            busy=self._idle_ms is not None and self._idle_ms < limits.silent_ms,
            rescue_silent_ms=self.rescue.silent_ms,
            command_silent_ms=self.command.silent_ms,
            notices=tuple(self.notices),
        )

    def settle(self) -> None:
        """A reset is no news any more, nor is the panic that it ended."""
        if "guest-reset" in self.notices:
            said = list(self.notices)
            for name in said[: said.index("guest-reset") + 1]:
                if name in ("guest-panic", "guest-reset"):
                    del self.notices[name]

    def _life(self) -> Life:
        process = self.vm.process
        try:
            if not process.alive():
                return Life.DEAD
        except ValueError:  # our hold on it was given back: it is somebody else's now
            return Life.UNKNOWN
        # An answer is proof enough; only silence is worth a look into /proc.
        return Life.STOPPED if self.rescue.silent_ms and process.frozen() else Life.ALIVE


class _Progress:
    """Whether checkpoints come and end, told from the primary's stats."""

    def __init__(self) -> None:
        self._mark: object = None
        self._still_ms = 0.0
        self.held_ms = self.overdue_ms = 0.0

    def beat(self, awake_ms: float, context: Context) -> None:
        stats = context.stats
        # Another period begins a new wait: the last one was not asked for any more.
        mark = stats and (stats, stats.count, stats.stopped_at, context.period_ms)
        self._still_ms = self._still_ms + awake_ms if mark == self._mark else 0.0
        self._mark = mark
        held = stats is not None and stats.stopped_at is not None
        self.held_ms = self._still_ms if held else 0.0
        due = stats is not None and not held
        self.overdue_ms = max(0.0, self._still_ms - context.period_ms) if due else 0.0


class Heartbeat:
    """Beats for one pair. ``timed`` is told how long each probe took."""

    def __init__(self, spec: PairSpec, clock: Clock = CLOCK, *, timed: Timed = ignore) -> None:
        self._spec, self._clock, self._timed = spec, clock, timed
        self._pulses: dict[NodeName, _NodeProbes] = {}
        self._link: LinkWatch | None = None
        self._progress = _Progress()
        self._number = 0
        self._unsettled_ms = 0.0

    def attend(self, node: NodeName, vm: VM, role: Role) -> None:
        """``vm`` sits at ``node``, and has ``role`` from now on; earlier notices are history."""
        pulse = self._pulses.get(node)
        if pulse is not None and pulse.vm is vm:
            pulse.role = role
            pulse.notices.clear()
        else:
            self._pulses[node] = _NodeProbes(vm, role, self._clock)

    def leave(self, node: NodeName) -> None:
        """Nobody sits at ``node``."""
        self._pulses.pop(node, None)

    def notice(self, node: NodeName, name: str) -> None:
        """The QEMU of ``node`` has said one of `NOTICES`; what it said again comes last."""
        if (pulse := self._pulses.get(node)) is None:
            return
        pulse.notices.pop(name, None)
        pulse.notices[name] = None
        if name == "guest-reset" and pulse.role is Role.PRIMARY:
            self._unsettled_ms = RESET_MS

    def forget(self, node: NodeName, name: str) -> None:
        """Take note that what one of `NOTICES` said of ``node``, which is attended, is over."""
        self._pulses[node].notices.pop(name, None)

    def settled(self) -> None:
        """Take note that the guest that was reset has booted; the next beat knows it."""
        self._unsettled_ms = 0.0

    @property
    def watches_link(self) -> bool:
        """Beacons stand at both ends of the replication link."""
        return self._link is not None

    async def watch(self, hosts: Mapping[NodeName, Host]) -> None:
        """The replication link is watched from now on; raises `PreconditionFailed`."""
        self.unwatch()
        if self._spec.shares_host():  # there is no link: what one host sends itself arrives
            one, two = unix_beacons()
            one.meet(two)
            two.meet(one)
            self._link = LinkWatch({"a": one, "b": two}, {}, {})
            return
        key = new_key()
        port = self._spec.replication.heartbeat_port()
        at = {node: Endpoint(self._spec.nodes[node].address, port) for node in NODES}
        async with contextlib.AsyncExitStack() as stack:
            beacons: dict[NodeName, Beacon] = {}
            deliveries: dict[NodeName, Deliveries] = {}
            names = channels(self._spec)
            for node in NODES:
                here, there = at[node], at[other(node)]
                beacons[node] = await hosts[node].beacon(here, there, key)
                stack.callback(beacons[node].close)
                known = await hosts[node].deliveries(here.address, there.address, names)
                if known is not None:
                    deliveries[node] = known
                    stack.callback(known.close)
            stack.pop_all()
        for node in NODES:
            beacons[node].meet(beacons[other(node)])
        self._link = LinkWatch(beacons, deliveries, names)

    def unwatch(self) -> None:
        """The replication link is not watched any more."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def run(self, look: Callable[[], Context], hear: Callable[[Observation], None]) -> None:
        """Beats until cancelled; ``hear``, which must return at once, is told what was seen.

        It is told at every beat, but of a pair where every road answers only now and then: nothing
        would follow from it, and looking for that is a good part of what a heartbeat costs.
        """
        interval_s = self._spec.detection.heartbeat_ms / 1000
        last_s = self._clock.now()
        due_s = last_s + interval_s
        calm = False
        try:
            while True:
                await self._clock.sleep(due_s - self._clock.now())
                now_s = self._clock.now()
                awake_ms = min(now_s - last_s, AWAKE_MAX * interval_s) * 1000
                last_s = now_s
                # A beat that was missed is not made up for.
                due_s = max(due_s + interval_s, now_s + interval_s / 2)
                context = look()
                self._beat(awake_ms, context)
                calm, was_calm = self._calm(interval_s), calm
                if not (calm and was_calm) or self._number % TELL_EVERY == 0:
                    hear(self.observation(context))
        finally:
            for node in NODES:
                self.leave(node)
            self.unwatch()

    def _calm(self, interval_s: float) -> bool:
        """Every road has answered, and QEMU said nothing that decides."""
        quiet = not any(
            pulse.notices or pulse.rescue.silent_ms or pulse.command.silent_ms
            for pulse in self._pulses.values()
        )
        link_ms = 0.0 if self._link is None else self._link.silent_ms
        unacked_ms = None if self._link is None else self._link.unacked[0]
        waits = self._progress.held_ms or self._progress.overdue_ms or unacked_ms
        return quiet and not waits and link_ms < 3 * interval_s * 1000

    def beat(self, awake_ms: float, context: Context) -> Observation:
        """One beat, ``awake_ms`` after the last: what came back is seen, and all is asked again."""
        self._beat(awake_ms, context)
        return self.observation(context)

    def _beat(self, awake_ms: float, context: Context) -> None:
        self._number += 1
        for pulse in self._pulses.values():
            pulse.beat(self._number, awake_ms, self._timed)
        if self._link is not None:
            self._link.beat(awake_ms, self._timed)
        self._progress.beat(awake_ms, context)
        self._unsettled_ms = max(0.0, self._unsettled_ms - awake_ms)
        if not self._unsettled_ms:
            for pulse in self._pulses.values():
                pulse.settle()

    def observation(self, context: Context) -> Observation:
        """What is known at this moment; asks nobody."""
        limits, link = self._limits(context), self._link
        unacked_ms, unacked_by = (None, "") if link is None else link.unacked
        return Observation(
            at_s=self._clock.now(),
            protection=context.protection,
            nodes={node: pulse.seen(limits) for node, pulse in self._pulses.items()},
            limits=limits,
            link_silent_ms=None if link is None else link.silent_ms,
            unacked_ms=unacked_ms,
            unacked_by=unacked_by,
            held_ms=self._progress.held_ms,
            overdue_ms=self._progress.overdue_ms,
            boots_alone=context.boots_alone,
            unfenced=context.unfenced,
            vouched=context.vouched,
            contrast=context.contrast,
        )

    def _limits(self, context: Context) -> Limits:
        stats, memory_mib = context.stats, self._spec.guest.memory_mib
        shown = Shown() if stats is None else Shown(stats.count, stats.longest_pause_s * 1000)
        return limits_of(
            self._spec.detection,
            context.protection,
            shown,
            memory_mib=memory_mib,
            unsettled=self._unsettled_ms > 0,
        )
