"""The heart of a supervisor: every road to both nodes is tried at every beat, and what came back is
told as one observation.

Invariants: nothing here waits for an answer, so that a beat is never late because a node is; a
probe changes nothing; a silence grows only by time in which this process itself ran, so that a
supervisor that was starved, or stopped, never takes its own absence for somebody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from coloctl.clock import CLOCK, Clock
from coloctl.colo.checkpoint import CheckpointLedger
from coloctl.errors import CommandRefused, MonitorError
from coloctl.ha.limits import Shown, limits
from coloctl.host.base import Beacon, Endpoint, Host
from coloctl.model.observation import Life, NodeSeen, Observation
from coloctl.model.pair import NODES, NodeName, PairSpec, Role, other
from coloctl.model.protection import Protection
from coloctl.qmp import command as qmp
from coloctl.vm import VM

#: Called with node, road ("rescue", "command" or "link") and seconds for each probe answered.
Timed = Callable[[str, str, float], None]

#: The main loop is asked at every so many beats: it serves the guest, and is needed less.
COMMAND_EVERY = 5
#: A question that is never answered is given up after so long, and asked again, seconds. Each one
#: given up stays owed, and a monitor that owes many is not asked any more (`qmp.session`).
PROBE_DEADLINE_S = 60.0
#: A silent process was busy if it used CPU time in this window or the one before it; the kernel
#: counts in steps of 10 ms, and an idle guest under emulation uses one or two per second.
BUSY_WINDOW_MS = 500.0
#: A beat counts as at most so many intervals: during the rest of it this process did not run.
AWAKE_MAX = 1.5


def ignore(_node: str, _road: str, _seconds: float) -> None:
    """Nobody measures."""


@dataclass(frozen=True)
class Context:
    """What only the supervisor knows."""

    protection: Protection
    ledger: CheckpointLedger | None = None  #: of the primary while it is in COLO
    period_ms: float = 0.0  #: between two checkpoints, as QEMU was told


class _Road:
    """One monitor of one QEMU: one question at a time, and how long its answer has been owed."""

    def __init__(self, ask: Callable[[], Awaitable[object]], clock: Clock) -> None:
        self._ask, self._clock = ask, clock
        self._question: asyncio.Task[float | None] | None = None
        self.silent_ms = 0.0

    def beat(self, awake_ms: float, *, ask: bool) -> float | None:
        """How long the last question took, seconds, if its answer has come since the last beat."""
        took = None
        if self._question is not None and self._question.done():
            took = self._question.result()
            self._question = None
            self.silent_ms = self.silent_ms + awake_ms if took is None else 0.0
        elif self._question is not None:
            self.silent_ms += awake_ms
        if self._question is None and ask:
            self._question = asyncio.ensure_future(self._put())
        return took

    async def _put(self) -> float | None:
        began = self._clock.now()
        try:
            await self._ask()
        except CommandRefused:
            pass  # a refusal is an answer
        except MonitorError:
            return None
        return self._clock.now() - began

    def end(self) -> None:
        """Nothing is asked any more."""
        if self._question is not None:
            self._question.cancel()


class _Pulse:
    """One QEMU, by every road that leads to it."""

    def __init__(self, vm: VM, role: Role, clock: Clock) -> None:
        self.vm, self.role = vm, role
        self.notices: dict[str, None] = {}  # in the order in which they came
        yank, status = qmp.query_yank(), qmp.query_status()
        self.rescue = _Road(lambda: vm.monitor.rescue(yank, PROBE_DEADLINE_S), clock)
        self.command = _Road(lambda: vm.monitor.execute(status, PROBE_DEADLINE_S), clock)
        self._cpu_s: float | None = None  # when `_busy` began to look, and what came before
        self._looked_ms, self._busy_then = 0.0, False

    def beat(self, number: int, awake_ms: float, timed: Timed) -> None:
        """Every road is asked whose turn it is."""
        turn = number % COMMAND_EVERY == 0
        for name, road, ask in (("rescue", self.rescue, True), ("command", self.command, turn)):
            if (took := road.beat(awake_ms, ask=ask)) is not None:
                timed(self.vm.node, name, took)

    def seen(self) -> NodeSeen:
        """What is known of it now."""
        return NodeSeen(
            role=self.role,
            life=self._life(),
            busy=self._busy(),
            rescue_silent_ms=self.rescue.silent_ms,
            command_silent_ms=self.command.silent_ms,
            notices=tuple(self.notices),
        )

    def _life(self) -> Life:
        process = self.vm.process
        try:
            if not process.alive():
                return Life.DEAD
        except ValueError:  # our hold on it was given back: it is somebody else's now
            return Life.UNKNOWN
        # An answer is proof enough; only silence is worth a look into /proc.
        return Life.STOPPED if self.rescue.silent_ms and process.frozen() else Life.ALIVE

    def _busy(self) -> bool:
        silent_ms = self.rescue.silent_ms
        if not silent_ms:
            self._looked_ms, self._busy_then = 0.0, False
            return False
        now_s = self.vm.process.cpu_s()
        if not self._looked_ms:
            self._looked_ms, self._cpu_s = silent_ms, now_s
        used = now_s is not None and self._cpu_s is not None and now_s > self._cpu_s
        if silent_ms - self._looked_ms >= BUSY_WINDOW_MS:
            self._looked_ms, self._cpu_s, self._busy_then = silent_ms, now_s, used
        return used or self._busy_then

    def end(self) -> None:
        """Nothing is asked any more."""
        self.rescue.end()
        self.command.end()


class _Link:
    """Both beacons of the replication link, and how long each has heard nothing."""

    def __init__(self, beacons: Mapping[NodeName, Beacon]) -> None:
        self._beacons = beacons
        self._silent_ms = dict.fromkeys(NODES, 0.0)

    def beat(self, awake_ms: float, timed: Timed) -> None:
        for node, beacon in self._beacons.items():
            if beacon.beat():
                self._silent_ms[node] = 0.0
                timed(node, "link", beacon.delay_s or 0.0)
            else:
                self._silent_ms[node] += awake_ms

    @property
    def silent_ms(self) -> float:
        """Of the direction that has been silent for longer."""
        return max(self._silent_ms.values())

    def close(self) -> None:
        for beacon in self._beacons.values():
            beacon.close()


class _Progress:
    """Whether checkpoints come and end, told from the primary's ledger."""

    def __init__(self) -> None:
        self._mark: object = None
        self._still_ms = 0.0
        self.held_ms = self.overdue_ms = 0.0

    def beat(self, awake_ms: float, context: Context) -> None:
        ledger = context.ledger
        mark = None if ledger is None else (id(ledger), ledger.count, ledger.stopped_at)
        self._still_ms = self._still_ms + awake_ms if mark == self._mark else 0.0
        self._mark = mark
        held = ledger is not None and ledger.stopped_at is not None
        self.held_ms = self._still_ms if held else 0.0
        due = ledger is not None and not held
        self.overdue_ms = max(0.0, self._still_ms - context.period_ms) if due else 0.0


