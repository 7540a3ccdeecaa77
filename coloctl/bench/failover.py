"""Measure failovers: a fault, the supervisor's reaction with its times, and the clients' outage.

Called by `cli.verbs.bench` for `coloctl bench failover`; each run is a scenario that
`chaos.run.runner` makes, and its row is read from `chaos.evidence.chronicle`. Each run has a lab
and a pair of its own, started from empty disks, so that no run inherits anything from the one
before: not even the way to the guest that its switch and its client had learnt. A run is
**invalid** when something was lost. It is **void** when it proves nothing: the pair did not come as
far as the fault, or the supervisor did not notice the fault.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from coloctl.bench.document import head, losses
from coloctl.chaos.checks.primaries import Heard
from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.evidence.chronicle import BACKLOG_S
from coloctl.chaos.evidence.records import FaultRecord
from coloctl.chaos.faults.processes import hold
from coloctl.chaos.run import runner
from coloctl.chaos.run.environment import Environment
from coloctl.chaos.run.result import RunResult
from coloctl.chaos.run.runner import Run, RunMeasurement
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import FaultSpec, Scenario, SteadyState, Workload
from coloctl.chaos.workloads import PAUSE_MS
from coloctl.model.figures import quantile, summary
from coloctl.model.timeline import FailoverStep, Timeline

#: An early fault comes in the first second of COLO, any other one within a checkpoint period.
EARLY_S = 1.0
#: Complete checkpoints before a fault that is not early.
CHECKPOINTS = 4
#: A fault that was not noticed by then is not noticed at all.
NOTICE_S = 15.0
#: Load goes on for so long after the failover.
LOAD_S = 2.5


class Cause(StrEnum):
    """A fault by name."""

    KILL = "kill"  #: SIGKILL to the primary's QEMU
    FREEZE = "freeze"  #: SIGSTOP to the primary's QEMU; woken again after the failover
    LINK = "link"  #: the replication wire swallows every frame; no carrier is lost
    SECONDARY_KILL = "secondary-kill"
    SECONDARY_FREEZE = "secondary-freeze"
    SECONDARY_POWER_OFF = "secondary-power-off"  #: its whole machine; only on machines

    @property
    def loser(self) -> str:
        """The role whose node should be fenced."""
        return "primary" if self in (Cause.KILL, Cause.FREEZE) else "secondary"

    @property
    def kind_and_target(self) -> tuple[str, str]:
        """The fault of a scenario that it is."""
        if self is Cause.LINK:
            return "cut", "replication"
        if self is Cause.SECONDARY_POWER_OFF:
            return "machine-crash", self.loser
        return self.removeprefix("secondary-"), self.loser


@dataclass(frozen=True)
class FailoverPlan:
    """The fault to measure, and how often."""

    cause: Cause
    runs: int = 1
    clients: int = 4
    early: bool = False
    seed: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the part of the document that names the plan."""
        clients = {"count": self.clients, "pause_ms": PAUSE_MS}
        return {
            "cause": str(self.cause), "early": self.early, "seed": self.seed, "clients": clients
        }  # fmt: skip


def scenario_of(plan: FailoverPlan, delay_ms: int) -> Scenario:
    """Build the scenario of each run: one fault at a moment that the seed chooses."""
    kind, target = plan.cause.kind_and_target
    window_s = EARLY_S if plan.early else delay_ms / 1000
    return Scenario(
        name="bench-failover",
        title=f"A failover is measured: {plan.cause}",
        why="The outage of a failover is what clients notice.",
        seed=plan.seed,
        steady_state=SteadyState(
            checkpoints_min=0 if plan.early else CHECKPOINTS, acknowledged_min=10 * plan.clients
        ),
        workloads=(Workload(kind="redis-appends", clients=plan.clients),),
        faults=(FaultSpec(name="fault", kind=kind, target=target, at_s=(0.0, window_s)),),
        pair={"policy": {"auto_reprotect": False}},
        expect={
            "no_lost_acks": Params(),
            "connections_survive": Params(),
            "one_primary": Heard(heard=False),
        },
        settle_s=LOAD_S,
        notice_s=NOTICE_S,
    )


class LosingNode(RunMeasurement):
    """Holds the QEMU that the fault should cost the pair, from the steady state on.

    In the end it must be fenced, dead and silent.
    """

    def __init__(self, role: str, node: str = "", *, lives_on: bool = False) -> None:
        self.node, self.lives_on = node, lives_on
        self._role = role

    @contextlib.contextmanager
    def during(self, environment: Environment) -> Iterator[None]:
        """Hold the process by a pidfd; look whether it lives when the load ends."""
        node = environment.pair.node(self._role)
        self.node = node.name
        with contextlib.ExitStack() as stack:
            held = hold([node.pid] if node.pid else [])
            for one in held:
                stack.callback(one.close)
            yield
            self.lives_on = any(one.alive() for one in held)


Ran = Callable[[Mapping[str, Any]], None]


