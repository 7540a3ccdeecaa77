"""Measure failovers: a fault, the supervisor's reaction with its times, and the clients' outage.

Called by `cli.verbs.bench` for `coloctl bench failover`; other benches use its `until`. It sets up
lab and pair with `chaos.run.testbed` and checks what clients saw with `chaos.checks`.

Each run has a lab and a pair of its own, started from empty disks, so that no run inherits anything
from the one before: not even the way to the guest that its switch and its client had learnt. A run
is **invalid** when something was lost. It is **void** when it proves nothing: the pair did not come
as far as the fault, or the supervisor did not notice the fault.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coloctl.bench import faults
from coloctl.bench.document import head
from coloctl.bench.faults import Cause, Target
from coloctl.chaos.checks import records, streams, verdict
from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.evidence.chronicle import BACKLOG_S, OUTAGE_WITHIN_S, Chronicle
from coloctl.chaos.evidence.lan import LanWatch
from coloctl.chaos.evidence.silences import Replies
from coloctl.chaos.evidence.takeover import awaited
from coloctl.chaos.run import testbed
from coloctl.chaos.run.figures import summary
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads import PAUSE_MS, start_workload
from coloctl.chaos.workloads.history import OpStatus
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient
from coloctl.errors import ColoctlError, DeadlineMissed, FailoverRefused, NotProtected
from coloctl.lab import sample
from coloctl.lab.network import Lab
from coloctl.model.timeline import Timeline
from coloctl.model.view import PairView

STEADY_DEADLINE_S = 120.0
#: An early fault comes in the first second of COLO.
EARLY_S = 1.0
#: How long a node that was fenced may take to be gone, once it is awake, seconds.
LINGER_S = 2.0


@dataclass(frozen=True)
class Plan:
    """The fault to measure, and how often."""

    cause: Cause
    runs: int = 1
    clients: int = 4
    early: bool = False
    seed: int = 1
    checkpoints: int = 4  #: complete ones before a fault that is not early
    load_s: float = 2.5  #: of load after the failover

    def to_json(self) -> dict[str, Any]:
        """Return the part of the document that names the plan."""
        return {
            "cause": str(self.cause),
            "early": self.early,
            "seed": self.seed,
            "clients": {"count": self.clients, "pause_ms": PAUSE_MS},
        }


Ran = Callable[[Mapping[str, Any]], None]


def failover(where: Testbed, plan: Plan, ran: Ran = lambda _run: None) -> list[dict[str, Any]]:
    """Make every run and return their documents; ``ran`` receives each as soon as it has a verdict.

    Raises the error that kept the first run from beginning at all, because that will not change.
    """
    runs: list[dict[str, Any]] = []
    for number in range(1, plan.runs + 1):
        run = _Run(where, plan, number)
        try:
            document = run.measure()
        except ColoctlError as error:
            if not runs and not run.booted:
                raise
            document = run.without_result(error)
        runs.append(document)
        ran(document)
    return runs


def document(where: Testbed, plan: Plan, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Build the document of the runs so far; it has the same form after the last one."""
    setting = {**where.to_json(), **plan.to_json(), "pair": "fresh"}
    return {
        **head("failover", setting),
        "runs": list(runs),
        "summary": summarised(runs),
    }


