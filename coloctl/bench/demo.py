"""The story of the project, played for real: protect a guest, kill a host, lose nothing.

The demo draws it, tests judge by it. Nobody tells the supervisor to fail over: it notices and acts
by itself. A story leaves nothing behind however it ends, unless it was asked to keep the pair.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from coloctl.chaos.checks import records, streams, verdict
from coloctl.chaos.evidence.chronicle import OUTAGE_WITHIN_S
from coloctl.chaos.evidence.records import Takeover
from coloctl.chaos.evidence.silences import Replies
from coloctl.chaos.evidence.takeover import awaited
from coloctl.chaos.run import testbed
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.workloads.clients import Clients
from coloctl.chaos.workloads.history import Op, Outcome
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient, ControlEvent
from coloctl.errors import DeadlineMissed, NotProtected

#: Version of the story's document; grows with incompatible changes only.
STORY_SCHEMA = 1

STEADY_DEADLINE_S = 120.0


@dataclass(frozen=True)
class Cast(Testbed):
    """Who plays, and what is to happen."""

    name: str = "demo"
    kill: str = "primary"
    clients: int = 4
    checkpoints: int = 4  #: complete ones before the fault
    seconds: float = 4.0  #: of load before the fault and after it


class Audience(Protocol):
    """Who is told how the story goes. Called from the thread that plays it."""

    def scene(self, title: str) -> None:
        """The next scene begins."""
        ...

    def view(self, view: Mapping[str, Any], acknowledged: int) -> None:
        """How the pair stands, and how many records clients saw acknowledged so far."""
        ...


@dataclass
class DemoFault:
    """What was done, when (monotonic), and whether the checkpoint it fell into was never ended."""

    at_s: float
    in_checkpoint: bool


def play(cast: Cast, audience: Audience) -> dict[str, Any]:
    """The story was played; answers its document, whose ``verdict`` tells how it ended.

    Raises what stopped it before the fault could be judged. Nothing is left behind then, nor after
    an interrupt.
    """
    with contextlib.ExitStack() as stack:
        audience.scene("The lab: two hosts, a client, and the wires between them")
        lab = stack.enter_context(testbed.lab(cast))
        folder = stack.enter_context(testbed.folder(cast))
        audience.scene("The guest boots on host a")
        client = stack.enter_context(testbed.pair(cast, lab, folder))
        testbed.boot(cast, client)
        clients = Clients(lab, cast.clients)
        stack.callback(clients.kill)
        stage = _Stage(cast, client, clients, audience)
        document = stage.play()
        document["qemu"] = {"binary": str(cast.qemu), "accel": cast.accel}
        audience.scene("Everything goes" if not cast.keep else "The pair stays for you to explore")
    document["left_behind"] = [] if cast.keep else testbed.left_behind(cast)
    document["kept"] = str(folder) if cast.keep else None
    return document


class _Stage:
    """The scenes between the boot and the verdict."""

    def __init__(
        self, cast: Cast, client: ControlClient, clients: Clients, audience: Audience
    ) -> None:
        self.cast, self.client, self.clients, self.audience = cast, client, clients, audience

    def play(self) -> dict[str, Any]:
        cast, audience = self.cast, self.audience
        audience.scene(f"{cast.clients} clients append numbered records")
        self._until(STEADY_DEADLINE_S, lambda _: self.clients.acknowledged() >= 10 * cast.clients)
        audience.scene("The guest is protected while it serves")
        began = time.monotonic()
        Acts(self.client).start(wait_s=testbed.PROTECT_DEADLINE_S)
        protected = time.monotonic()
        audience.scene("Protected: every checkpoint makes host b the guest's second home")
        self._until(STEADY_DEADLINE_S, self._steady(protected + cast.seconds))
        checkpoints = self._view()["checkpoints"]
        fault = self._kill()
        takeover = self._fail_over(fault)
        carrier = takeover.survivor
        audience.scene(f"The pair failed over by itself: host {carrier} carries on")
        self._until(STEADY_DEADLINE_S, self._later(fault.at_s + cast.seconds))
        audience.scene("Every acknowledged record is read back from the survivor")
        history = self.clients.finish()
        survivors = self.clients.read_back()
        document = self._judge(fault, takeover, history, survivors)
        document["protect_gap_ms"] = Replies({"": history}).longest_ms(began, protected)
        document["checkpoints"] = {
            "count": checkpoints["count"],
            "pause_ms_p50": checkpoints["pause_p50_ms"],
            "pause_ms_p99": checkpoints["pause_p99_ms"],
        }
        return document

    def _view(self) -> dict[str, Any]:
        view: dict[str, Any] = Acts(self.client).status_document()
        self.audience.view(view, self.clients.acknowledged())
        return view

    def _until(self, deadline_s: float, enough: Callable[[Mapping[str, Any]], bool]) -> None:
        """``enough`` said yes to a view; `DeadlineMissed` otherwise."""
        give_up = time.monotonic() + deadline_s
        while not enough(self._view()):
            if time.monotonic() > give_up:
                raise DeadlineMissed(f"The story did not go on within {deadline_s:.0f} s.")
            for _ in self.client.events(0.25):
                pass

    def _steady(self, not_before_s: float) -> Callable[[Mapping[str, Any]], bool]:
        def steady(view: Mapping[str, Any]) -> bool:
            if view["protection"] != "colo":
                raise NotProtected(f"The protection ended before the fault: {view['reason']}")
            enough: bool = view["checkpoints"]["count"] >= self.cast.checkpoints
            return enough and time.monotonic() >= not_before_s

        return steady

    def _later(self, not_before_s: float) -> Callable[[Mapping[str, Any]], bool]:
        return lambda _: time.monotonic() >= not_before_s

    def _kill(self) -> DemoFault:
        """The victim's QEMU was killed as soon as the next checkpoint began."""
        nodes = {node["role"]: node for node in self._view()["nodes"]}
        victim = nodes[self.cast.kill]
        for event in self.client.events(STEADY_DEADLINE_S):
            if event.name == "CHECKPOINT" and event.data["phase"] == "begin":
                at_s = time.monotonic()
                os.kill(victim["pid"], signal.SIGKILL)
                return DemoFault(at_s, in_checkpoint=True)
        raise DeadlineMissed("No checkpoint began in which to kill.")

    def _fail_over(self, fault: DemoFault) -> Takeover:
        """The supervisor noticed, fenced and promoted; the survivor runs alone."""
        dead = False

        def hear(event: ControlEvent) -> None:
            nonlocal dead
            dead = dead or event.name in ("NODE_DEAD", "STATE_CHANGED")
            if event.name == "CHECKPOINT" and event.data["phase"] == "end" and not dead:
                fault.in_checkpoint = False

        return awaited(self.client, hear)

    def _judge(
        self,
        fault: DemoFault,
        takeover: Takeover,
        history: list[Op],
        survivors: Mapping[int, list[int]],
    ) -> dict[str, Any]:
        verdicts = [
            records.all_kept(history, survivors, fault.at_s),
            streams.all_connected(history, self.cast.clients),
        ]
        outage = Replies({"": history}).outage(fault.at_s, ended_by_s=fault.at_s + OUTAGE_WITHIN_S)
        at_ms = takeover.since_ms(fault.at_s)
        steps = ("detected", "fenced", "promoted", "running")
        return {
            "schema": STORY_SCHEMA,
            "verdict": verdict.worst(verdicts),
            "killed": self.cast.kill,
            "failover": {
                "by": "operator" if takeover.cause == "operator" else "supervisor",
                "cause": takeover.cause,
                "survivor": takeover.survivor,
            },
            "in_checkpoint": fault.in_checkpoint,
            "acks": {
                "sent": sum(op.outcome is Outcome.INVOKE for op in history),
                "acknowledged": sum(op.outcome is Outcome.OK for op in history),
                "lost": len(records.lost(history, survivors)),
            },
            "connections": {
                "opened": sum(op.note.startswith("opened ") for op in history),
                "broken": len(streams.broken_connections(history)),
            },
            "outage_ms": outage.longest_ms,
            "timeline": {
                "fault": 0,
                **{f"{step}_ms": at_ms.get(step) for step in steps},
                "first_reply_ms": outage.first_reply_ms,
            },
            "checks": [
                {"check": v.check, "verdict": v.validity, "because": v.because} for v in verdicts
            ],
        }
