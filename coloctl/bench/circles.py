"""Measure one pair through many failovers: it is protected again after each, under clients.

Called by `cli.verbs.bench` for `coloctl bench circles`; sets up lab and pair with
`chaos.run.testbed` and checks what clients saw with `chaos.checks`. One pair goes through all
circles: protected, attacked, alone, protected again. Some clients connect at the beginning and
stay. In each phase of each circle another one connects and stays too: under protection, right after
the failover, and while the new secondary is made.

Invariant: no failover and no protection is requested, only a switchover is. What kills a QEMU holds
it by a pidfd, so no other process is ever hit.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from coloctl.bench.document import BENCH_SCHEMA
from coloctl.bench.faults import Target, until
from coloctl.chaos.checks import records, streams, verdict
from coloctl.chaos.evidence.inventory import counts
from coloctl.chaos.evidence.silences import Replies
from coloctl.chaos.evidence.takeover import awaited
from coloctl.chaos.run import testbed
from coloctl.chaos.run.figures import summary
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads import PAUSE_MS, AppendsParams, start_workload
from coloctl.chaos.workloads.history import Op, OpStatus
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient
from coloctl.lab.network import Lab
from coloctl.model.timeline import FailoverStep, Timeline
from coloctl.model.view import PairView

#: From a fault to the pair in COLO again, seconds.
CIRCLE_DEADLINE_S = 120.0
#: The client of one phase appends so often, milliseconds: it keeps a connection, it is no load.
GUEST_PAUSE_MS = 20


class CircleFault(StrEnum):
    """The fault, or the planned exchange of roles, with which a circle begins."""

    PRIMARY = "primary"  #: SIGKILL to the primary's QEMU
    SECONDARY = "secondary"  #: SIGKILL to the secondary's QEMU
    SWITCHOVER = "switchover"  #: as planned


@dataclass(frozen=True)
class Round:
    """The circles to measure, and the clients that work meanwhile."""

    faults: tuple[CircleFault, ...]
    clients: int = 4
    seed: int = 1
    guests: bool = True  #: a client connects in each phase of each circle


Tell = Callable[[Mapping[str, Any]], None]


@dataclass
class _Moments:
    """The monotonic times at which a circle reached each phase, in seconds."""

    fault_s: float = 0.0
    alone_s: float = 0.0
    colo_s: float = 0.0
    takeover: Timeline | None = None
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def circles(where: Testbed, what: Round, tell: Tell = lambda _circle: None) -> dict[str, Any]:
    """Measure all circles and return their document; ``tell`` receives each circle when it closes.

    Raises the error that kept a circle from closing.
    """
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(testbed.lab(where))
        folder = stack.enter_context(testbed.folder(where))
        client = stack.enter_context(testbed.pair(where, lab, folder))
        testbed.boot(where, client)
        crowd = _Crowd(lab)
        stack.callback(crowd.kill)
        crowd.come(what.clients, PAUSE_MS)
        until(client, lambda _: crowd.acknowledged() >= 10 * what.clients)
        began_s = time.monotonic()
        Acts(client).start(wait_s=testbed.PROTECT_DEADLINE_S)
        turning = _Circles(client, crowd, what, random.Random(what.seed))
        moments = [_Moments(began_s, began_s, time.monotonic())]
        for number, fault in enumerate(what.faults, start=1):
            moments.append(turning.turn(fault))
            tell({"circle": number, "blow": str(fault), **_times(moments[-1])})
        return _document(where, what, moments, crowd)


class _Crowd:
    """Clients that connected one after the other, each with numbers of its own."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._groups: list[ClientProgram] = []
        self.count = 0

    def come(self, count: int, pause_ms: float) -> ClientProgram:
        """Start ``count`` more clients."""
        work = Workload(
            name="load",
            kind="redis-appends",
            clients=count,
            params=AppendsParams(pause_ms=pause_ms),
            numbered_from=self.count,
        )
        group = start_workload(self._lab, work)
        self.count += count
        self._groups.append(group)
        return group

    def acknowledged(self) -> int:
        """Count the records that all clients saw acknowledged so far."""
        return sum(group.acknowledged() for group in self._groups)

    def finish(self) -> list[Op]:
        """End every client and return the operations of all."""
        return [op for group in self._groups for op in group.finish()]

    def read_back(self) -> dict[int, list[int]]:
        """Return the records that the guest holds, per client."""
        return {
            client: records
            for group in self._groups
            for client, records in group.read_back().items()
        }

    def kill(self) -> None:
        """Kill the processes of all clients."""
        for group in self._groups:
            group.kill()


