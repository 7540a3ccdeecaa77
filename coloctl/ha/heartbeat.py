"""Beat for one pair: probe every monitoring path, and collect one observation from the answers.

Called by `supervisor.heartbeat_driver`; probes monitors through `ha.probes` and the replication
link through `ha.link`, whose beacons the hosts of `host.base` open.

Invariants: nothing here waits for an answer, so that a beat is never late because a node is. A
probe changes nothing. A silence grows only by time in which this process itself ran, so that a
supervisor that was starved or stopped never takes its own absence for another's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from coloctl.clock import CLOCK, Clock
from coloctl.ha.limits import Shown, limits_of
from coloctl.ha.link import LinkWatch, Timed, channels
from coloctl.ha.probes import CheckpointProgress, Context, NodeProbes
from coloctl.host.base import Endpoint, Host
from coloctl.host.beacon import new_key, unix_beacons
from coloctl.host.delivery import Deliveries
from coloctl.host.watching import Beacon
from coloctl.model.observation import Limits, Notice, Observation
from coloctl.model.pair import NODES, NodeName, PairSpec, Role, other
from coloctl.model.wires import Wires
from coloctl.vm import VM

#: Of a pair where every path answers, one observation in so many is passed on: one per 100 ms by
#: default.
TELL_EVERY = 5
#: A limit is looked at so much later, because a sum of floats may be a little less. Seconds.
LIMIT_MARGIN_S = 0.0002
#: A beat counts as at most so many intervals: during the rest of it this process did not run.
AWAKE_MAX = 1.5
#: A guest that has reset itself boots and dirties its memory for so long at most, milliseconds,
#: where no sign of the end of its boot is seen (`supervisor.settling`).
RESET_MS = 30_000.0


def _ignore(_node: str, _path: str, _seconds: float) -> None:
    """Measure nothing."""


class Heartbeat:
    """The heartbeat of one pair; ``timed`` receives how long each probe took."""

    def __init__(self, spec: PairSpec, clock: Clock = CLOCK, *, timed: Timed | None = None) -> None:
        self._spec, self._clock, self._timed = spec, clock, timed or _ignore
        self._probes: dict[NodeName, NodeProbes] = {}
        self._link: LinkWatch | None = None
        self._progress = CheckpointProgress()
        self._number = 0
        self._unsettled_ms = 0.0
        self._sent_before = 0  # bytes of the guest's memory, before the checkpoint under way

    def attend(self, node: NodeName, vm: VM, role: Role) -> None:
        """Probe ``vm`` on ``node`` from now on, in ``role``; earlier notices of it are dropped."""
        probes = self._probes.get(node)
        if probes is not None and probes.vm is vm:
            probes.role = role
            probes.notices.clear()
        else:
            self._probes[node] = NodeProbes(vm, role, self._clock)

    def leave(self, node: NodeName) -> None:
        """Stop probing ``node``: no QEMU runs there."""
        self._probes.pop(node, None)

    def notice(self, node: NodeName, name: Notice) -> None:
        """Note that the QEMU of ``node`` has sent a notice; a repeated one comes last."""
        if (probes := self._probes.get(node)) is None:
            return
        probes.notices.pop(name, None)
        probes.notices[name] = None
        if name == Notice.GUEST_RESET and probes.role is Role.PRIMARY:
            self._unsettled_ms = RESET_MS

    def forget(self, node: NodeName, name: Notice) -> None:
        """Drop a notice of ``node``, which is attended: its matter is over."""
        self._probes[node].notices.pop(name, None)

    def settled(self) -> None:
        """Note that the guest that was reset has booted; the next beat counts on it."""
        self._unsettled_ms = 0.0

    @property
    def watches_link(self) -> bool:
        """True while beacons stand at both ends of the replication link."""
        return self._link is not None

    async def watch(self, hosts: Mapping[NodeName, Host]) -> None:
        """Watch the replication link from now on; raises `PreconditionFailed`."""
        self.unwatch()
        if self._spec.shares_host():  # there is no link: what one host sends itself arrives
            one, two = unix_beacons()
            one.meet(two.session)
            two.meet(one.session)
            self._link = LinkWatch({"a": one, "b": two}, {}, {})
            return
        key = new_key()
        port = self._spec.replication.heartbeat_port()
        at = {node: Endpoint(self._spec.nodes[node].address, port) for node in NODES}
        async with contextlib.AsyncExitStack() as stack:
            beacons: dict[NodeName, Beacon] = {}
            deliveries: dict[NodeName, Deliveries] = {}
            names, ports = channels(self._spec), Wires(self._spec, Path()).ports()
            for node in NODES:
                here, there = at[node], at[other(node)]
                beacons[node] = await hosts[node].beacon(
                    here, there, key, self._spec.detection.heartbeat_ms
                )
                stack.callback(beacons[node].close)
                known = await hosts[node].deliveries(here.address, there.address, ports)
                if known is not None:
                    deliveries[node] = known
                    stack.callback(known.close)
            stack.pop_all()
        for node in NODES:
            beacons[node].meet(beacons[other(node)].session)
        self._link = LinkWatch(beacons, deliveries, names)

    def unwatch(self) -> None:
        """Stop watching the replication link."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def run(self, look: Callable[[], Context], hear: Callable[[Observation], None]) -> None:
        """Run beats until cancelled; pass observations to ``hear``, which must return at once.

        One is passed at every beat, but only now and then while every path answers: nothing would
        follow from it, and looking for that is a good part of what a heartbeat costs.
        """
        interval_s = self._spec.detection.heartbeat_ms / 1000
        last_s = self._clock.now()
        due_s = last_s + interval_s
        calm, context = False, look()
        try:
            while True:
                early_s = self._limit_s(context, last_s)
                if early_s is not None and early_s < due_s:
                    await self._clock.sleep(early_s - self._clock.now())
                    since_ms = min(self._clock.now() - last_s, AWAKE_MAX * interval_s) * 1000
                    hear(self.observation(look(), since_ms))
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

    def _limit_s(self, context: Context, last_s: float) -> float | None:
        """Compute when the silence of a stopped process reaches its limit; None: not soon.

        ``last_s`` is the second of the last beat. A limit that was only looked at with the next
        beat would be noticed up to a beat later, and a frozen guest serves no client meanwhile.
        """
        if not any(probes.rescue.silent_ms for probes in self._probes.values()):
            return None
        limits = self._limits(context)
        due = [probes.due_ms(limits) for probes in self._probes.values()]
        soonest_ms = min((one for one in due if one is not None), default=None)
        return None if soonest_ms is None else last_s + soonest_ms / 1000 + LIMIT_MARGIN_S

    def _calm(self, interval_s: float) -> bool:
        """Return whether every path has answered, and QEMU has sent no notice."""
        quiet = not any(
            probes.notices or probes.rescue.silent_ms or probes.command.silent_ms
            or probes.agent.quiet
            for probes in self._probes.values()
        )  # fmt: skip
        link_ms = (None if self._link is None else self._link.silent_ms) or 0.0
        unacked_ms = None if self._link is None else self._link.unacked[0]
        waits = self._progress.held_ms or self._progress.overdue_ms or unacked_ms
        return quiet and not waits and link_ms < 3 * interval_s * 1000

    def beat(self, awake_ms: float, context: Context) -> Observation:
        """Run one beat, ``awake_ms`` after the last; return what came back, and ask all again."""
        self._beat(awake_ms, context)
        return self.observation(context)

    def _beat(self, awake_ms: float, context: Context) -> None:
        self._number += 1
        for probes in self._probes.values():
            probes.beat(self._number, awake_ms, self._timed)
        if self._link is not None:
            self._link.beat(awake_ms, self._timed)
        # Checkpoints of a primary whose machine does not report are not seen, and none is missed.
        unseen = any(
            probes.role is Role.PRIMARY and probes.agent.quiet for probes in self._probes.values()
        )
        self._progress.beat(0.0 if unseen else awake_ms, context)
        if not self._progress.held_ms:
            self._sent_before = self._sent()[0]
        self._unsettled_ms = max(0.0, self._unsettled_ms - awake_ms)
        if not self._unsettled_ms:
            for probes in self._probes.values():
                probes.settle()

    def observation(self, context: Context, since_ms: float = 0.0) -> Observation:
        """Collect what the monitoring paths show at this moment; asks nothing.

        ``since_ms`` after the last beat monitors that do not answer are silent for that longer.
        """
        limits, link = self._limits(context), self._link
        unacked_ms, unacked_by = (None, "") if link is None else link.unacked
        sent, sent_idle_ms = self._sent()
        return Observation(
            at_s=self._clock.now(),
            protection=context.protection,
            nodes={node: probes.seen(limits, since_ms) for node, probes in self._probes.items()},
            limits=limits,
            link_silent_ms=None if link is None else link.silent_ms,
            unacked_ms=unacked_ms,
            unacked_by=unacked_by,
            held_ms=self._progress.held_ms,
            overdue_ms=self._progress.overdue_ms,
            sent_bytes=sent - self._sent_before,
            sent_idle_ms=sent_idle_ms,
            boots_alone=context.boots_alone,
            unfenced=context.unfenced,
            vouched=context.vouched,
            contrast=context.contrast,
        )

    def _sent(self) -> tuple[int, float | None]:
        """Return the bytes of memory that the primary has sent, and for how long none."""
        for node, probes in self._probes.items():
            if probes.role is Role.PRIMARY and self._link is not None:
                return self._link.sent(node)
        return 0, None

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
