"""Protect a guest, kill a host, and show that nothing was lost: the project's demonstration.

Called by `cli.verbs.demo`, which draws it; tests check its document. It sets up lab and pair with
`chaos.run.testbed` and checks what clients saw with `chaos.checks`.

Invariant: the supervisor is not asked to fail over, it notices and acts by itself. Everything that
was set up is removed however the demonstration ends, unless the pair is to be kept.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from coloctl.bench.faults import Target
from coloctl.chaos.checks import records, streams, verdict
from coloctl.chaos.evidence.chronicle import OUTAGE_WITHIN_S
from coloctl.chaos.evidence.remains import Trail, remains
from coloctl.chaos.evidence.silences import Replies
from coloctl.chaos.evidence.takeover import awaited
from coloctl.chaos.run import testbed
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads import start_workload
from coloctl.chaos.workloads.history import Op, OpStatus
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient, ControlEvent
from coloctl.errors import DeadlineMissed, NotProtected
from coloctl.model.timeline import FailoverStep, Timeline
from coloctl.model.view import PairView

#: Version of the demonstration's document; grows with incompatible changes only.
DEMO_SCHEMA = 1

STEADY_DEADLINE_S = 120.0


@dataclass(frozen=True)
class DemoSetting(Testbed):
    """The pair to show, and what is to happen to it."""

    name: str = "demo"
    kill: str = "primary"
    clients: int = 4
    checkpoints: int = 4  #: complete ones before the fault
    seconds: float = 4.0  #: of load before the fault and after it


class Screen(Protocol):
    """Shows the demonstration as it goes on; called from the thread that runs it."""

    def step(self, title: str) -> None:
        """Show that the next step begins."""
        ...

    def view(self, view: PairView, acknowledged: int) -> None:
        """Show the pair's state, and how many records clients saw acknowledged so far."""
        ...


@dataclass
class DemoFault:
    """The kill: its monotonic time, and whether its checkpoint stayed without an end."""

    at_s: float
    in_checkpoint: bool


def run(where: DemoSetting, screen: Screen) -> dict[str, Any]:
    """Run the demonstration and return its document, whose ``verdict`` states the result.

    Raises the error that stopped it before a verdict. Nothing is left over then, nor after an
    interrupt.
    """
    with contextlib.ExitStack() as stack:
        screen.step("The lab: two hosts, a client, and the wires between them")
        lab = stack.enter_context(testbed.lab(where))
        folder = stack.enter_context(testbed.folder(where))
        screen.step("The guest boots on host a")
        client = stack.enter_context(testbed.pair(where, lab, folder))
        testbed.boot(where, client)
        clients = start_workload(
            lab, Workload(name="load", kind="redis-appends", clients=where.clients)
        )
        stack.callback(clients.kill)
        document = _Demo(where, client, clients, screen).run()
        document["qemu"] = {"binary": str(where.qemu), "accel": where.accel}
        screen.step("The lab is removed" if not where.keep else "The pair stays for you to explore")
    document["left_behind"] = [] if where.keep else remains(Trail(where.name, folder))
    document["kept"] = str(folder) if where.keep else None
    return document