class _Circles:
    """Takes one pair through one circle after the other."""

    def __init__(
        self, client: ControlClient, crowd: _Crowd, what: Round, dice: random.Random
    ) -> None:
        self.client, self.crowd, self.what, self._dice = client, crowd, what, dice
        self._joining = False  #: whether this circle's client of the join phase has connected

    def turn(self, fault: CircleFault) -> _Moments:
        """Take the pair through one circle; return the times of its phases.

        The pair is attacked, and the circle ends when it is in COLO again.
        """
        self._guest()
        began = Acts(self.client).view().checkpoints.count
        until(self.client, lambda view: view.checkpoints.count >= began + 2)
        for _ in self.client.events(self._dice.random() * 0.5):
            pass
        moments = _Moments(time.monotonic())
        if fault is CircleFault.SWITCHOVER:
            moments.takeover = Acts(self.client).switchover(wait_s=CIRCLE_DEADLINE_S)
            moments.alone_s = moments.takeover.done_s(FailoverStep.VERIFIED)
        else:
            self._kill(fault)
            moments.takeover = awaited(self.client)
            moments.alone_s = time.monotonic()
            self._guest()
        self._joining = False
        until(self.client, self._protected, CIRCLE_DEADLINE_S)
        moments.colo_s = time.monotonic()
        moments.counts = counts(Acts(self.client))
        return moments

    def _guest(self) -> None:
        if self.what.guests:
            self.crowd.come(1, GUEST_PAUSE_MS)

    def _kill(self, fault: CircleFault) -> None:
        nodes = Acts(self.client).view().nodes.values()
        (node,) = ((node.name, node.pid) for node in nodes if node.role == str(fault) and node.pid)
        with contextlib.closing(Target(*node)) as target:
            target.signal(signal.SIGKILL)

    def _protected(self, view: PairView) -> bool:
        if view.protection in ("resync", "migrating") and not self._joining:
            self._guest()
            self._joining = True
        return view.protected and view.progress is None


def _times(moments: _Moments) -> dict[str, Any]:
    takeover = moments.takeover
    assert takeover is not None
    running_s = takeover.done_s(FailoverStep.RUNNING)
    return {
        "survivor": takeover.survivor,
        "running_ms": round((running_s - moments.fault_s) * 1000, 1),
        "exposed_s": round(moments.colo_s - running_s, 2),
        "counts": moments.counts,
    }


def _document(
    where: Testbed,
    what: Round,
    moments: list[_Moments],
    crowd: _Crowd,
) -> dict[str, Any]:
    history = sorted(crowd.finish(), key=lambda op: op.at_s)
    survivors, clients = crowd.read_back(), crowd.count
    replies = Replies({"": history})
    turns = [
        {
            "blow": str(fault),
            **_times(one),
            "outage_ms": replies.outage(one.fault_s, ended_by_s=one.fault_s + 2.0).longest_ms,
            "join_gap_ms": replies.longest_ms(one.alone_s, one.colo_s + 0.5),
        }
        for fault, one in zip(what.faults, moments[1:], strict=True)
    ]
    middle_s = moments[len(moments) // 2].fault_s
    verdicts = [
        records.all_kept(history, survivors, middle_s),
        streams.all_connected(history, clients),
        level([turn["counts"] for turn in turns]),
    ]
    return {
        "schema": BENCH_SCHEMA,
        "bench": "circles",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count()},
        "setting": {**where.to_json(), "seed": what.seed, "clients": {"count": clients}},
        "verdict": str(verdict.worst(verdicts)),
        "circles": len(turns),
        "acknowledged": sum(op.outcome is OpStatus.OK for op in history),
        "lost": len(records.lost(history, survivors)),
        "connections": clients,
        "broken": len(streams.broken_connections(history)),
        "running_ms": summary(turn["running_ms"] for turn in turns),
        "outage_ms": summary(turn["outage_ms"] for turn in turns),
        "exposed_s": summary(turn["exposed_s"] for turn in turns),
        "first_join_gap_ms": replies.longest_ms(moments[0].alone_s, moments[0].colo_s + 0.5),
        "join_gap_ms": summary(turn["join_gap_ms"] for turn in turns),
        "turns": turns,
        "checks": [
            {"check": v.check, "verdict": v.validity, "because": v.because} for v in verdicts
        ],
    }


def level(counts: list[Mapping[str, Mapping[str, int]]]) -> verdict.Verdict:
    """Check that a QEMU holds the same after each circle, by role: nothing may grow."""
    check = "nothing_grows"
    if not counts:
        return verdict.Verdict(check, verdict.Validity.UNKNOWN, "no circle has closed")
    grown = tuple(
        f"circle {number}: {one}, after the first {counts[0]}"
        for number, one in enumerate(counts, start=1)
        if one != counts[0]
    )
    if grown:
        return verdict.Verdict(
            check, verdict.Validity.INVALID, f"{len(grown)} circles left another count", grown
        )
    return verdict.Verdict(check, verdict.Validity.VALID, f"{counts[0]} after each circle")