def summarised(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize all runs that were not void; times in milliseconds since the fault."""
    counted = [run for run in runs if run["verdict"] != "void"]
    steps: dict[str, list[float]] = {}
    for run in counted:
        for step, at_ms in run["phases_ms"].items():
            steps.setdefault(step, []).append(at_ms)
    phases = {step: summary(values) for step, values in steps.items()}
    return {
        "runs": len(runs),
        **{word: sum(run["verdict"] == word for run in runs) for word in ("valid", "invalid")},
        "void": len(runs) - len(counted),
        "phases_ms": dict(sorted(phases.items(), key=lambda item: item[1]["p50"])),
        "outage_ms": summary(run["outage_ms"] for run in counted),
        "first_reply_ms": summary(run["first_reply_ms"] for run in counted),
        "acknowledged": sum(run["acknowledged"] for run in counted),
        "lost": sum(run["lost"] for run in counted),
        "broken": sum(run["broken"] for run in counted),
        "double_primaries": sum(run["double_primary"] for run in counted),
    }


class _Run:
    """One pair, one fault."""

    def __init__(self, where: Testbed, plan: Plan, number: int) -> None:
        self.where, self.plan, self.number = where, plan, number
        self.booted = False
        self._random = random.Random(f"{plan.seed}/{plan.cause}/{number}")
        self._protected_at_s = 0.0
        self._harmed = False  #: whether clients notice an error from here on

    def measure(self) -> dict[str, Any]:
        """Make the run and return its document; raises the error that ended it before a verdict."""
        with contextlib.ExitStack() as stack:
            lab = stack.enter_context(testbed.lab(self.where))
            folder = stack.enter_context(testbed.folder(self.where))
            client = stack.enter_context(testbed.pair(self.where, lab, folder))
            testbed.boot(self.where, client)
            self.booted = True
            clients = start_workload(
                lab, Workload(name="load", kind="redis-appends", clients=self.plan.clients)
            )
            stack.callback(clients.kill)
            until(client, lambda _: clients.acknowledged() >= 10 * self.plan.clients)
            Acts(client).start(wait_s=testbed.PROTECT_DEADLINE_S)
            self._protected_at_s = time.monotonic()
            if not self.plan.early:
                until(client, self._steady)
            return self._attacked(lab, client, clients)

    def without_result(self, error: ColoctlError) -> dict[str, Any]:
        """Build the document of a run that an error ended.

        It is void, unless clients were harmed: a failover that was begun and failed is a loss.
        """
        begun = self._harmed or isinstance(error, FailoverRefused)
        return {
            "run": self.number,
            "verdict": "invalid" if begun else "void",
            "because": [error.message],
            "phases_ms": {},
            "outage_ms": None,
            "first_reply_ms": None,
            **dict.fromkeys(("acknowledged", "lost", "broken", "stray_frames"), 0),
            "double_primary": False,
        }

    def _steady(self, view: PairView) -> bool:
        require_colo(view)
        return view.checkpoints.count >= self.plan.checkpoints

    def _attacked(self, lab: Lab, client: ControlClient, clients: ClientProgram) -> dict[str, Any]:
        view = Acts(client).view()
        require_colo(view)
        mac = sample.guest_mac()
        with faults.target_of(self.plan.cause, view) as target, LanWatch(lab, mac) as lan:
            self._wait(client)
            fault_at_s = faults.inject(self.plan.cause, lab, target)
            takeover = awaited(client)
            self._harmed = True
            lingers = faults.lingers(target, LINGER_S)
            load_until_s = time.monotonic() + self.plan.load_s
            until(client, lambda _: time.monotonic() >= load_until_s)
            history = clients.finish()
            survivors = clients.read_back()
        heard = Chronicle(frames=lan.frames)
        stray = heard.frames_after(target.node, takeover.done_s("fenced") + BACKLOG_S)
        phases = takeover.since_ms(fault_at_s)
        frame_s = heard.first_frame_s(takeover.survivor, fault_at_s)
        if frame_s is not None:
            phases["first-frame"] = round((frame_s - fault_at_s) * 1000, 1)
        verdicts = [
            records.all_kept(history, survivors, fault_at_s),
            streams.all_connected(history, self.plan.clients),
            one_primary(takeover, target, stray, lingers=lingers),
        ]
        felt = Replies({"": history}).outage(fault_at_s, ended_by_s=fault_at_s + OUTAGE_WITHIN_S)
        worst = verdict.worst(verdicts)
        return {
            "run": self.number,
            "verdict": "void" if worst is Validity.UNKNOWN else str(worst),
            "because": [
                "; ".join((v.because, *v.counterexample))
                for v in verdicts
                if v.validity is not Validity.VALID
            ],
            "fault_s_after_protection": round(fault_at_s - self._protected_at_s, 3),
            "survivor": takeover.survivor,
            "supervisor_says": takeover.cause,
            "phases_ms": phases,
            "outage_ms": felt.longest_ms,
            "first_reply_ms": felt.first_reply_ms,
            "acknowledged": sum(op.outcome is OpStatus.OK for op in history),
            "lost": len(records.lost(history, survivors)),
            "broken": len(streams.broken_connections(history)),
            "stray_frames": stray,
            "double_primary": verdicts[-1].validity is Validity.INVALID,
        }

    def _wait(self, client: ControlClient) -> None:
        """Wait for the moment that the seed chose, within a second or a checkpoint period."""
        begin_s, window_s = time.monotonic(), self.where.delay_ms / 1000
        if self.plan.early:
            begin_s, window_s = self._protected_at_s, EARLY_S
        moment_s = begin_s + self._random.random() * window_s
        for event in client.events(max(moment_s - time.monotonic(), 0.0)):
            if event.name == "STATE_CHANGED" and event.data["before"] == "colo":
                self._harmed = True
                raise NotProtected(f"Failed over without a fault: {event.data['reason']}")


def one_primary(takeover: Timeline, target: Target, stray: int, *, lingers: bool) -> Verdict:
    """Check that the attacked node lost, is dead, and sent no more frames to the LAN."""
    check = "one_primary"
    if takeover.lost != target.node:
        because = f"node {takeover.lost} was fenced, but node {target.node} was attacked"
    elif lingers:
        because = f"the QEMU of node {target.node} lives on after the failover"
    elif stray:
        because = f"{stray} frames of node {target.node} reached the LAN after its fence"
    else:
        return Verdict(check, Validity.VALID, f"node {target.node} is dead and silent")
    return Verdict(check, Validity.INVALID, because)


def require_colo(view: PairView) -> None:
    """Require that the pair is protected; raises `NotProtected` with the reason otherwise."""
    if not view.protected:
        raise NotProtected(f"The pair is {view.protection}: {view.reason}")


def until(
    client: ControlClient,
    enough: Callable[[PairView], bool],
    deadline_s: float = STEADY_DEADLINE_S,
) -> None:
    """Wait until ``enough`` accepts a view of the pair; raises `DeadlineMissed` otherwise."""
    give_up = time.monotonic() + deadline_s
    while not enough(Acts(client).view()):
        if time.monotonic() > give_up:
            raise DeadlineMissed(f"The bench did not go on within {deadline_s:.0f} s.")
        for _ in client.events(0.1):
            pass