def failover(
    where: Testbed, plan: FailoverPlan, ran: Ran = lambda _run: None
) -> list[dict[str, Any]]:
    """Make every run and return their rows; ``ran`` receives each as soon as it has a verdict.

    Raises the error that ended the first run, because that will not change.
    """
    rows: list[dict[str, Any]] = []
    scenario = scenario_of(plan, where.delay_ms)
    for number in range(1, plan.runs + 1):
        loser = LosingNode(plan.cause.loser)
        run = Run.of(scenario, plan.seed * 1000 + number, where)
        result = runner.make(run, measure=loser, forgiving=bool(rows))
        rows.append({"run": number, **row(result, loser)})
        ran(rows[-1])
    return rows


def row(result: RunResult, loser: LosingNode) -> dict[str, Any]:
    """Compute the row of one run from its evidence."""
    chronicle = result.evidence.chronicle
    if not (chronicle.takeovers and result.evidence.faults):
        return _without_takeover(result)
    fault, takeover = result.evidence.faults[0], chronicle.takeovers[0]
    outage = chronicle.effects[0].outage
    phases = takeover.since_ms(fault.at_s)
    frame_s = chronicle.first_frame_s(takeover.survivor, fault.at_s)
    if frame_s is not None:
        phases["first-frame"] = round((frame_s - fault.at_s) * 1000, 1)
    stray = chronicle.frames_after(loser.node, takeover.done_s(FailoverStep.FENCED) + BACKLOG_S)
    wrong = _second_primary(fault, takeover, loser, stray)
    colo_s = (one.at_s for one in chronicle.states if one.after == "colo")
    protected_s = max((at_s for at_s in colo_s if at_s <= fault.at_s), default=fault.at_s)
    failed = [one for one in result.verdicts if one.validity is not Validity.VALID]
    invalid = [one.check for one in failed if one.validity is Validity.INVALID]
    return {
        "verdict": "invalid" if invalid or wrong else "void" if failed else "valid",
        "because": [*("; ".join((v.because, *v.counterexample)) for v in failed), *wrong],
        "fault_s_after_protection": round(fault.at_s - protected_s, 3),
        "survivor": takeover.survivor,
        "supervisor_says": takeover.cause,
        "phases_ms": phases,
        "outage_ms": outage.longest_ms,
        "first_reply_ms": outage.first_reply_ms,
        **losses(result),
        "stray_frames": stray,
        "double_primary": bool(wrong) or "one_primary" in invalid,
    }


def _second_primary(
    fault: FaultRecord, takeover: Timeline, loser: LosingNode, stray: int
) -> list[str]:
    """Describe why more than one node may have been primary: one must be fenced and silent."""
    if takeover.began_s < fault.at_s:
        return ["the pair failed over before the fault"]
    if takeover.lost != loser.node:
        return [f"node {takeover.lost} was fenced, but node {loser.node} was attacked"]
    if loser.lives_on:
        return [f"the QEMU of node {loser.node} lives on after the failover"]
    return [f"{stray} frames of node {loser.node} reached the LAN after its fence"] * bool(stray)


def _without_takeover(result: RunResult) -> dict[str, Any]:
    """Build the row of a run that has no takeover.

    It is void, unless clients were harmed: a failover that was begun and failed is a loss.
    """
    chronicle = result.evidence.chronicle
    harmed = bool(chronicle.left_protection)
    because = (
        result.because() or f"The supervisor did not notice the fault within {NOTICE_S:.0f} s."
    )
    if harmed:
        because = f"The pair is {chronicle.states[-1].after}: {chronicle.states[-1].reason}"
    return {
        "verdict": "invalid" if harmed else "void",
        "because": [because],
        "phases_ms": {},
        "outage_ms": None,
        "first_reply_ms": None,
        **dict.fromkeys(("acknowledged", "lost", "broken", "stray_frames"), 0),
        "double_primary": False,
    }


def document(
    where: Testbed, plan: FailoverPlan, runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Build the document of the runs so far; it has the same form after the last one."""
    setting = {**where.to_json(), **plan.to_json(), "pair": "fresh"}
    return {**head("failover", setting), "runs": list(runs), "summary": summarised(runs)}


def figures(values: Iterable[float | None]) -> dict[str, Any]:
    """Compute what `summary` does, and ``p90``: with twenty runs p99 is the slowest of them."""
    known = [value for value in values if value is not None]
    p90 = quantile(known, 0.9)
    return {**summary(known), "p90": None if p90 is None else round(p90, 2)}


def summarised(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize all runs that were not void; times in milliseconds since the fault."""
    counted = [run for run in runs if run["verdict"] != "void"]
    steps = {step for run in counted for step in run["phases_ms"]}
    phases = {step: figures(run["phases_ms"].get(step) for run in counted) for step in steps}
    return {
        "runs": len(runs),
        **{word: sum(r["verdict"] == word for r in runs) for word in ("valid", "invalid", "void")},
        "phases_ms": dict(sorted(phases.items(), key=lambda item: item[1]["p50"])),
        **{key: figures(run[key] for run in counted) for key in ("outage_ms", "first_reply_ms")},
        **{key: sum(run[key] for run in counted) for key in ("acknowledged", "lost", "broken")},
        "double_primaries": sum(run["double_primary"] for run in counted),
    }