class _Demo:
    """The steps between the boot and the verdict."""

    def __init__(
        self, where: DemoSetting, client: ControlClient, clients: ClientProgram, screen: Screen
    ) -> None:
        self.where, self.client, self.clients, self.screen = where, client, clients, screen

    def run(self) -> dict[str, Any]:
        """Take every step and build the document."""
        where, screen = self.where, self.screen
        screen.step(f"{where.clients} clients append numbered records")
        self._until(STEADY_DEADLINE_S, lambda _: self.clients.acknowledged() >= 10 * where.clients)
        screen.step("The guest is protected while it serves")
        began = time.monotonic()
        Acts(self.client).start(wait_s=testbed.PROTECT_DEADLINE_S)
        protected = time.monotonic()
        screen.step("Protected: each checkpoint makes host b equal to host a")
        self._until(STEADY_DEADLINE_S, self._steady(protected + where.seconds))
        checkpoints = self._view().checkpoints
        fault = self._kill()
        takeover = self._fail_over(fault)
        carrier = takeover.survivor
        screen.step(f"The pair failed over by itself: host {carrier} carries on")
        self._until(STEADY_DEADLINE_S, self._later(fault.at_s + where.seconds))
        screen.step("Every acknowledged record is read back from the survivor")
        history = self.clients.finish()
        survivors = self.clients.read_back()
        document = self._document(fault, takeover, history, survivors)
        document["protect_gap_ms"] = Replies({"": history}).longest_ms(began, protected)
        document["checkpoints"] = {
            "count": checkpoints.count,
            "pause_ms_p50": checkpoints.pause_p50_ms,
            "pause_ms_p99": checkpoints.pause_p99_ms,
        }
        return document

    def _view(self) -> PairView:
        view = Acts(self.client).view()
        self.screen.view(view, self.clients.acknowledged())
        return view

    def _until(self, deadline_s: float, enough: Callable[[PairView], bool]) -> None:
        """Wait until ``enough`` accepts a view; raises `DeadlineMissed` otherwise."""
        give_up = time.monotonic() + deadline_s
        while not enough(self._view()):
            if time.monotonic() > give_up:
                raise DeadlineMissed(f"The demonstration did not go on within {deadline_s:.0f} s.")
            for _ in self.client.events(0.25):
                pass

    def _steady(self, not_before_s: float) -> Callable[[PairView], bool]:
        def steady(view: PairView) -> bool:
            if not view.protected:
                raise NotProtected(f"The protection ended before the fault: {view.reason}")
            enough = view.checkpoints.count >= self.where.checkpoints
            return enough and time.monotonic() >= not_before_s

        return steady

    def _later(self, not_before_s: float) -> Callable[[PairView], bool]:
        return lambda _: time.monotonic() >= not_before_s

    def _kill(self) -> DemoFault:
        """Kill the chosen QEMU as soon as the next checkpoint begins."""
        nodes = self._view().nodes.values()
        (node,) = ((one.name, one.pid) for one in nodes if one.role == self.where.kill and one.pid)
        with contextlib.closing(Target(*node)) as target:
            for event in self.client.events(STEADY_DEADLINE_S):
                if event.name == "CHECKPOINT" and event.data["phase"] == "begin":
                    at_s = time.monotonic()
                    target.signal(signal.SIGKILL)
                    return DemoFault(at_s, in_checkpoint=True)
        raise DeadlineMissed("No checkpoint began in which to kill.")

    def _fail_over(self, fault: DemoFault) -> Timeline:
        """Wait until the supervisor has noticed, fenced and promoted; the survivor runs alone."""
        dead = False

        def note(event: ControlEvent) -> None:
            nonlocal dead
            dead = dead or event.name in ("NODE_DEAD", "STATE_CHANGED")
            if event.name == "CHECKPOINT" and event.data["phase"] == "end" and not dead:
                fault.in_checkpoint = False

        return awaited(self.client, note)

    def _document(
        self,
        fault: DemoFault,
        takeover: Timeline,
        history: list[Op],
        survivors: Mapping[int, list[int]],
    ) -> dict[str, Any]:
        verdicts = [
            records.all_kept(history, survivors, fault.at_s),
            streams.all_connected(history, self.where.clients),
        ]
        outage = Replies({"": history}).outage(fault.at_s, ended_by_s=fault.at_s + OUTAGE_WITHIN_S)
        at_ms = takeover.since_ms(fault.at_s)
        by_then = FailoverStep.DETECTED, FailoverStep.FENCED, FailoverStep.PROMOTED
        return {
            "schema": DEMO_SCHEMA,
            "verdict": verdict.worst(verdicts),
            "killed": self.where.kill,
            "failover": {
                "by": "operator" if takeover.cause == "operator" else "supervisor",
                "cause": takeover.cause,
                "survivor": takeover.survivor,
            },
            "in_checkpoint": fault.in_checkpoint,
            "acks": {
                "sent": sum(op.outcome is OpStatus.INVOKE for op in history),
                "acknowledged": sum(op.outcome is OpStatus.OK for op in history),
                "lost": len(records.lost(history, survivors)),
            },
            "connections": {
                "opened": sum(op.note.startswith("opened ") for op in history),
                "broken": len(streams.broken_connections(history)),
            },
            "outage_ms": outage.longest_ms,
            "timeline": {
                "fault": 0,
                **{f"{step}_ms": at_ms.get(step) for step in (*by_then, FailoverStep.RUNNING)},
                "first_reply_ms": outage.first_reply_ms,
            },
            "checks": [
                {"check": v.check, "verdict": v.validity, "because": v.because} for v in verdicts
            ],
        }