class Heartbeat:
    """Beats for one pair. ``timed`` is told how long each probe took."""

    def __init__(self, spec: PairSpec, clock: Clock = CLOCK, *, timed: Timed = ignore) -> None:
        self._spec, self._clock, self._timed = spec, clock, timed
        self._pulses: dict[NodeName, _Pulse] = {}
        self._link: _Link | None = None
        self._progress = _Progress()
        self._number = 0

    def attend(self, node: NodeName, vm: VM, role: Role) -> None:
        """``vm`` sits at ``node``, and has ``role`` from now on; earlier notices are history."""
        pulse = self._pulses.get(node)
        if pulse is not None and pulse.vm is vm:
            pulse.role = role
            pulse.notices.clear()
            return
        self.leave(node)
        self._pulses[node] = _Pulse(vm, role, self._clock)

    def leave(self, node: NodeName) -> None:
        """Nobody sits at ``node``."""
        if (pulse := self._pulses.pop(node, None)) is not None:
            pulse.end()

    def notice(self, node: NodeName, name: str) -> None:
        """The QEMU of ``node`` has said one of `NOTICES`."""
        if (pulse := self._pulses.get(node)) is not None:
            pulse.notices[name] = None

    @property
    def watches_link(self) -> bool:
        """Beacons stand at both ends of the replication link."""
        return self._link is not None

    async def watch(self, hosts: Mapping[NodeName, Host]) -> None:
        """The replication link is watched from now on; raises `PreconditionFailed`."""
        self.unwatch()
        port = self._spec.replication.heartbeat_port()
        at = {node: Endpoint(self._spec.nodes[node].address, port) for node in NODES}
        async with contextlib.AsyncExitStack() as stack:
            beacons = {}
            for node in NODES:
                beacons[node] = await hosts[node].beacon(at[node], at[other(node)])
                stack.callback(beacons[node].close)
            stack.pop_all()
        for node in NODES:
            beacons[node].meet(beacons[other(node)])
        self._link = _Link(beacons)

    def unwatch(self) -> None:
        """The replication link is not watched any more."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def run(self, look: Callable[[], Context], hear: Callable[[Observation], None]) -> None:
        """Beats until cancelled; every beat is told to ``hear``, which must return at once."""
        interval_s = self._spec.detection.heartbeat_ms / 1000
        last_s = self._clock.now()
        try:
            while True:
                await asyncio.sleep(interval_s)
                now_s = self._clock.now()
                awake_ms = min(now_s - last_s, AWAKE_MAX * interval_s) * 1000
                last_s = now_s
                hear(self.beat(awake_ms, look()))
        finally:
            for node in NODES:
                self.leave(node)
            self.unwatch()

    def beat(self, awake_ms: float, context: Context) -> Observation:
        """One beat, ``awake_ms`` after the last: what came back is seen, and all is asked again."""
        self._number += 1
        for pulse in self._pulses.values():
            pulse.beat(self._number, awake_ms, self._timed)
        if self._link is not None:
            self._link.beat(awake_ms, self._timed)
        self._progress.beat(awake_ms, context)
        return self.observation(context)

    def observation(self, context: Context) -> Observation:
        """What is known at this moment; asks nobody."""
        return Observation(
            at_s=self._clock.now(),
            protection=context.protection,
            nodes={node: pulse.seen() for node, pulse in self._pulses.items()},
            limits=limits(self._spec.detection, context.protection, _shown(context.ledger)),
            link_silent_ms=None if self._link is None else self._link.silent_ms,
            held_ms=self._progress.held_ms,
            overdue_ms=self._progress.overdue_ms,
        )


def _shown(ledger: CheckpointLedger | None) -> Shown:
    if ledger is None:
        return Shown()
    return Shown(ledger.count, ledger.longest_pause_s * 1000)
